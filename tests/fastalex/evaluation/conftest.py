"""Runs of untrained networks to evaluate."""

from pathlib import Path

import pytest
import torch

from fastalex.evaluation.ensemble import EvaluationResult, evaluate
from fastalex.evaluation.options import EvaluateOptions, resolve
from fastalex.parallel.world import World
from tests.fastalex.conftest import save_run

HERE = World(0, 1, torch.device("cpu"))


def result_of(*runs: Path, data: Path | None = None, **options: object) -> EvaluationResult:
    """The result of an evaluation in this process."""
    paths = (*runs, *((data,) if data else ()))
    job = resolve(EvaluateOptions(paths, devices="cpu", batch_size=4, **options))
    result = evaluate(HERE, job.evaluation)
    assert result is not None
    return result


@pytest.fixture(scope="session")
def runs(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs with different weights."""
    folder = tmp_path_factory.mktemp("runs")
    return save_run(folder / "one", prepared, seed=1), save_run(folder / "two", prepared, seed=2)


@pytest.fixture(scope="session")
def runs_of_two_sizes(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs whose networks take crops of different sizes."""
    folder = tmp_path_factory.mktemp("runs")
    return save_run(folder / "one", prepared), save_run(folder / "two", prepared, architecture="caffe")
