"""Whether a training stays at its size: its resident memory over thousands of steps, with the real loader.

    python bench/soak.py photos [--steps 5000] [--devices cpu,cpu] [--precision bf16] [--validate-every 50]

Trains at full width on the images of a data set, reads the anonymous memory of all its processes from /proc while it
runs, and records the growth from step 100 to the end, with the speed. Other options go to fastalex.train. An epoch
that is long enough has no validation in between; --validate-every makes epochs of that many steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from matplotlib.figure import Figure

import dataloading

FIRST = 100
"""Steps after which a training is expected to have its size."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Resident memory of a training over many steps.")
    parser.add_argument("data", type=Path, help="a prepared data set")
    parser.add_argument("--steps", type=int, default=5000, help="training steps")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step")
    parser.add_argument("--validate-every", type=int, help="steps per epoch, each of which ends with a validation")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    arguments, options = parser.parse_known_args()
    images = dataloading.Dataset(arguments.data).count("train")
    per_epoch = images // arguments.batch_size
    fraction = 1.0
    if arguments.validate_every:
        fraction = min(1.0, arguments.validate_every * arguments.batch_size / images)
        per_epoch = min(per_epoch, arguments.validate_every)
    epochs = -(-arguments.steps // per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [str(arguments.data), "--batch-size", str(arguments.batch_size), "--epochs", str(epochs)]
        words += ["--fraction", f"{fraction:g}", "--output", str(run), *options]
        points = watch([sys.executable, "-m", "fastalex.train", *words], run)
        last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-2]
    settled = next(megabytes for step, megabytes in points if step >= min(FIRST, arguments.steps))
    largest = max(megabytes for step, megabytes in points if step >= min(FIRST, arguments.steps))
    row: dict[str, Any] = {
        "steps": points[-1][0],
        "epochs": epochs,
        "megabytes_settled": round(settled, 1),
        "megabytes_largest": round(largest, 1),
        "megabytes_end": round(points[-1][1], 1),
        "growth_percent": round(100 * (points[-1][1] / settled - 1), 2),
        "images_per_second": last["images_per_second"],
        "points": [[step, round(megabytes, 1)] for step, megabytes in points],
    }
    settings = {"data": arguments.data.name, "training_images": images, "batch_size": arguments.batch_size}
    path = harness.write_record(name_of(options), settings | {"options": options}, [row], arguments.output)
    draw(points, path.with_suffix(".png"))
    print(
        f"{row['megabytes_settled']:.0f} MB at step {FIRST}, {row['megabytes_end']:.0f} MB at step {row['steps']}: "
        f"{row['growth_percent']:+.2f} %; largest {row['megabytes_largest']:.0f} MB\n{path}"
    )


def name_of(options: list[str]) -> str:
    """The record's name: what differs from a run on one device in the default precision."""
    given = dict(itertools.pairwise(options))
    parts = [given.get("--devices", "cpu").replace(",", "-"), given.get("--precision", "")]
    return "-".join(filter(None, ("soak", *parts)))


def watch(command: list[str], run: Path) -> list[tuple[int, float]]:
    """Run a training; return its last logged step and its megabytes of anonymous memory, whenever the step changes."""
    process = subprocess.Popen(command)
    points: list[tuple[int, float]] = []
    while process.poll() is None:
        time.sleep(0.5)
        try:
            step = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
            megabytes = sum(map(anonymous_bytes, [process.pid, *descendants(process.pid)])) / 1e6
        except (OSError, ValueError, IndexError, KeyError):  # not begun, or just ending
            continue
        if not points or step > points[-1][0]:
            points.append((step, megabytes))
    if process.returncode:
        raise SystemExit(process.returncode)
    return points


def descendants(pid: int) -> list[int]:
    """Ids of a process's children and theirs."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*direct, *(grandchild for child in direct for grandchild in descendants(child))]


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process that is not of files, in bytes."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def draw(points: list[tuple[int, float]], path: Path) -> None:
    """Memory over steps."""
    figure = Figure(figsize=(6.5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True))
    axes.set(xlabel="training steps", ylabel="resident memory (MB)", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
