"""The small run from its beginning to its end, trained once for all tests that compare with it."""

from pathlib import Path

import pytest

from fastalex.parallel.world import World
from fastalex.training.config import RunConfig
from fastalex.training.trainer import train
from tests.fastalex.conftest import CPU, small_run


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The run of the fixture `config`, trained in one go. Tests only read it."""
    config = small_run(prepared, tmp_path_factory.mktemp("undisturbed") / "run")
    train(World(0, 1, CPU), config)
    return config
