"""bench/faults.py: a few faults of each kind, and that it notices what it looks for."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fault_injection import comparison, flips
from fault_injection.record import Fault, Log
from safetensors.torch import save_file

from tests.bench.conftest import BENCH


def test_a_few_kills_and_flips(tmp_path: Path) -> None:
    """In a process of its own, which forks before it has any threads."""
    command = [sys.executable, str(BENCH / "faults.py"), "--kills", "3", "--flips", "5", "--fills", "0", "--seed", "2"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(BENCH.parent)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (path,) = tmp_path.glob("*/faults.json")
    record = json.loads(path.read_text())
    assert record["settings"]["kills"] >= 3
    assert record["settings"]["flips"] == 5
    assert record["settings"]["survived"] == sum(row["tried"] for row in record["rows"])
    assert not list((tmp_path / "work").glob("scratch-*"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The files of a run, without their right contents."""
    checkpoint = tmp_path / "run" / "checkpoints" / "0001-00000003"
    checkpoint.mkdir(parents=True)
    for name in ("model", "trainer"):
        progress = {"progress": json.dumps({"step": 3, "seconds": random.random()})}
        save_file({"conv1.bias": torch.zeros(3)}, checkpoint / f"{name}.safetensors", metadata=progress)
    for name in ("last", "best"):
        shutil.copyfile(checkpoint / "model.safetensors", tmp_path / "run" / f"{name}.safetensors")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"seed": 3, "output": str(tmp_path)}))
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 1.0, "images_per_second": 7.0}))
    return tmp_path / "run"


def test_times_and_places_make_no_difference(run: Path) -> None:
    before = comparison.trained(run)
    progress = {"progress": json.dumps({"step": 3, "seconds": 5.0})}
    save_file({"conv1.bias": torch.zeros(3)}, run / "checkpoints/0001-00000003/trainer.safetensors", metadata=progress)
    (run / "config.json").write_text(json.dumps({"seed": 3, "output": "elsewhere"}))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 1.0, "images_per_second": 8.0}))
    (run / "curve.png").touch()
    (run / "conv1.png").touch()
    assert comparison.differences(comparison.trained(run), before) == []


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda run: flip_last_bit(run / "best.safetensors"), ["best.safetensors"]),
        (
            lambda run: flip_last_bit(run / "checkpoints" / "0001-00000003" / "trainer.safetensors"),
            ["checkpoint trainer.safetensors"],
        ),
        (lambda run: (run / "config.json").write_text('{"seed": 4}'), ["config.json"]),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}'), ["metrics"]),
        (
            lambda run: (run / "last.safetensors").unlink(),
            ["files", "last.safetensors", "last.safetensors: header"],
        ),
    ],
)
def test_differences_are_seen(run: Path, damage, names: list[str]) -> None:
    before = comparison.trained(run)
    damage(run)
    assert comparison.differences(comparison.trained(run), before) == names


def flip_last_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("code", "output", "outcome"),
    [
        (2, "error: run/model.safetensors is damaged: ...", "survived"),
        (2, "error: something is damaged", "unnamed"),
        (2, "error: run/other-model.safetensors is damaged", "unnamed"),
        (1, "error: run/model.safetensors is damaged", "unnamed"),
        (2, "Traceback ...\nerror: run/model.safetensors is damaged", "unnamed"),
        (-11, "", "unnamed"),
    ],
)
def test_damage_must_be_named_in_one_line(code: int, output: str, outcome: str) -> None:
    assert flips.judge(code, output, ["model.safetensors"]) == outcome


def test_a_flip_changes_one_bit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))
    position, bit = flips.flip(path, random.Random(1))
    data = path.read_bytes()
    assert (len(data), data[position], sum(data)) == (10_000, 1 << bit, 1 << bit)


def test_a_log_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    log = Log(tmp_path / "faults.jsonl")
    log.add([Fault("kill", 4, "training", "kill 1", "survived"), Fault("kill", 4, "training", "kill 2", "lost")])
    with log.path.open("a") as file:
        file.write('{"kind": "kill", "se')
    again = Log(log.path)
    assert (again.count("kill"), again.next_seed("kill"), again.next_seed("flip")) == (2, 5, 0)
    again.add([Fault("flip", 0, "check", "a bit", "survived", "found")])
    assert len(Log(log.path).faults) == 3
    assert [fault.how for fault in Log(log.path).failures] == ["kill 2"]
