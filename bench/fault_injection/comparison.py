"""What a command has made, as values that can be compared: everything but times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dataloading.locks import LOCK

Result = dict[str, Any]
"""Contents by name. Large ones are represented by their SHA-256."""

_METRICS = ("kind", "epoch", "step", "loss", "top1_error", "top5_error", "images", "learning_rate")


def differences(found: Result, expected: Result) -> list[str]:
    """The names whose contents differ, or that only one of the results has."""
    names = sorted(found.keys() | expected.keys())
    return [name for name in names if name not in found or name not in expected or found[name] != expected[name]]


def trained(run: Path) -> Result:
    """The weights, velocities, counters, metrics and configuration of a run, and the names of its files."""
    result: Result = {}
    for name in ("last.safetensors", "best.safetensors"):
        result |= _tensors(run / name, name)
    latest = max(path for path in (run / "checkpoints").iterdir() if path.name[0].isdigit())
    result["checkpoint"] = latest.name
    for path in sorted(latest.iterdir()):
        result |= _tensors(path, f"checkpoint {path.name}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result["metrics"] = [{name: line[name] for name in _METRICS if name in line} for line in lines]
    config = json.loads((run / "config.json").read_text())
    result["config.json"] = {name: value for name, value in config.items() if name not in ("output", "sha256")}
    # Only the end of a run that was not killed draws pictures, and events are as many as there were resumptions.
    others = {path.name for path in run.iterdir() if path.suffix != ".png"}
    result["files"] = sorted(name for name in others if not name.startswith((".", "events.")))
    return result


def prepared(folder: Path) -> Result:
    """The SHA-256 of every file of a prepared data set.

    A kill just before the end leaves the lock's file, which means nothing without the process that held it.
    """
    return {path.name: _sha256(path.read_bytes()) for path in folder.iterdir() if path.name != LOCK}


def predicted(path: Path) -> Result:
    """The arrays in a file of predictions."""
    with np.load(path, allow_pickle=True) as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def _tensors(path: Path, name: str) -> Result:
    """The bytes of a .safetensors file, and its header without sums and times."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    entries = header.get("__metadata__", {})
    entries.pop("sha256", None)
    if "progress" in entries:
        progress = json.loads(entries["progress"])
        entries["progress"] = {key: value for key, value in progress.items() if key != "seconds"}
    return {name: _sha256(data[start:]), f"{name}: header": header}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
