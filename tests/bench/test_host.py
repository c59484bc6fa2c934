"""bench/host.py: both ways from a call to its launches are taken, and nothing is launched."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import host
import pytest
from harness.timing import HostClock
from host_time.calls import Call

import kernels
from tests.bench.conftest import BENCH

# Kernels of a process with Triton's interpreter are other objects, which the benchmark refuses.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
ENVIRONMENT["PYTHONPATH"] = os.pathsep.join([str(BENCH), str(BENCH.parent)])


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python on a checkout's benchmarks."""
    return subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT | variables, capture_output=True, text=True, timeout=300
    )


def test_every_operator_and_the_step_are_timed_both_ways(tmp_path: Path) -> None:
    done = run(str(BENCH / "host.py"), "--seconds-per-timing", "1e-6", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/host.json")
    record = json.loads(path.read_text())
    assert record["settings"]["processor"] in done.stdout
    rows = record["rows"]
    operators = set(kernels.__all__) - {"GradientSink", "nn", "philox", "replace_modules", "using"}
    assert {row["op"] for row in rows} == operators | {"training step"}
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    for direct, custom in pairs:
        assert (direct["provider"], custom["provider"]) == ("direct", "custom operator")
        assert (direct["op"], direct["direction"]) == (custom["op"], custom["direction"])
        ratios = [above / below for above, below in zip(custom["round_us"], direct["round_us"], strict=True)]
        assert direct["speed_to_custom"] == pytest.approx(statistics.median(ratios), rel=0.01)
        assert direct["us_p20"] <= direct["us_p50"] <= direct["us_p80"]
        # One operator forward and one backward; the step has dozens.
        called = {"forward": 1, "both": 2}[direct["direction"]]
        assert direct["operators_called"] == called or (direct["op"] == "training step" and called > 1)
    lines = done.stdout.splitlines()
    assert "…" not in done.stdout
    table = lines[next(n for n, line in enumerate(lines) if line.startswith("Host time")) : -len(operators) - 2]
    assert max(map(len, table)) <= 100
    assert all(" µs of host time, " in line and line.endswith(" as fast") for line in lines[-len(operators) - 1 :])


PROGRAM = """
import torch
from torch._library.custom_ops import CustomOpDef
from host_time import calls, ways
from kernels import dispatch
from kernels.autograd import Operator

custom = []
original = CustomOpDef.__call__
CustomOpDef.__call__ = lambda self, *args: custom.append(self._name) or original(self, *args)
with ways.nothing_launched():
    made = [*calls.operator_calls(), calls.training_step()]
    for call in made:
        found = []
        for way in ("custom operator", "direct"):
            custom.clear()
            ways.take(way)
            call.work()
            found.append(len(custom))
        assert found == [ways.count_calls(call.work), 0], (call.op, call.direction, found)
    ways.take("custom operator")
assert Operator.__call__ is ways.WAYS["direct"]  # also after a block that ended on the other way
assert calls.STEP == made[-1].op
assert dispatch.implementation_for(torch.ones(1)) != "triton"
print(len(made))
"""


def test_the_ways_differ_in_the_custom_operator_and_end_with_the_block() -> None:
    done = run("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 10


def test_interpreted_kernels_are_refused_in_one_line(tmp_path: Path) -> None:
    done = run(str(BENCH / "host.py"), "--output", str(tmp_path), TRITON_INTERPRET="1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: TRITON_INTERPRET is set, and interpreted kernels take all of the time; unset it"
    ]
    assert not list(tmp_path.iterdir())


def test_a_clock_reads_after_the_preparation_and_after_the_work() -> None:
    happened: list[object] = []
    readings = iter([2.0, 2.25])

    def now() -> float:
        happened.append("now")
        return next(readings)

    assert HostClock(now).time(lambda: happened.append("prepared"), lambda _: happened.append("worked")) == 250
    assert happened == ["prepared", "now", "worked", "now"]


def test_host_time_is_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for other processes is no work of the host."""
    clocks = []
    monkeypatch.setattr(host, "take_turns", lambda contenders, seconds, clock: clocks.append(clock))
    with pytest.raises(statistics.StatisticsError):  # there are no times
        host.measure(Call("nothing", "forward", (1,), lambda: None, 1), 0.1)
    assert [clock.now for clock in clocks] == [time.process_time]
