"""Runs whose classes and files have names that would break a careless page, and the report of two of them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataloading
from fastalex.parallel.world import World
from fastalex.reports.options import ReportOptions, resolve, write_report
from tests.fastalex.conftest import save_run

HERE = World(0, 1, torch.device("cpu"))
ODD = ("<", "a&amp;b \"'><i>", "line\nbreak")
"""Names of classes."""

ODD_FILE = "script><img src=x onerror=alert(1)>{{{{1}}}}{}"
"""Name of a file, which ends a script in the folder of the first class."""


def write_metrics(run: Path, errors: tuple[float, ...] = (60.0, 40.0, 50.0), steps: int = 4) -> None:
    """A ``metrics.jsonl`` of finished epochs with these validation errors."""
    lines = []
    for epoch, error in enumerate(errors, 1):
        about = {"epoch": epoch, "top5_error": 0.0, "images": 8, "images_per_second": 16.0}
        for step in range((epoch - 1) * steps + 1, epoch * steps + 1):
            lines.append(about | {"kind": "train", "step": step, "loss": 2 / step, "top1_error": 100 / step})
        lines.append(about | {"kind": "val", "step": epoch * steps, "loss": 1 / epoch, "top1_error": error})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def reportable(folder: Path, data: Path, *, seed: int = 0, with_record: bool = True) -> Path:
    """A run with weights and curves."""
    run = save_run(folder, data, seed=seed, with_record=with_record)
    write_metrics(run)
    return run


@pytest.fixture(scope="session")
def odd_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared data set of 12 training and 9 validation images with odd names, one of which is no valid UTF-8."""
    folder, generator = tmp_path_factory.mktemp("odd"), np.random.default_rng(2)
    for split, count in (("train", 4), ("val", 3)):
        for label, name in enumerate(ODD):
            target = folder / "images" / split / name
            target.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 120, (40, 56, 3), dtype=np.uint8)
                pixels[..., label] += 110
                name_of_file = os.fsencode(ODD_FILE.format(number)) + (b"\xff.jpg" if number == 0 else b".jpg")
                Image.fromarray(pixels).save(target / os.fsdecode(name_of_file), format="jpeg")
    dataloading.prepare_dataset(folder / "images", folder / "odd", progress=False, workers=0)
    return folder / "odd"


@pytest.fixture(scope="session")
def odd_runs(odd_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs on it, one of them in a folder with an odd name."""
    folder = tmp_path_factory.mktemp("runs")
    return reportable(folder / "one", odd_data, seed=1), reportable(folder / "t&w#o <b>", odd_data, seed=2)


@pytest.fixture(scope="session")
def page(odd_runs: tuple[Path, Path]) -> Path:
    """The report of both runs."""
    output = odd_runs[0].parent / "page" / "report.html"
    output.parent.mkdir()
    write_report(HERE, resolve(ReportOptions(odd_runs, output=output, device="cpu", batch_size=8, neighbours=7)))
    return output


@pytest.fixture
def run(prepared: Path, tmp_path: Path) -> Path:
    """A run on images of three colours, with curves."""
    return reportable(tmp_path / "run", prepared, seed=1)
