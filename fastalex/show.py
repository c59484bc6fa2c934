"""``python -m fastalex.show RUN [-o FILE.png]``: draw the kernels of a network's first convolution."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.evaluation.show_options import ShowOptions, draw_and_report
from fastalex.parallel.torchrun import refuse_launcher


def main() -> None:
    """Parse the options and draw."""
    refuse_launcher("drawing needs one process; run it without torchrun")
    draw_and_report(parse(ShowOptions, prog="python -m fastalex.show"))


if __name__ == "__main__":
    cli.main(main)
