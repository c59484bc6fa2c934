"""The commands as a user types them: new processes, real files, exit codes and messages."""

import contextlib
import importlib
import io
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastalex import cli
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.metrics_log import read_metrics
from tests.dataloading.damage import copied, overwritten
from tests.dataloading.small_sources import started
from tests.fastalex.conftest import write_images

ROOT = Path(__file__).parents[2]
SMALL = ["--width", "0.0625", "--no-lrn", "-b", "8", "--recipe", "small"]
SECONDS_TO_END = 30


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def command(folder: Path, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, output and error output."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def refused(folder: Path, *arguments: str | Path) -> str:
    """The one line that a refused command prints. It runs in this process: a new one takes seconds to import torch."""
    module, *others = map(str, arguments)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as err:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module, *others])
        with pytest.raises(SystemExit) as ended:
            cli.main(importlib.import_module(module).main)
    return line_of(ended.value.code, err.getvalue())


def line_of(code: object, err: str) -> str:
    """The one line that a refused command printed."""
    assert code == 2, err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, err
    return lines[0]


@pytest.fixture(scope="module")
def finished(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working directory with a finished run over two workers in it, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    code, out, err = command(
        folder, "fastalex.train", class_folders, *SMALL, "--devices", "cpu,cpu", "--epochs", "2", "--output", "run"
    )
    assert code == 0, err
    return folder, out


def test_class_folders_are_prepared_trained_on_and_evaluated(finished, class_folders):
    folder, out = finished
    assert f"preparing {class_folders} into prepared/{class_folders.name}-" in out
    assert "measured milliseconds per step of 8 images" in out
    assert "waiting for data" in out
    assert "trained and evaluated: top-1 error" in out
    assert out.count("add --init scaled") == 1
    lines = read_metrics(folder / "run")
    assert [line["step"] for line in lines if line["kind"] == "val"] == [4, 8]
    recorded = json.loads((folder / "run" / "config.json").read_text())
    assert len(recorded["split"].split(",")) == recorded["stages"] - 1
    assert (recorded["stages"], recorded["schedule"]) in (
        (2, "1f1b"),
        (2, "eager-1f1b"),
        (4, "interleaved"),
        *((stages, "zero-bubble") for stages in range(2, 9)),
    )
    assert recorded["micro_batches"] in (1, 2, 4, 8)
    costs = json.loads((folder / "run" / "costs.json").read_text())
    assert [cost["name"] for cost in costs["blocks"][1]] == [
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "conv5",
        "fc6",
        "fc7",
        "fc8",
    ]
    assert recorded["network"]["classes"] == ["blue", "green", "red"]


def test_plain_lines_and_no_control_codes_where_nobody_looks(finished):
    _, out = finished
    assert "\x1b" not in out
    assert "epoch 1/2  step 4/4  loss" in out
    assert "epoch 2/2  validation: loss" in out


@pytest.mark.parametrize("crops", ["1", "10"])
def test_evaluation_of_a_run(finished, crops):
    folder, _ = finished
    code, out, err = command(
        folder, "fastalex.evaluate", "run", "--crops", crops, "--device", "cpu", "--weights", "last"
    )
    assert code == 0, err
    assert "top-1 error" in out
    if crops == "1":
        last = read_metrics(folder / "run")[-1]
        assert f"{last['top1_error']:.2f} %" in out
        assert f"{last['loss']:.4f}" in out


def test_evaluation_on_other_data_and_of_a_file(finished, class_folders, tmp_path):
    folder, _ = finished
    code, _, err = command(
        folder, "fastalex.evaluate", "run/best.safetensors", class_folders, "--split", "train", "--device", "cpu"
    )
    assert code == 0, err
    other = write_images(tmp_path / "other", train=1, val=1, classes=("cat", "dog"))
    message = refused(folder, "fastalex.evaluate", "run", other, "--device", "cpu")
    assert "has 2 classes that are not the network's 3" in message
    (tmp_path / "alone.safetensors").write_bytes((folder / "run" / "best.safetensors").read_bytes())
    message = refused(tmp_path, "fastalex.evaluate", "alone.safetensors", "--device", "cpu")
    assert "name the data set" in message


def test_a_finished_run_goes_on_with_more_epochs_on_other_devices(finished):
    folder, _ = finished
    before = latest_checkpoint(folder / "run").name
    code, out, err = command(folder, "fastalex.train", "--resume", "run", "--epochs", "3", "--devices", "cpu")
    assert code == 0, err
    assert "at step 8, in epoch 3" in out
    assert "--init scaled" not in out
    assert (before, latest_checkpoint(folder / "run").name) == ("0002-00000008", "0003-00000012")


def test_a_run_is_found_again_from_any_folder(finished, tmp_path):
    folder, _ = finished
    code, _, err = command(tmp_path, "fastalex.evaluate", folder / "run", "--device", "cpu")
    assert code == 0, err


def test_what_a_resumed_run_refuses(finished, tmp_path):
    folder, _ = finished
    for arguments, expected in (
        ((), "run is finished: "),
        (("-a", "caffe"), "holds a checkpoint of another architecture"),
        (("--seed", "5"), "--seed cannot change in a resumed run"),
        (("--output", "elsewhere"), "--output cannot be given with --resume"),
    ):
        message = refused(folder, "fastalex.train", "--resume", "run", *arguments)
        assert expected in message
    other = write_images(tmp_path / "other", train=4, val=1, classes=("cat", "dog"))
    assert "classes that are not the run's" in refused(folder, "fastalex.train", other, "--resume", "run")


def test_an_existing_folder_is_not_overwritten(finished, prepared):
    folder, _ = finished
    code, out, err = command(folder, "fastalex.train", prepared, "--output", "run", "--devices", "cpu")
    assert line_of(code, err) == err.rstrip("\n")
    assert err == "error: run exists already; choose another --output, or go on with it by --resume run\n"
    assert out == ""


def test_a_run_that_saved_nothing_is_named_as_such(tmp_path, finished, prepared):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((finished[0] / "run" / "config.json").read_text())
    message = refused(tmp_path, "fastalex.train", prepared, "--output", "run/config.json/x", "--devices", "cpu")
    assert message == "error: run/config.json/x: Not a directory"
    message = refused(tmp_path, "fastalex.train", prepared, "--output", "run", "--devices", "cpu")
    assert message.endswith("or remove it: its run was stopped before it saved anything (rm -r run)")


def test_ctrl_c_while_modules_are_imported_prints_no_traceback():
    process = started("fastalex.train", "--help")
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == -signal.SIGINT
    assert err == ""


def damaged(prepared: Path, folder: Path) -> Path:
    """A prepared data set with a shard cut short."""
    for path in prepared.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    shard = next(folder.glob("train-*.tar"))
    shard.write_bytes(shard.read_bytes()[:-2048])
    return folder


def test_data_that_cannot_be_trained_on(tmp_path, prepared):
    for name in ("empty", "unequal", "damaged", "unfinished", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "config.json").touch()
    write_images(tmp_path / "unequal", train=1, val=1, classes=("cat", "dog"))
    (tmp_path / "unequal" / "val" / "dog").rename(tmp_path / "unequal" / "val" / "bird")
    damaged(prepared, tmp_path / "damaged")
    for path in prepared.iterdir():
        (tmp_path / "unfinished" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "unfinished" / "dataset.json").write_text('{"format": ')
    for name, expected in {
        "nowhere": "no such folder: nowhere",
        "run": "run is a run folder, not a data set",
        "empty": "empty",
        "unequal": "bird",
        "damaged": "damaged",
        "unfinished": "unfinished",
    }.items():
        assert expected in refused(tmp_path, "fastalex.train", name, "--devices", "cpu"), name
    assert not (tmp_path / "runs").exists()


def test_a_damaged_image_can_be_skipped(tmp_path, prepared):
    overwritten(copied(prepared, tmp_path / "data"), "train", 13, b"?")
    arguments = ["data", *SMALL, "--epochs", "1", "--devices", "cpu", "--output", "run", "--on-bad-sample", "skip"]
    code, out, err = command(tmp_path, "fastalex.train", *arguments)
    assert code == 0, err
    assert re.search(r"replaced by sample \d+: sample 13 of train", err)
    assert "1 of train, 0 of val: others of their class took their place" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--devices", "7"), "device 7 does not exist"),
        (("--devices", ",".join(["cpu"] * 9)), "9 stages for 8 blocks"),
        (("--devices", "cpu,cpu,cpu", "--stages", "2"), "2 stages do not divide 3 devices; choose --stages from 1, 3"),
        (("--devices", "cpu,cpu", "--stages", "1", "-b", "9"), "2 replicas do not divide a batch of 9"),
        (("--devices", "cpu,cpu", "--split", "conv9"), "--split names 'conv9'"),
        (("--devices", "cpu,cpu", "-b", "9", "--micro-batches", "2"), "2 micro-batches do not divide a batch of 9"),
        (("--devices", "cpu", "-b", "64"), "has 32 training images, fewer than one batch of 64"),
        (("--devices", "cpu", "--without", "conv9"), "no conv layer 'conv9'"),
        (("--devices", "cpu", "--epochs", "0"), "epochs is 0"),
        (("--devices", "cpu", "--micro-batches", "0"), "--micro-batches is 0"),
        (("--devices", "cpu", "--seed", "-1"), "--seed is -1"),
        (("--devices", "cpu", "--hardware-decoder-load", "2"), "--hardware-decoder-load is 2; 0 to 1 is wanted"),
    ],
)
def test_options_that_do_not_fit(tmp_path, prepared, arguments, expected):
    assert expected in refused(tmp_path, "fastalex.train", prepared, *arguments)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ("fastest", "FASTALEX_KERNELS must be one of triton, native, reference, not 'fastest'"),
        ("triton", "the Triton kernels were chosen, but do not run on cpu"),
    ],
)
def test_kernels_that_do_not_run_are_refused(tmp_path, monkeypatch, chosen, expected):
    monkeypatch.setenv("FASTALEX_KERNELS", chosen)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, _, err = command(tmp_path, "fastalex.train", "synthetic", "--devices", "cpu,cpu")
    assert expected in line_of(code, err)


def test_help_names_every_option_in_groups(tmp_path):
    code, out, _ = command(tmp_path, "fastalex.train", "--help")
    assert code == 0
    options = (
        "[DATA] -a --arch --width --lrn --overlapping --activation --dropout --without --conv6 --recipe --epochs -b "
        "--batch-size --lr --momentum --wd --weight-decay --scale-lr --warmup-epochs --lars --crops-shared-by --seed "
        "--set --init-from --bottleneck --init --random-crops --flip --color-noise --fraction --devices --stages "
        "--replicas --split --micro-batches --schedule --precision --max-restarts --cuda-graphs --on-non-finite "
        "--on-bad-sample --hardware-decoder-load --resume --output"
    )
    assert set(options.split()) - set(re.split(r"[\s,]+", out)) == set()
    for group in ("network", "training", "machine", "reading"):
        assert group in out


COMMANDS = ["train", "evaluate", "features", "plan", "study", "baseline"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_a_mistake_in_one_line_and_has_no_empty_default(tmp_path, monkeypatch, capsys, name):
    assert "error: there is no option --zebra" in refused(tmp_path, f"fastalex.{name}", "--zebra")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"fastalex.{name}").main()
    text = capsys.readouterr().out
    assert "--help" in text
    assert "(default: )" not in text
    assert "(default: None)" not in text
    assert "{True,False}" not in text


def test_a_choice_that_there_is_not(tmp_path):
    message = refused(tmp_path, "fastalex.train", "--precision", "bf61")
    assert message == "error: --precision is 'bf61'; choose one of bf16, fp32, tf32"


def test_a_bar_on_a_terminal(tmp_path, prepared):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "1", "--devices", "cpu", "--output", "run"]
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=tmp_path, env={**environment(), "TERM": "xterm"}, stdout=theirs)
    os.close(theirs)
    seen = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    assert process.wait(60) == 0
    text = seen.decode()
    assert "\x1b[" in text
    assert "━" in text
    assert "4/4" in text


def wait_for_steps(run: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < steps:
        assert time.monotonic() < deadline, "no steps were made"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Ids of a process's children and theirs."""
    direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*direct, *(grandchild for child in direct for grandchild in children(child))]


def assert_all_end(pids: list[int]) -> None:
    deadline = time.monotonic() + SECONDS_TO_END
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_ctrl_c_leaves_a_run_that_goes_on(tmp_path, prepared, devices):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "500", "--devices", devices, "--output", "run"]
    process = start(tmp_path, *arguments)
    wait_for_steps(tmp_path / "run", 3)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGINT, err
    assert len(err.splitlines()) == 1, err
    assert f"go on with: {sys.executable} -m fastalex.train --resume run" in err
    assert_all_end(workers)
    progress = load_state(latest_checkpoint(tmp_path / "run"))
    assert progress.step >= 3
    epochs = str(progress.epoch + 1)
    code, out, err = command(tmp_path, "fastalex.train", "--resume", "run", "--epochs", epochs, "--devices", "cpu")
    assert code == 0, err
    assert f"at step {progress.step}" in out
    assert read_metrics(tmp_path / "run")[-1]["step"] == 4 * (progress.epoch + 1)


@pytest.mark.parametrize("resumed", [False, True])
def test_an_early_ctrl_c_says_whether_there_is_a_checkpoint(tmp_path, prepared, finished, resumed):
    arguments = [prepared, *SMALL, "--output", "run"]
    if resumed:
        shutil.copytree(finished[0] / "run", tmp_path / "run")
        arguments = ["--resume", "run", "--epochs", "500"]
    process = start(tmp_path, "fastalex.train", *arguments, "--devices", "cpu,cpu")
    deadline = time.monotonic() + 120
    while sum("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in children(process.pid)) < 2:
        assert time.monotonic() < deadline, "no workers were started"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # the workers still import torch
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGINT
    way_on = f"go on with: {sys.executable} -m fastalex.train --resume run"
    assert (
        err == f"interrupted; {way_on if resumed else 'the run has no checkpoint yet: remove run and start it anew'}\n"
    )


def kill_a_worker(process: subprocess.Popen) -> list[int]:
    """Kill one, and return the ids of all processes that the command has started."""
    everyone = children(process.pid)
    os.kill(max(pid for pid in everyone if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()), signal.SIGKILL)
    return everyone


def test_killed_workers_are_restarted_from_the_checkpoint_and_then_end_the_command(tmp_path, prepared):
    arguments = ["fastalex.train", prepared, *SMALL, "--epochs", "500", "--devices", "cpu,cpu", "--output", "run"]
    process = start(tmp_path, *arguments, "--max-restarts", "1")
    wait_for_steps(tmp_path / "run", 6)
    decided = (tmp_path / "run" / "config.json").read_text()
    started = kill_a_worker(process)
    assert_all_end([pid for pid in started if pid not in children(process.pid)])
    checkpoint = load_state(latest_checkpoint(tmp_path / "run"))
    assert checkpoint.step >= 4  # the last epoch's end
    deadline = time.monotonic() + 60
    while load_state(latest_checkpoint(tmp_path / "run")).step < checkpoint.step + 4:
        assert time.monotonic() < deadline, "the run does not go on"
        time.sleep(0.05)
    restarted = kill_a_worker(process)
    _, err = process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 1
    said = [line for line in err.splitlines() if not line.startswith("[")]  # torch's log of a lost connection does
    assert len(said) == 2, err
    first, last = said
    assert re.match(r"worker [01] \(cpu\) was killed by SIGKILL; restarting from the last checkpoint \(1 of 1\)", first)
    assert re.match(r"error: worker [01] \(cpu\) was killed by SIGKILL", last)
    assert_all_end(restarted)
    steps = [line["step"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1))
    assert (tmp_path / "run" / "config.json").read_text() == decided


def test_torchrun_starts_the_workers_instead(tmp_path, prepared):
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    training = ["-m", "fastalex.train", prepared, *SMALL, "--epochs", "1", "--output", "run"]
    cut = ["--split", "conv3", "--micro-batches", "2"]
    code, out, err = command(tmp_path, *torchrun, "localhost:0", *training, "--devices", "cpu,cpu", *cut)
    assert code == 0, err
    assert "multiply-accumulates of a training step by stage, counted" in out
    assert out.count("trained and evaluated") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 4
    resume = ["-m", "fastalex.train", "--resume", "run", "--epochs", "2"]  # and without naming devices
    code, _, err = command(tmp_path, *torchrun, "localhost:0", *resume)
    assert code == 0, err
    assert [line["step"] for line in read_metrics(tmp_path / "run")][-1] == 8
    code, _, err = command(tmp_path, *torchrun, "localhost:0", *training, "--devices", "cpu,cpu,cpu")
    assert code != 0
    assert err.count("error: torchrun started 2 workers for 3 devices") == 1


def test_two_machines_make_the_same_run_as_one_device(tmp_path, prepared):
    """Two torchrun agents on this machine's loopback, each with two workers: two replicas of two stages."""
    training = ["fastalex.train", prepared, *SMALL, "--epochs", "1", "--scale-lr", "--lars", "0.01", "--output"]
    code, _, err = command(tmp_path, *training, "alone", "--devices", "cpu")
    assert code == 0, err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        start(
            tmp_path, "torch.distributed.run", "--nnodes", "2", "--node-rank", node, "--nproc-per-node", "2",
            "--master-addr", "127.0.0.1", "--master-port", port, "-m", *training, "together", "--stages", "2",
        )
        for node in (0, 1)
    ]  # fmt: skip
    said = [agent.communicate(timeout=180) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "2, each of 4 images a step, on 2 machines" in said[0][0]
    alone, together = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "together")
    for expected, line in zip(alone, together, strict=True):
        for name in ("kind", "step", "images", "top1_error", "top5_error"):
            assert line[name] == expected[name]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # sums over the batch in another order


def test_a_machine_that_cannot_take_part_ends_the_others(tmp_path, prepared):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        start(
            tmp_path, "torch.distributed.run", "--nnodes", "2", "--node-rank", node, "--nproc-per-node", "1",
            "--master-addr", "127.0.0.1", "--master-port", port, "-m", "fastalex.train", prepared, *SMALL,
            "--devices", device,
        )
        for node, device in ((0, "cpu"), (1, "7"))
    ]  # fmt: skip
    for agent in agents:
        _, err = agent.communicate(timeout=120)
        assert agent.returncode != 0
        assert err.count("error: device 7 does not exist") == 1, err


def test_synthetic_images_need_no_files(tmp_path):
    arguments = ["synthetic", "--width", "0.0625", "--no-lrn", "-b", "640", "--epochs", "1", "--devices", "cpu"]
    process = start(tmp_path, "fastalex.train", *arguments, "--micro-batches", "20", "--output", "run")
    wait_for_steps(tmp_path / "run", 1)
    process.terminate()
    process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGTERM
    assert read_metrics(tmp_path / "run")[0]["images"] == 640
    assert not (tmp_path / "prepared").exists()


def test_the_loader_feeds_the_architecture_its_own_size(tmp_path, prepared):
    arguments = [*SMALL, "-a", "caffe", "--epochs", "1", "--devices", "cpu", "--output", "run"]
    code, _, err = command(tmp_path, "fastalex.train", prepared, *arguments)
    assert code == 0, err
    assert torch.isfinite(torch.tensor(read_metrics(tmp_path / "run")[-1]["loss"]))
