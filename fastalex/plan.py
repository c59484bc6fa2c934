"""``python -m fastalex.plan``: parameters, memory and training time of a network, before it is trained."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.plan import COMMON, PlanOptions


def main() -> None:
    """Parse the options and report; several devices get workers only if steps are measured on them."""
    options = parse(PlanOptions, module="fastalex.plan", common=COMMON)
    with cli.slow_imports():
        import torch

        from fastalex.parallel.launch import run_workers
        from fastalex.parallel.torchrun import refuse_launcher
        from fastalex.parallel.world import World
        from fastalex.planning.options import resolve
        from fastalex.planning.report import report
    refuse_launcher("planning starts its own workers; run it without torchrun")
    plan = resolve(options)
    if plan.measure:
        run_workers(report, plan, plan.devices)
    else:
        report(World(0, 1, torch.device("cpu")), plan)


if __name__ == "__main__":
    cli.main(main)
