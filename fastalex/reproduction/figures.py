"""The paper's figure 1, and the curve of data set size, as pictures and as numbers."""

from __future__ import annotations

import base64
import json
import statistics
from pathlib import Path
from typing import Any

from fastalex.reproduction.targets import Targets
from fastalex.studies.claims import STUDIES, TRAINING_ERROR_GOAL, find_study
from fastalex.studies.comparison import RECORD
from fastalex.training.metrics_log import read_metrics, save_figure, without_backend

_LINES = {"relu": "-", "tanh": "--"}  # as in the paper


def training_errors(run: Path) -> list[float]:
    """The mean training error in percent of each epoch of a run."""
    epochs: dict[int, list[tuple[float, int]]] = {}
    for line in read_metrics(run):
        if line["kind"] == "train":
            epochs.setdefault(line["epoch"], []).append((line["top1_error"], line["images"]))
    return [
        sum(error * images for error, images in parts) / sum(images for _, images in parts)
        for _, parts in sorted(epochs.items())
    ]


def figure1(targets: Targets) -> dict[str, Any]:
    """Draw figure 1: the training error by epoch of the best learning rate of each activation function.

    The best rate is the one with the fewest epochs to the goal; if none reaches it, the one with the lowest error at
    the end. Returns what is drawn, and the ratio of the epochs.
    """
    study, folder = find_study("activation"), targets.study("activation").result
    record = json.loads((folder / RECORD).read_bytes())
    curves: dict[str, dict[str, Any]] = {}
    for family in study.families:
        variants = [variant for variant in study.variants if variant.name.startswith(family)]
        found = []
        for variant in variants:
            errors = [training_errors(run) for run in sorted(variant.folder_in(folder).glob("seed-*"))]
            whole = [run for run in errors if len(run) == max(map(len, errors))]
            if whole and whole[0]:
                mean = [statistics.fmean(epoch) for epoch in zip(*whole, strict=True)]
                reached = next((number for number, error in enumerate(mean, 1) if error <= TRAINING_ERROR_GOAL), None)
                found.append({"variant": variant.name, "epochs_to_goal": reached, "training_errors": mean})
        if found:
            curves[family] = min(
                found, key=lambda curve: (curve["epochs_to_goal"] or 1e9, curve["training_errors"][-1])
            )
    result = {"goal": TRAINING_ERROR_GOAL, "published_ratio": study.published_ratio, "ratio": record["ratio"]}
    result |= {"seeds": targets.study("activation").seeds, "curves": curves}
    _write(targets.job.output / "figure1.png", _draw_curves(curves))
    return result


def _draw_curves(curves: dict[str, dict[str, Any]]) -> Any:
    with without_backend():
        from matplotlib.figure import Figure  # a slow import, which only pictures need

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for family, curve in curves.items():
        epochs = range(1, len(curve["training_errors"]) + 1)
        axes.plot(
            epochs,
            [error / 100 for error in curve["training_errors"]],
            label=curve["variant"],
            color="k",
            marker=".",
            linestyle=_LINES[family],
        )
    axes.axhline(TRAINING_ERROR_GOAL / 100, color="0.7", linewidth=0.8)
    axes.set(xlabel="epochs", ylabel="training error rate", ylim=(0, None), xlim=(0, None))
    axes.legend(frameon=False)
    return figure


def data_set_size(targets: Targets) -> dict[str, Any] | None:
    """Draw the errors of the network and of hand-crafted features over the number of images; None without these."""
    if not targets.baselines:
        return None
    record = json.loads((targets.study("dataset-size").result / RECORD).read_bytes())
    lines: dict[str, list[dict[str, Any]]] = {"the network": [], "SIFT + Fisher vectors": []}
    for row in record["rows"]:
        if row["options"].get("fraction", 1.0) not in targets.baselines:
            continue
        baselines = [
            json.loads(step.result.read_bytes()) for step in targets.baselines[row["options"].get("fraction", 1.0)]
        ]
        images = baselines[0]["training_images"]
        for name, runs in (("the network", row["runs"]), ("SIFT + Fisher vectors", baselines)):
            lines[name].append({"images": images, "top1_errors": [run["top1_error"] for run in runs]})
    for line in lines.values():
        line.sort(key=lambda point: point["images"])
    _write(targets.job.output / "dataset-size.png", _draw_sizes(lines))
    return {"lines": lines}


def _draw_sizes(lines: dict[str, list[dict[str, Any]]]) -> Any:
    with without_backend():
        from matplotlib.figure import Figure  # as above

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for (name, line), marker in zip(lines.items(), "os", strict=True):
        points = [(point["images"], point["top1_errors"]) for point in line if point["top1_errors"]]
        sizes = [images for images, _ in points]
        means = [statistics.fmean(errors) for _, errors in points]
        spreads = [statistics.stdev(errors) if len(errors) > 1 else 0.0 for _, errors in points]
        axes.errorbar(sizes, means, spreads, marker=marker, capsize=4, label=name)
    axes.set(xscale="log", xlabel="training images", ylabel="top-1 error (%)", ylim=(0, None))
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set_title(STUDIES["dataset-size"].question, fontsize=11)
    axes.legend()
    return figure


def _write(path: Path, figure: Any) -> None:
    """Write a figure as PNG and as SVG."""
    save_figure(figure, path)
    save_figure(figure, path.with_suffix(".svg"))


def as_svg(picture: Path, title: str) -> str:
    """An SVG file that holds a PNG file as it is, with sharp pixels: kernels are made of pixels."""
    width, height = _size_of_png(picture.read_bytes())
    content = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"><title>{title}</title>'
        f'<image width="{width}" height="{height}" style="image-rendering: pixelated" '
        f'href="data:image/png;base64,{content}"/></svg>\n'
    )


def _size_of_png(content: bytes) -> tuple[int, int]:
    return int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
