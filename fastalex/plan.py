"""``python -m fastalex.plan``: what fits into which memory, and how long training takes, before it is begun."""

from __future__ import annotations

import torch

from dataloading.command_line import parse
from fastalex import cli, launch
from fastalex.plan_options import PlanOptions, report, resolve


def main() -> None:
    """Parse, and report here; in new workers only where steps are timed on several devices."""
    launch.refuse_launcher("planning starts its own workers; leave torchrun out")
    options = parse(PlanOptions, prog="python -m fastalex.plan")
    plan = resolve(options)
    if plan.measure:
        launch.run(report, plan, launch.parse_devices(plan.devices))
    else:
        report(launch.World(0, 1, torch.device("cpu")), plan)


if __name__ == "__main__":
    cli.main(main)
