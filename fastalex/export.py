"""``python -m fastalex.export RUN --to FORMAT``: write a trained network as ONNX, for PyTorch alone, or torchvision."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.interchange.export_options import ExportOptions, export_and_report, resolve


def main() -> None:
    """Parse the options and export."""
    export_and_report(resolve(parse(ExportOptions, prog="python -m fastalex.export")))


if __name__ == "__main__":
    cli.main(main)
