"""``python -m fastalex.convert FILE OUT.safetensors``: another program's AlexNet becomes weights of fastalex."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.convert import ConvertOptions


def main() -> None:
    """Parse the options, convert and report."""
    options = parse(ConvertOptions, module="fastalex.convert")
    with cli.slow_imports():
        from fastalex.interchange.convert_options import convert_and_report
        from fastalex.parallel.torchrun import refuse_launcher
    refuse_launcher("a conversion needs one process; run it without torchrun")
    convert_and_report(options)


if __name__ == "__main__":
    cli.main(main)
