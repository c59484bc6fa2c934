"""`make gpu` without a GPU: its plan, its child processes, its report, and the table of claims."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import harness
import pytest
from gpu_check import claims, report
from gpu_check.outcome import Outcome
from gpu_check.plan import PARTS, RESERVE, ROOT, TOTAL, Job, plan, pytest_command

from tests.bench.conftest import BENCH

DEVICE = "Test GPU"

# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_has_all_parts_in_order_within_nine_minutes() -> None:
    jobs = plan()
    assert tuple(dict.fromkeys(job.part for job in jobs)) == PARTS
    assert [PARTS.index(job.part) for job in jobs] == sorted(PARTS.index(job.part) for job in jobs)
    assert sum(job.seconds for job in jobs) + RESERVE <= TOTAL == 540
    assert all((job.seconds > 0) == (job.spare is None) for job in jobs)
    assert len({(job.part, job.name) for job in jobs}) == len(jobs)
    # Compilation has no time of its own, and our step is measured before.
    names = [job.name for job in jobs if job.part == "step"]
    assert names == ["train_step", "train_step-compile"]
    assert next(job for job in jobs if job.name == names[1]).spare is not None


def test_the_plan_names_files_that_exist_and_every_operator_test() -> None:
    words = [word for job in plan() for word in job.command if word.endswith(".py")]
    assert all((ROOT / word).exists() for word in words)
    tests = {path.name for path in (ROOT / "tests" / "kernels").glob("test_*.py")}
    assert tests - {Path(word).name for word in words} == {"test_compiled.py"}  # which needs no GPU
    assert {"lrn", "max_pool", "fusions", "dropout", "cross_entropy", "sgd"} <= {Path(word).stem for word in words}
    assert not any("--tune" in job.command for job in plan())
    records = [job.record for job in plan() if job.record]
    assert len(set(records)) == len(records)
    assert all(record.startswith("gpu-") for record in records)  # a record with all sizes is never replaced


@pytest.mark.parametrize("only", [[part] for part in PARTS] + [["loader", "tests"]])
def test_chosen_parts_keep_their_order_and_share_the_time(only: list[str]) -> None:
    jobs = plan(only)
    assert list(dict.fromkeys(job.part for job in jobs)) == sorted(only, key=PARTS.index)
    whole = {(job.part, job.name): job.seconds for job in plan()}
    assert all(job.seconds >= whole[job.part, job.name] for job in jobs)
    assert TOTAL - RESERVE - len(jobs) <= sum(job.seconds for job in jobs) <= TOTAL - RESERVE


def test_a_step_has_the_rest_of_its_time_to_be_ready() -> None:
    job = next(job for job in plan() if job.name == "train_step")
    command = job.command_for(100.4)
    assert command[command.index("--ready") + 1] == "70"


# --- the command line -------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_without_dali_and_tyro() -> None:
    program = """
import sys
sys.modules |= dict.fromkeys(("tyro", "nvidia.dali"))  # importing them fails
sys.path.append(sys.argv.pop(1))
import gpu
gpu.main()
"""
    command = [sys.executable, "-c", program, str(BENCH), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for job in plan():
        assert f"{job.part}: {job.name}, " in done.stdout
        assert job.command[-1] in done.stdout
    (total,) = re.findall(rf"report (\d+) s of {TOTAL}", done.stdout)
    assert int(total) == sum(job.seconds for job in plan()) + RESERVE <= TOTAL


def test_without_a_gpu_there_is_one_line_and_exit_code_2(monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness, "CUDA", False)
    with pytest.raises(SystemExit) as exit_info:
        gpu.main(["--only", "conv"])
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"error: this check needs an NVIDIA GPU, and torch \S+ finds none; --dry-run .*\n", err)


def test_an_unknown_part_is_named(capsys) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "conv,stop", "--dry-run"])
    message = "argument --only: no part is called 'stop'; choose from tests,operators,conv,step,loader"
    assert message in capsys.readouterr().err


# --- running jobs -----------------------------------------------------------------------------------------------------


def benchmark(name: str, seconds: int, program: str, *arguments: str, **options) -> Job:
    """A job that runs a program instead of a benchmark."""
    command = (sys.executable, "-c", program, *arguments)
    return Job("operators", name, seconds, command, f"gpu-{name}", name, **options)


def run(jobs: list[Job], folder: Path) -> list[Outcome]:
    """Run jobs; records and logs are in the folder."""
    outcomes: list[Outcome] = []
    gpu.run_jobs(jobs, folder / "logs", folder, report.make_console(), outcomes)
    return outcomes


def writes(rows: list[dict], path: Path) -> tuple[str, str, str]:
    """A program that writes a record, and its arguments."""
    return "import sys; open(sys.argv[1], 'w').write(sys.argv[2])", str(path), json.dumps({"rows": rows})


def row(provider: str = "ours", ms: float | None = 0.5, **others) -> dict:
    """A row of an operator's record."""
    shape = {"op": "norm", "shape": [128, 96, 55, 55], "dtype": "bfloat16", "direction": "both"}
    return shape | {"provider": provider, "ms_p50": ms} | others


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and bool(path.read_bytes())


HANGS = """
import pathlib, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleep, start_new_session=new) for new in (False, True)]
print("ready to hang")
pathlib.Path(sys.argv[1]).write_text(" ".join(str(child.pid) for child in children))
time.sleep(600)
"""


def test_a_job_that_hangs_is_killed_with_its_children_and_the_others_run(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    jobs = [
        benchmark("before", 10, *writes([row()], tmp_path / "gpu-before.json")),
        benchmark("hangs", 2, HANGS, str(pids)),
        benchmark("after", 20, *writes([row()], tmp_path / "gpu-after.json")),
    ]
    before, hangs, after = run(jobs, tmp_path)
    assert (before.state, after.state) == ("passed", "passed")
    assert before.rows == after.rows == [row()]
    assert (hangs.state, hangs.reason) == ("out of time", "killed; its last line: ready to hang")
    assert "out of time; killed; its last line: ready to hang" in report.describe(hangs)
    assert hangs.limit_seconds - 0.5 <= hangs.seconds <= hangs.limit_seconds + 10
    children = [int(pid) for pid in pids.read_text().split()]
    assert len(children) == 2
    end = time.monotonic() + 10
    while any(map(is_alive, children)):
        assert time.monotonic() < end, f"one of {children} outlives its job"
        time.sleep(0.05)


def test_time_that_a_job_saves_goes_to_later_ones(tmp_path: Path) -> None:
    nothing = writes([row()], tmp_path / "gpu-any.json")
    jobs = [
        benchmark("first", 50, *nothing),
        benchmark("optional", 0, *nothing, spare=(10, 20)),
        benchmark("starved", 0, *nothing, spare=(500, 600)),
        benchmark("last", 5, *nothing),
    ]
    first, optional, starved, last = run(jobs, tmp_path)
    assert first.limit_seconds == 50
    assert optional.limit_seconds == 20
    assert last.limit_seconds > 40
    assert starved.state == "skipped"
    assert re.fullmatch(r"needs 500 s, \d+ s are left", starved.reason or "")


def test_a_job_that_needs_a_missing_package_is_skipped_with_its_name(tmp_path: Path) -> None:
    (outcome,) = run([benchmark("loader", 5, "raise SystemExit(1)", needs=("json", "no_such.package"))], tmp_path)
    assert report.describe(outcome) == "skipped; no_such.package is not installed"


def test_our_wrong_rows_fail_a_benchmark_and_those_of_others_do_not(tmp_path: Path) -> None:
    mine, others = row(ms=None, wrong="result is off by 1"), row("torch eager", ms=None, wrong="out of memory")
    jobs = [
        benchmark("mine", 20, *writes([mine, others], tmp_path / "gpu-mine.json")),
        benchmark("others", 20, *writes([row(), others], tmp_path / "gpu-others.json")),
        benchmark("breaks", 20, "print('start'); raise ValueError('no such kernel')"),
        benchmark("silent", 20, "pass"),
        benchmark("crashes", 20, "import os; print('start', flush=True); os.abort()"),
    ]
    found = run(jobs, tmp_path)
    assert [outcome.state for outcome in found] == ["failed", "passed", "failed", "failed", "failed"]
    assert found[0].failures == [("norm 128x96x55x55 both ours", "result is off by 1")]
    assert found[1].counts == {"rows": 2, "wrong": 1}
    assert [outcome.reason for outcome in found[2:]] == [
        "ValueError: no such kernel",
        "it wrote no record",
        "ended by signal 6; its last line: start",
    ]


TESTS = """
import time, pytest

def test_right(): pass

@pytest.mark.parametrize("value", [3, 4])
def test_equal(value): assert value == 3, "values differ"

@pytest.mark.skip
def test_skipped(): pass

@pytest.fixture
def broken(): raise RuntimeError("CUDA error\\ndetails\\nlaunch failed")

def test_setup(broken): pass
"""


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_failing_tests_are_named_with_their_errors(tmp_path: Path, options: tuple[str, ...], capsys) -> None:
    file = tmp_path / "test_tiny.py"
    file.write_text(TESTS)
    job = Job("tests", "tiny", 120, (*pytest_command(parallel=False), str(file), *options))
    (outcome,) = run([job], tmp_path)
    assert outcome.state == "failed"
    assert outcome.counts == {"passed": 2, "failed": 2, "skipped": 1, "running": 0}
    errors = {test.rpartition("::")[2]: error for test, error in outcome.failures}
    assert set(errors) == {"test_equal[4]", "test_setup"}
    assert errors["test_equal[4]"].startswith("AssertionError: values differ")
    assert errors["test_setup"] == "RuntimeError: CUDA error ... launch failed"
    report.print_report(report.make_console(), [outcome], [])
    printed = capsys.readouterr().out
    assert all(test in printed for test in errors)
    assert "tiny: RuntimeError: CUDA error ... launch failed" in printed


def test_a_killed_test_run_keeps_the_outcomes_before(tmp_path: Path) -> None:
    file = tmp_path / "test_slow.py"
    file.write_text("import time\ndef test_fast(): pass\ndef test_slow(): time.sleep(600)\n")
    (outcome,) = run([Job("tests", "slow", 15, (*pytest_command(parallel=False), str(file)))], tmp_path)
    assert outcome.state == "out of time"
    assert outcome.counts == {"passed": 1, "failed": 0, "skipped": 0, "running": 1}
    assert (outcome.reason or "").endswith("test_slow.py::test_slow")


def test_tests_that_crash_or_cannot_be_imported_or_found_fail(tmp_path: Path) -> None:
    file = tmp_path / "test_import.py"
    file.write_text("import no_such_package\n")
    crash = tmp_path / "test_crash.py"
    crash.write_text("import os\ndef test_abort(): os.abort()\n")
    jobs = [
        Job("tests", "crash", 60, (*pytest_command(parallel=False), "-p", "no:faulthandler", str(crash))),
        Job("tests", "import", 60, (*pytest_command(parallel=False), str(file))),
        Job("tests", "missing", 60, (*pytest_command(parallel=False), str(tmp_path / "test_none.py"))),
    ]
    crashed, broken, missing = run(jobs, tmp_path)
    assert [outcome.state for outcome in (crashed, broken, missing)] == ["failed"] * 3
    assert re.fullmatch(r"ended by signal 6 while it ran .*test_crash.py::test_abort", crashed.reason or "")
    assert "No module named 'no_such_package'" in broken.failures[0][1]
    assert missing.reason


# --- the report and the record ----------------------------------------------------------------------------------------


def write_claims(results: Path, folder: str, device: str, **records: list[dict]) -> None:
    """Write committed records of a device."""
    (results / folder).mkdir(parents=True, exist_ok=True)
    for name, rows in records.items():
        record = {"device": device, "date": "2026-01-02T03:04:05+00:00", "rows": rows}
        (results / folder / f"{name}.json").write_text(json.dumps(record))


def step(variant: str, speed: float | None, precision: str = "bf16") -> dict:
    """A row of a training step's record."""
    named = {"architecture": "krizhevsky", "batch": 128, "variant": variant, "precision": precision}
    return named | {"ms_p50": None if speed is None else 1e3 * 128 / speed, "images_per_second": speed}


def test_the_table_compares_with_the_records_of_this_device_first(tmp_path: Path) -> None:
    wide, half = row(shape=[128, 256, 27, 27], ms=0.8), row(dtype="float32", ms=9.0)
    write_claims(tmp_path, "nvidia-h100", "NVIDIA H100", lrn=[row(ms=0.4), wide, half], train_step=[
        step("ours bf16", 40000), step("ours fp32", 8000, "fp32"), step("compile bf16", 9000)
    ])  # fmt: skip
    write_claims(tmp_path, "nvidia-h200", "NVIDIA H200", lrn=[row(ms=0.3), row("torch eager", ms=4.0)])
    jobs = [Job("operators", "lrn", 10, (), "gpu-lrn", "lrn"), Job("step", "train_step", 10, (), "gpu-s", "train_step")]
    rows = [row(ms=0.2), row("torch eager", ms=2.0), row(op="new", ms=0.1)]
    outcomes = [
        Outcome("operators", "lrn", "passed", rows=rows),
        Outcome("step", "train_step", "passed", rows=[step("ours bf16", 60000), step("eager bf16", 5000)]),
    ]
    found = claims.compare(claims.load(tmp_path, "nvidia-h200", jobs), jobs, outcomes)
    assert [(line.what, line.unit, line.claimed, line.measured, line.ratio, line.device) for line in found] == [
        ("norm 128x96x55x55, ours", "ms", 0.3, 0.2, 1.5, "NVIDIA H200"),
        ("norm 128x256x27x27, ours", "ms", 0.8, None, None, "NVIDIA H100"),
        ("new 128x96x55x55, ours", "ms", None, 0.1, None, None),
        ("batch 128, ours bf16", "images/s", 40000, 60000, 1.5, "NVIDIA H100"),
        ("batch 128, eager bf16", "images/s", None, 5000, None, None),
    ]
    assert {line.date for line in found} == {"2026-01-02", None}


def test_the_committed_records_have_claims_for_all_operators_and_the_step() -> None:
    for folder in ("nvidia-h100-80gb-hbm3", "nvidia-h200", "nvidia-geforce-rtx-4090"):
        found = claims.load(harness.RESULTS, folder, plan())
        assert {"lrn", "max_pool", "fusions", "dropout", "sgd", "conv_relu", "train_step"} <= {
            name for name, _ in found
        }
        lines = claims.compare(found, plan(), [])
        assert all(line.measured is None and line.device is not None for line in lines)
        own = {line.device for line in lines if harness.slug(line.device or "") == folder}
        assert own or folder.endswith("4090")


def test_the_record_has_every_part_and_the_table(tmp_path: Path, capsys) -> None:
    jobs = [
        benchmark("lrn", 20, *writes([row()], tmp_path / "test-gpu" / "gpu-lrn.json")),
        benchmark("max_pool", 20, "raise SystemExit('error: no memory')"),
        Job("loader", "loader", 5, (), "gpu-loader", "loader", needs=("no_such_package",)),
    ]
    (tmp_path / "test-gpu").mkdir()
    options = argparse.Namespace(only=PARTS, output=tmp_path, logs=tmp_path / "logs")
    gpu.check(options, jobs, DEVICE, report.make_console())
    record = json.loads((tmp_path / "test-gpu" / "gpu.json").read_text())
    assert record["device"] == DEVICE
    assert record["settings"]["finished"] is True
    assert [(part["part"], part["state"]) for part in record["rows"]] == [
        ("operators", "failed"),
        ("loader", "skipped"),
    ]
    operators = record["rows"][0]
    assert operators["counts"] == {"rows": 1, "wrong": 0}
    assert [job["reason"] for job in operators["jobs"]] == [None, "error: no memory"]
    assert operators["seconds"] > 0
    assert 0.5 in [line["measured"] for line in record["settings"]["claims"]]
    printed = capsys.readouterr().out
    assert "Claimed and measured here" in printed
    assert "NVIDIA H100 80GB HBM3, 2026-" in printed  # this device has no claims of its own


INTERRUPTED = """
import sys
from pathlib import Path
import gpu, harness
from gpu_check.plan import Job
harness.CUDA, harness.device_name = True, lambda: "Test GPU"
command = (sys.executable, "-c", Path(sys.argv[1]).read_text(), sys.argv[2])
gpu.plan = lambda *_: [Job("conv", "hangs", 600, command, "gpu-hangs", "conv_relu")]
gpu.main(["--only", "conv", "--output", sys.argv[3], "--logs", sys.argv[3]])
"""


def test_an_interrupted_check_kills_its_job_and_writes_its_record(tmp_path: Path) -> None:
    program, pids = tmp_path / "hangs.py", tmp_path / "pids"
    program.write_text(HANGS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCH), str(ROOT)])}
    command = [sys.executable, "-c", INTERRUPTED, str(program), str(pids), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not pids.exists() or not pids.read_text():
            assert time.monotonic() < end, "the job did not start"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 130
    children = [int(pid) for pid in pids.read_text().split()]
    while any(map(is_alive, children)):
        assert time.monotonic() < end, f"one of {children} outlives the check"
        time.sleep(0.05)
    record = json.loads((tmp_path / "test-gpu" / "gpu-only-conv.json").read_text())
    assert record["settings"]["finished"] is False
