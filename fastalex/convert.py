"""``python -m fastalex.convert FILE OUT.safetensors``: another program's AlexNet becomes weights of fastalex."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.interchange.convert_options import ConvertOptions, convert_and_report
from fastalex.parallel.torchrun import refuse_launcher


def main() -> None:
    """Parse the options, convert and report."""
    refuse_launcher("a conversion needs one process; run it without torchrun")
    convert_and_report(parse(ConvertOptions, prog="python -m fastalex.convert"))


if __name__ == "__main__":
    cli.main(main)
