"""Record the errors of methods before 2012 on a data set: dense SIFT with Fisher vectors, and HOG.

    python bench/baseline.py photos [--gaussians N]             # both methods
    python bench/baseline.py --runs runs/20261124-... runs/...  # records finished measurements

Runs `python -m fastalex.baseline` or reads its results.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import harness
import sklearn
from matplotlib.figure import Figure

from fastalex.handcrafted.options import METHODS


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the errors of methods before 2012.")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--runs", type=Path, nargs="+", help="record these finished measurements")
    arguments, options = parser.parse_known_args()
    if arguments.runs:
        record(arguments.runs, arguments.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / features for features in ("sift", "hog")]
        for run in runs:
            command = [sys.executable, "-m", "fastalex.baseline", *options, "--features", run.name, "--output", run]
            subprocess.run(command, check=True)
        record(runs, arguments.output)


def record(runs: list[Path], output: Path) -> None:
    """Write the record: one row per measurement, and the published figures in the settings."""
    read = [json.loads((run / "baseline.json").read_text()) for run in runs]
    beside = read[0]["beside"]
    rows = [{name: value for name, value in row.items() if name != "beside"} for row in read]
    versions = {"opencv": cv2.__version__, "scikit-learn": sklearn.__version__}
    path = harness.write_record("baseline", {"beside": beside}, rows, output, versions=versions)
    draw(rows, beside, path.with_suffix(".png"))


def draw(rows: list[dict[str, Any]], beside: list[dict[str, Any]], path: Path) -> None:
    """Bars of top-1 and top-5 errors: measured and published."""
    shown = [*beside[::-1], *rows[::-1]]
    names = [row.get("method") or f"{METHODS[row['features']]}, {row['data']} {row['split']}" for row in shown]
    figure = Figure(figsize=(9, 0.7 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    for offset, name in ((0.2, "top1_error"), (-0.2, "top5_error")):
        positions = [index + offset for index in range(len(shown))]
        bars = axes.barh(positions, [row[name] for row in shown], 0.38, label=name.replace("_", " "))
        axes.bar_label(bars, fmt="{:.1f}", padding=3)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_xlabel("error (%)")
    axes.margins(x=0.1)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
