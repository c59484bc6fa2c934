"""What every test needs before anything is imported."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

# Triton reads this when it is imported. Without a GPU its kernels then run in Triton's interpreter, in numpy.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Processes that tests start inherit both: dumps of faulthandler in what they print, and a hangup that nohup ignores.
os.environ.pop("PYTHONFAULTHANDLER", None)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--everything", action="store_true", help="compile every combination in tests/kernels/test_compiled.py"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The file that takes longest comes first, so that parallel workers end at about the same time.

    A single process keeps the order it is given.
    """
    if hasattr(config, "workerinput"):  # of a worker of pytest-xdist
        items.sort(key=lambda item: item.path.name != "test_compiled.py")


@pytest.fixture(scope="session", autouse=True)
def empty_compiler_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What torch.compile left on this machine, perhaps half written by a killed process, is no part of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torchinductor")))
        yield
