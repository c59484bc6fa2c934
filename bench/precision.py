"""The same training run in bf16 and in fp32: python bench/precision.py [OPTIONS OF fastalex.train]

    python bench/precision.py                                     # the bundled digits
    python bench/precision.py --seeds 0 1 2                       # three runs in each precision
    python bench/precision.py photos --width 0.25 --epochs 3      # class folders, a narrower network

Runs `python -m fastalex.train` in each precision with the same seed, and records the training loss, validation loss and
errors of every epoch, and their difference from the first precision. `bf16-direct` is bf16 with exact sums in
convolutions, `bf16-minimal` with minimal filtering, and `bf16` whichever is the default of the processor.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics


def main() -> None:
    parser = argparse.ArgumentParser(description="The same training run in bf16 and in fp32.")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["fp32", "bf16"],
        help="of fp32, tf32, bf16, bf16-direct, bf16-minimal",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments, options = parser.parse_known_args()
    options = [str(Path(option).resolve()) if Path(option).is_dir() else option for option in options]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for precision in arguments.precisions:
                run = Path(folder) / f"{precision}-{seed}"
                dtype, _, algorithm = precision.partition("-")
                convolutions = {"FASTALEX_BF16_CONV": algorithm} if algorithm else {}
                command = [sys.executable, "-m", "fastalex.train", *options, "--precision", dtype]
                command += ["--seed", str(seed), "--output", run.name]
                subprocess.run(command, cwd=folder, env=os.environ | convolutions, check=True)
                rows += [{"precision": precision, "seed": seed, **row} for row in epochs(run)]
        config = RunConfig.load(run)
    compare(rows)
    data = re.sub(r"[^a-z0-9]+", "-", Path(config.data).name.lower())
    network = config.network
    settings = {
        "data": data,
        "options": [Path(option).name for option in options],
        "network": network.summary(),
        "recipe": config.recipe.name,
        "cores": len(os.sched_getaffinity(0)),
    }
    harness.write_record(f"precision-{data}", settings, rows, arguments.output)


def epochs(run: Path) -> list[dict[str, Any]]:
    """One row per epoch of a run: mean training loss, validation loss and errors."""
    lines = read_metrics(run)
    rows = []
    for validation in (line for line in lines if line["kind"] == "val"):
        training = [line for line in lines if line["kind"] == "train" and line["epoch"] == validation["epoch"]]
        images = sum(line["images"] for line in training)
        row = {"epoch": validation["epoch"]}
        row["training_loss"] = round(sum(line["loss"] * line["images"] for line in training) / images, 4)
        row |= {f"validation_{name}": validation[name] for name in ("loss", "top1_error", "top5_error")}
        rows.append(row)
    return rows


def compare(rows: list[dict[str, Any]]) -> None:
    """Print all runs, and add to every row its difference from the first precision with the same seed."""
    first = {(row["seed"], row["epoch"]): row for row in rows if row["precision"] == rows[0]["precision"]}
    for row in rows:
        baseline = first[row["seed"], row["epoch"]]
        for name in ("training_loss", "validation_loss", "validation_top1_error"):
            row[f"{name}_difference"] = round(row[name] - baseline[name], 4)
        print(
            f"seed {row['seed']}  epoch {row['epoch']}  {row['precision']}  training loss {row['training_loss']:.4f} "
            f"({row['training_loss_difference']:+.4f})  validation loss {row['validation_loss']:.4f} "
            f"({row['validation_loss_difference']:+.4f})  top-1 error {row['validation_top1_error']:.2f} % "
            f"({row['validation_top1_error_difference']:+.2f})"
        )


if __name__ == "__main__":
    main()
