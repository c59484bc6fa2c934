"""Prepare small data sets: in this process, in another one, and in one that is interrupted."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from dataloading import Dataset, prepare_dataset
from tests.dataloading.small_sources import kill, processes_of, started


def quietly(source: Path | str, dest: Path, **options: object) -> Dataset:
    return prepare_dataset(source, dest, **({"workers": 0, "size": 32, "progress": False} | options))


def stored(dataset: Dataset, split: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(dataset.read(split, i)))) for i in range(dataset.count(split))]


def python_script(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


def shard_count(folder: Path) -> int:
    return len(list(folder.glob("*.tar"))) if folder.exists() else 0


def preparing(source: Path, dest: Path, after: int) -> subprocess.Popen[str]:
    """Start preparing and return when `after` shards are finished."""
    process = started("dataloading.prepare", source, dest, "--size", 128, "--shard-images", 14, "--workers", 2)
    deadline = time.monotonic() + 60
    while shard_count(dest.with_name("out.preparing")) < after:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def interrupted(source: Path, dest: Path, after: int, signal_number: int) -> subprocess.Popen[str]:
    """Start preparing and send `signal_number` to the process when `after` shards are finished."""
    process = preparing(source, dest, after)
    if signal_number == signal.SIGKILL:
        kill(process)
    else:
        process.send_signal(signal_number)
    return process


def gone(process: subprocess.Popen[str], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not processes_of(process.pid)
