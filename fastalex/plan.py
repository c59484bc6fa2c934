"""``python -m fastalex.plan``: what fits into which memory, and how long training takes, before it is begun."""

from __future__ import annotations

import torch

from dataloading.command_line import parse
from fastalex import cli
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.launch import run_workers
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.parallel.world import World
from fastalex.planning.options import PlanOptions, resolve
from fastalex.planning.report import report


def main() -> None:
    """Parse, and report here; in new workers only where steps are timed on several devices."""
    refuse_launcher("planning starts its own workers; leave torchrun out")
    options = parse(PlanOptions, prog="python -m fastalex.plan")
    plan = resolve(options)
    if plan.measure:
        run_workers(report, plan, parse_devices(plan.devices))
    else:
        report(World(0, 1, torch.device("cpu")), plan)


if __name__ == "__main__":
    cli.main(main)
