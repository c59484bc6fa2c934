"""``python -m fastalex.report RUN [RUN ...] [DATA] [-o FILE.html]``: one page that shows what networks have learned."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.report import ReportOptions


def main() -> None:
    """Parse the options and write the page, in this process."""
    options = parse(ReportOptions, module="fastalex.report")
    with cli.slow_imports():
        from fastalex.parallel.launch import run_workers
        from fastalex.parallel.torchrun import refuse_launcher
        from fastalex.reports.options import resolve, write_report
    refuse_launcher("a report needs one process; run it without torchrun")
    job = resolve(options)
    run_workers(write_report, job, (job.device,))


if __name__ == "__main__":
    cli.main(main)
