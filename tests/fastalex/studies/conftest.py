"""A small finished study, and the options that make it."""

import json
import re
from pathlib import Path

import pytest
import torch

from fastalex.options.training import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from fastalex.studies.options import StudyOptions
from fastalex.studies.runs import StudyRun
from fastalex.training.checkpoint import save_checkpoint
from fastalex.training.state import TrainingState
from tests.fastalex.commands import command


def study_of(name: str, data: Path, devices: str = "cpu") -> list[str | Path]:
    """The command line of a small study."""
    return [
        "fastalex.study", name, data, "--width", "0.0625", "--no-lrn", "-b", "8", "--recipe", "small",
        "--devices", devices,
    ]  # fmt: skip


def options(prepared: Path, **training) -> TrainOptions:
    """Training options that the runs of a small study share."""
    return TrainOptions(
        prepared,
        NetworkOptions(width=0.0625),
        RecipeOptions(**{"recipe": "small", "batch_size": 8, "epochs": 2, **training}),
        ParallelOptions(devices="cpu"),
    )


def given(study: str, prepared: Path, folder: Path, **more) -> StudyOptions:
    """The options that :func:`study_of` gives on the command line."""
    network, training = {"width": 0.0625, "lrn": False}, {"recipe": "small", "batch_size": 8, "epochs": 4}
    seeds, devices = more.pop("seeds", 2), more.pop("devices", "cpu")
    network |= {name: more.pop(name) for name in list(more) if name in ("dropout",)}
    return StudyOptions(
        study,
        prepared,
        seeds,
        NetworkOptions(**network),
        RecipeOptions(**training | more),
        ParallelOptions(devices=devices),
        output=folder,
    )


def finish(run: StudyRun, lines: list[dict], *, epoch: int) -> None:
    """Leave a run folder as after so many epochs of 7 seconds together, with these lines in its log."""
    run.folder.mkdir(parents=True)
    run.config.save()
    state = TrainingState(epoch=epoch, step=99, seconds=7.0, errors=[1.0])
    save_checkpoint(run.folder, {"weights": torch.zeros(1)}, {}, state, run.config.network)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(kind: str, epoch: int, top1: float, images: int = 16) -> dict:
    """A line of a run's log."""
    errors = {"top1_error": top1, "top5_error": top1 / 2}
    return {"kind": kind, "epoch": epoch, "step": 1, "loss": 1.0, **errors, "images": images}


@pytest.fixture(scope="session")
def straight(prepared, tmp_path_factory) -> Path:
    """A small study that was not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    code, out, err = command(
        folder, *study_of("dropout", prepared), "--epochs", "4", "--seeds", "2", "--output", "study"
    )
    assert code == 0, err
    assert "2 x 4 epochs" in out
    assert "none" in out
    assert "±" in out
    first, *rest = out.splitlines()
    assert first.startswith("note: width=0.0625: ")
    assert rest[0] == "dropout: 4 of 4 runs to train, in study"
    runs = [f"{variant}, seed-{seed}" for seed in (0, 1) for variant in ("dropout 0.5", "no dropout")]
    for number, (line, name) in enumerate(zip(rest[1:5], runs, strict=True), 1):  # and nothing else of the runs
        assert re.fullmatch(
            rf"dropout, run {number} of 4: {name}: top-1 error \d+\.\d\d % after 4 epochs, \d:\d\d", line
        )
    assert rest[5].startswith("dropout: Without dropout")
    return folder / "study"
