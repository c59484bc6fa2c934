"""The training command on the bundled digits, as `make train` runs it: speed, time waiting for data, errors.

    python bench/training.py [--devices cpu,cpu] [--epochs N]
    python bench/training.py --run runs/20261123-...            # records a finished run

Runs `python -m fastalex.train` in an empty folder, including the preparation of the data, and reads its log.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on the bundled digits and record the speed.")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--run", type=Path, help="record this finished run instead of training")
    arguments, options = parser.parse_known_args()
    if arguments.run:
        record(arguments.run, arguments.output, measured(arguments.run), options)
        return
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fastalex.train", *options], cwd=folder, check=True)
        seconds = time.perf_counter() - start
        (run,) = Path(folder).glob("runs/*")
        record(run, arguments.output, measured(run) | {"command_seconds": round(seconds, 1)}, options)


def record(run: Path, output: Path, row: dict[str, object], options: list[str]) -> None:
    """Write the record, and the run's training curve next to it."""
    settings = {"options": options, "cores": len(os.sched_getaffinity(0))}
    path = harness.write_record("training", settings, [row], output)
    path.with_suffix(".png").write_bytes((run / "curve.png").read_bytes())


def measured(run: Path) -> dict[str, object]:
    """The row of a finished run: training steps without validation and start-up."""
    config = RunConfig.load(run)
    lines = read_metrics(run)
    training = [line for line in lines if line["kind"] == "train"]
    validation = [line for line in lines if line["kind"] == "val"]
    images = sum(line["images"] for line in training)
    seconds = sum(line["images"] / line["images_per_second"] for line in training)
    waiting = sum(line["images"] / line["images_per_second"] * line["waiting_percent"] / 100 for line in training)
    return {
        "op": "training",
        "provider": "fastalex",
        "architecture": config.network.architecture,
        "recipe": config.recipe.name,
        "devices": ",".join(map(str, config.parallel.devices)),
        "batch_size": config.recipe.batch_size,
        "micro_batches": config.parallel.micro_batches,
        "precision": config.precision,
        "images": images,
        "training_seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 2),
        "waiting_percent": round(100 * waiting / seconds, 2),
        "top1_error": validation[-1]["top1_error"],
        "best_top1_error": min(line["top1_error"] for line in validation),
    }


if __name__ == "__main__":
    main()
