"""Record the errors of methods before 2012 on a data set: dense SIFT with Fisher vectors, and HOG.

    python bench/baseline.py photos [--gaussians N]             # both methods
    python bench/baseline.py --runs runs/20261124-... runs/...  # records finished measurements
    python bench/baseline.py --runs ... --study studies/photos-dataset-size   # on fractions, beside a network on these

Runs `python -m fastalex.baseline` or reads its results.
"""

import argparse
import json
import statistics
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
    parser.add_argument("--study", type=Path, help="folder of a dataset-size study, to draw beside these measurements")
    arguments, options = parser.parse_known_args()
    if arguments.runs:
        if arguments.study:
            record_sizes(arguments.runs, arguments.study, arguments.output)
        else:
            record(arguments.runs, arguments.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / features for features in ("sift", "hog")]
        for run in runs:
            command = [sys.executable, "-m", "fastalex.baseline", *options, "--features", run.name]
            subprocess.run([*command, "--output", run], check=True)
        record(runs, arguments.output)


def record(runs: list[Path], output: Path) -> None:
    """Write the record: one row per measurement, and the published figures in the settings."""
    read = [json.loads((run / "baseline.json").read_text()) for run in runs]
    beside = read[0]["beside"]
    rows = [{name: value for name, value in row.items() if name != "beside"} for row in read]
    versions = {"opencv": cv2.__version__, "scikit-learn": sklearn.__version__}
    path = harness.write_record("baseline", {"beside": beside}, rows, output, versions=versions)
    draw(rows, beside, path.with_suffix(".png"))


def record_sizes(runs: list[Path], study: Path, output: Path) -> None:
    """Write the record of errors on fractions of the images: hand-crafted features, and the network of a study."""
    read = [json.loads((run / "baseline.json").read_text()) for run in runs]
    network = json.loads((study / "study.json").read_text())
    if {row["fingerprint"] for row in read} != {network["data"]["fingerprint"]}:
        raise SystemExit(f"error: {study} and the measurements are on different data; name those of one data set")
    rows = [{name: value for name, value in row.items() if name != "beside"} for row in read]
    for variant in network["rows"]:
        fraction = variant["options"].get("fraction", 1.0)
        images = next(row["training_images"] for row in rows if row["fraction"] == fraction)
        about = {"features": "network", "fraction": fraction, "training_images": images, "epochs": variant["epochs"]}
        rows += [about | run for run in variant["runs"]]
    versions = {"opencv": cv2.__version__, "scikit-learn": sklearn.__version__}
    settings = {"data": network["data"], "network": network["base"]}
    path = harness.write_record("dataset-size", settings, rows, output, versions=versions)
    draw_sizes(rows, path.with_suffix(".png"))


def draw_sizes(rows: list[dict[str, Any]], path: Path) -> None:
    """Top-1 error over the number of training images: mean and spread over seeds, and each measurement as a dot."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for features, label, marker in (("network", "the network", "o"), ("sift", METHODS["sift"], "s")):
        own = [row for row in rows if row["features"] == features]
        sizes = sorted({row["training_images"] for row in own})
        errors = [[row["top1_error"] for row in own if row["training_images"] == size] for size in sizes]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in errors]
        line = axes.errorbar(sizes, list(map(statistics.fmean, errors)), spreads, marker=marker, capsize=4, label=label)
        for size, values in zip(sizes, errors, strict=True):
            axes.plot([size] * len(values), values, ".", color=line[0].get_color(), alpha=0.5)
    axes.set(xscale="log", xlabel="training images", ylabel="top-1 error (%)", ylim=(0, None))
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_title("Does the network overtake hand-crafted features with more images?", fontsize=11)
    axes.legend()
    figure.savefig(path, dpi=110)


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
