"""``python -m fastalex.show RUN [-o FILE.png]``: draw the kernels of a network's first convolution."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.show import ShowOptions


def main() -> None:
    """Parse the options and draw."""
    options = parse(ShowOptions, module="fastalex.show")
    with cli.slow_imports():
        from fastalex.evaluation.show_options import draw_and_report
        from fastalex.parallel.torchrun import refuse_launcher
    refuse_launcher("drawing needs one process; run it without torchrun")
    draw_and_report(options)


if __name__ == "__main__":
    cli.main(main)
