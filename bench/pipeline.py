"""Training steps over stages and replicas: throughput, idle time and splits, measured and simulated.

    python bench/pipeline.py                              # all parts, one record each
    python bench/pipeline.py --parts default              # one process, and two workers as training runs them
    python bench/pipeline.py --parts one two four cuts    # one worker; two workers; four workers; every split
    python bench/pipeline.py --parts bubble gradients     # balanced stages; deferred weight gradients
    python bench/pipeline.py --predict 'H100:2,8,64,512'  # from a committed record of the part "one" on that device

On a CPU every worker has one thread, except in the part "default", where it has as many as in training; the single
process that they are compared with has all cores. Images are random and stay in memory; a step is forward, backward and
update. The speed of a machine may drift, so all trials of a part run in turn, round after round. Images/s are
those of the median round; ratios and idle times are medians over all rounds. The simulation knows the costs of single
blocks, which the same workers measure just before a trial, the speed of the links and the number of cores; it knows
nothing of the measured steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
import torch
from pipelining.block_costs import Link
from pipelining.measurement import BATCH_SIZE, Measurement
from pipelining.parts import PARTS
from pipelining.prediction import predict

from fastalex.network.variation import Variation, build_architecture

SCHEDULES = ("eager-1f1b", "1f1b", "interleaved")
WORKERS = {"one": 1, "gradients": 1, "four": 4}
"""Workers of the parts that do not have two."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time training over stages and replicas, and simulate it.")
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images per step of all workers (128)")
    add("--micro-batches", type=int, nargs="+", default=[2, 4, 8], help="numbers of micro-batches in two, four (2 4 8)")
    add(
        "--schedules", nargs="+", choices=(*SCHEDULES, "gpipe"), default=SCHEDULES,
        help=f"pipeline schedules in two ({' '.join(SCHEDULES)})",
    )  # fmt: skip
    add("--steps", type=int, default=4, help="timed steps of each trial in a round, after one to warm up (4)")
    add("--rounds", type=int, default=3, help="how often each trial is timed; the median round counts (3)")
    add("--width", type=float, default=1.0, help="width of the network; narrow ones for a quick look (1)")
    add("--precision", choices=("fp32", "bf16"), default="bf16" if harness.CUDA else "fp32")
    add("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    add("--predict", metavar="DEVICE:N,...", help="predict N devices from a committed record")
    add("--per-device", type=int, default=128, help="images per device and step, in one and in predictions (128)")
    add("--within", type=float, default=100, help="predicted GB/s between the devices of a machine (100)")
    add("--network", type=float, default=50, help="predicted GB/s between machines (50)")
    add("--machine", type=int, default=8, help="predicted devices per machine (8)")
    add("--quick", action="store_true", help="a narrow network and a small batch")
    return parser


def main() -> None:
    parser = build_parser()
    options = parser.parse_args()
    if options.quick:
        options.width, options.batch_size, options.per_device = 0.25, 16, 16
        options.steps, options.rounds = 2, 1
    if options.predict:
        links = Link(0.0, options.within * 1e9), Link(0.0, options.network * 1e9)
        try:
            predict(options.predict, options.per_device, *links, options.machine, options.output)
        except ValueError as error:
            parser.error(str(error))
        return
    architecture = build_architecture("krizhevsky", 1000, Variation(width=options.width))
    for part in options.parts:
        workers = WORKERS.get(part, 2)
        if harness.CUDA and torch.cuda.device_count() < workers:
            print(f"{part}: skipped, it needs {workers} GPUs and {torch.cuda.device_count()} are available")
            continue
        bench = Measurement(
            architecture,
            options.batch_size,
            options.per_device,
            options.steps,
            options.rounds,
            options.precision,
            options.output,
            options.quick,
            options.micro_batches,
            options.schedules,
        )
        PARTS[part](bench)


if __name__ == "__main__":
    main()
