"""``python -m fastalex.report RUN [RUN ...] [DATA] [-o FILE.html]``: one page that shows what networks have learned."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.reports.options import ReportOptions, resolve, write_report


def main() -> None:
    """Parse the options and write the page, in this process."""
    refuse_launcher("a report needs one process; run it without torchrun")
    job = resolve(parse(ReportOptions, prog="python -m fastalex.report"))
    run_workers(write_report, job, (job.device,))


if __name__ == "__main__":
    cli.main(main)
