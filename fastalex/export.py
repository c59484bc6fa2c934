"""``python -m fastalex.export RUN --to FORMAT``: write a trained network as ONNX, for PyTorch alone, or torchvision."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.export import ExportOptions


def main() -> None:
    """Parse the options and export."""
    options = parse(ExportOptions, module="fastalex.export")
    with cli.slow_imports():
        from fastalex.interchange.export_options import export_and_report, resolve
    export_and_report(resolve(options))


if __name__ == "__main__":
    cli.main(main)
