"""Commands as a user types them: real files, exit codes and messages."""

import importlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dataloading
from fastalex.__main__ import _COMMANDS
from fastalex.network.weights_record import Origin, load_record
from fastalex.startup import VERSION
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from tests.dataloading.damage import copied, overwritten
from tests.fastalex.commands import (
    SECONDS_TO_END,
    SMALL,
    command,
    command_here,
    environment,
    line_of,
    refused,
    start,
    wait_for_steps,
)
from tests.fastalex.conftest import write_images


@pytest.fixture(scope="module")
def finished(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working directory with a finished run over two workers in it, and what it printed."""
    folder = tmp_path_factory.mktemp("work")
    code, out, err = command(
        folder, "fastalex.train", class_folders, *SMALL, "--precision", "fp32", "--devices", "cpu,cpu", "--epochs", "2",
        "--output", "run",
    )  # fmt: skip
    assert code == 0, err
    return folder, out


def test_class_folders_are_prepared_trained_on_and_evaluated(finished, class_folders):
    folder, out = finished
    assert f"preparing {class_folders} into prepared/{class_folders.name}-" in out
    assert "2 stages: conv1 on cpu (worker 0), conv2 to fc8 on cpu (worker 1); eager-1f1b; 4 micro-batches" in out
    assert "waiting for data" in out
    peaks = re.search(r"^peak memory +(\d+\.\d\d) GB, (\d+\.\d\d) GB by worker$", out, re.MULTILINE)
    assert peaks is not None
    assert min(map(float, peaks.groups())) > 0
    assert "trained and evaluated: top-1 error" in out
    assert out.count("which may not learn; add --init scaled") == 1
    assert len(out.splitlines()) <= 40
    lines = read_metrics(folder / "run")
    assert [line["step"] for line in lines if line["kind"] == "val"] == [4, 8]
    recorded = json.loads((folder / "run" / "config.json").read_text())
    plan = recorded["parallel"]
    assert [stage[0] for stage in plan["split"]] == ["conv1", "conv2"]
    assert re.search(r"^kernels +run/conv1.png$", out, re.MULTILINE)
    assert (plan["devices"], plan["schedule"], plan["micro_batches"]) == (["cpu", "cpu"], "eager-1f1b", 4)
    assert recorded["network"]["classes"] == ["blue", "green", "red"]


def test_plain_lines_and_no_control_codes_where_nobody_looks(finished):
    _, out = finished
    assert "\x1b" not in out
    assert re.search(r"^epoch 1/2  loss .*  val top-1 error .* %  best .* % \(chance 66.67 %\)", out, re.MULTILINE)
    assert out.count("\nepoch ") == 2


@pytest.mark.parametrize("crops", ["1", "10"])
def test_evaluation_of_a_run(finished, crops):
    folder, _ = finished
    code, out, err = command_here(
        folder, "fastalex.evaluate", "run", "--crops", crops, "--device", "cpu", "--weights", "last"
    )
    assert code == 0, err
    assert "% (chance 66.67 %)" in out
    assert "top-5" not in out  # says nothing about three classes
    if crops == "1":
        last = read_metrics(folder / "run")[-1]
        assert f"{last['top1_error']:.2f} %" in out
        assert f"{last['loss']:.4f}" in out


def test_evaluation_on_other_data_and_of_a_file(finished, class_folders, tmp_path):
    folder, _ = finished
    code, _, err = command_here(
        folder, "fastalex.evaluate", "run/best.safetensors", class_folders, "--split", "train", "--device", "cpu"
    )
    assert code == 0, err
    other = write_images(tmp_path / "other", train=1, val=1, classes=("cat", "dog"))
    message = refused(folder, "fastalex.evaluate", "run", other, "--device", "cpu")
    assert "has 2 classes that are not the network's 3" in message
    (tmp_path / "alone.safetensors").write_bytes((folder / "run" / "best.safetensors").read_bytes())
    message = refused(tmp_path, "fastalex.evaluate", "alone.safetensors", "--device", "cpu")
    assert "name the data set" in message


def test_kernels_are_drawn_from_a_run_and_at_its_end(finished, tmp_path):
    folder, _ = finished
    picture, run = tmp_path / "last.png", folder / "run"
    code, out, err = command(folder, "fastalex.show", "run", "--weights", "last", "-o", picture)
    assert code == 0, err
    assert out == f"8 kernels of 11 x 11 x 3 (conv1 of run/last.safetensors, 2 towers): {picture}\n"
    assert picture.read_bytes() == (run / "conv1.png").read_bytes()


def test_weights_record_their_run_and_the_mean_of_its_images(finished):
    folder, _ = finished
    config = RunConfig.load(folder / "run")
    dataset, record = dataloading.Dataset(config.data), load_record(folder / "run/last.safetensors")
    assert np.array_equal(record.mean, dataset.mean_image)
    assert (record.stored_size, record.crop_size, record.resize) == (256, 224, "shorter")
    error = load_state(latest_checkpoint(folder / "run")).errors[-1]
    assert record.origin == Origin(dataset.name, dataset.fingerprint, "small", 2, error, VERSION)


def test_a_finished_run_goes_on_with_more_epochs_on_other_devices(finished):
    folder, _ = finished
    before = latest_checkpoint(folder / "run").name
    code, out, err = command_here(folder, "fastalex.train", "--resume", "run", "--epochs", "3", "--devices", "cpu")
    assert code == 0, err
    assert "at step 8, in epoch 3" in out
    assert 'init="scaled"' not in out  # its weights are no longer the initial ones
    assert (before, latest_checkpoint(folder / "run").name) == ("0002-00000008", "0003-00000012")


def test_a_run_is_found_again_from_any_folder(finished, tmp_path):
    folder, _ = finished
    code, _, err = command_here(tmp_path, "fastalex.evaluate", folder / "run", "--device", "cpu")
    assert code == 0, err


def test_what_a_resumed_run_refuses(finished, tmp_path):
    folder, _ = finished
    for arguments, expected in (
        ((), "run is finished: "),
        (("-a", "caffe"), "run trains krizhevsky width=0.0625 lrn=False, got options for caffe"),
        (("--seed", "5"), "--seed cannot change in a resumed run"),
        (("--output", "elsewhere"), "--output cannot change in a resumed run"),
    ):
        message = refused(folder, "fastalex.train", "--resume", "run", *arguments)
        assert expected in message
    other = write_images(tmp_path / "other", train=4, val=1, classes=("cat", "dog"))
    assert "classes that differ from the run's" in refused(folder, "fastalex.train", other, "--resume", "run")


def test_an_existing_folder_is_not_overwritten(finished, prepared):
    folder, _ = finished
    code, out, err = command_here(folder, "fastalex.train", prepared, "--output", "run", "--devices", "cpu")
    assert line_of(code, err) == err.rstrip("\n")
    assert err == "error: run exists already; choose another --output, or resume its run with --resume run\n"
    assert out == ""


def test_a_run_that_saved_nothing_can_be_resumed(tmp_path, finished, prepared):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text((finished[0] / "run" / "config.json").read_text())
    message = refused(tmp_path, "fastalex.train", prepared, "--output", "run/config.json/x", "--devices", "cpu")
    assert message == "error: run/config.json/x: Not a directory"
    message = refused(tmp_path, "fastalex.train", prepared, "--output", "run", "--devices", "cpu")
    assert message == "error: run exists already; choose another --output, or resume its run with --resume run"


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
        "nowhere": "no such folder: nowhere; name a prepared data set, or a folder with train/<class>/*.jpg and val/",
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
    assert "1 of train, 0 of val: replaced by others of their class" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--devices", "7"), "device 7 does not exist"),
        (("--devices", ",".join(["cpu"] * 9)), "9 stages need at least as many blocks, got 8"),
        (("--devices", "cpu,cpu,cpu", "--stages", "2"), "3 devices cannot be divided into pipelines of 2 stages"),
        (("--devices", "cpu,cpu", "--stages", "1", "-b", "9"), "a batch of 9 cannot be divided among 2 replicas"),
        (("--devices", "cpu,cpu", "--split", "conv9"), "split names 'conv9'"),
        (
            ("--devices", "cpu,cpu", "-b", "9", "--micro-batches", "2"),
            "a batch of 9 cannot be divided into 2 micro-batches",
        ),
        (("--devices", "cpu", "-b", "64"), "has 32 training images, fewer than one batch of 64"),
        (("--devices", "cpu", "--without", "conv9"), "no conv layer 'conv9'"),
        (("--devices", "cpu", "--epochs", "0"), "error: --epochs must be at least 1, got 0"),
        (("--devices", "cpu", "--warmup-epochs", "-1"), "error: --warmup-epochs must be at least 0, got -1"),
        (("--devices", "cpu", "-a", "owt", "--init", "text"), "error: --init text needs an architecture that gives"),
        (("--devices", "cpu", "--micro-batches", "0"), "error: --micro-batches must be at least 1, got 0"),
        (("--devices", "cpu", "--seed", "-1"), "--seed must be from 0 to 2**63 - 1, got -1"),
        (("--devices", "cpu", "--hardware-decoder-load", "2"), "--hardware-decoder-load must be from 0 to 1, got 2"),
    ],
)
def test_options_that_do_not_fit(tmp_path, prepared, arguments, expected):
    assert expected in refused(tmp_path, "fastalex.train", prepared, *arguments)


@pytest.mark.parametrize(
    ("variable", "chosen", "expected"),
    [
        ("FASTALEX_KERNELS", "fastest", "FASTALEX_KERNELS must be one of triton, native, reference, got 'fastest'"),
        ("FASTALEX_KERNELS", "triton", "the Triton kernels were chosen, but do not run on cpu"),
        ("FASTALEX_BF16_CONV", "exact", "FASTALEX_BF16_CONV must be one of minimal, direct, got 'exact'"),
    ],
)
def test_kernels_that_do_not_run_are_refused(tmp_path, monkeypatch, variable, chosen, expected):
    monkeypatch.setenv(variable, chosen)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    code, _, err = command(tmp_path, "fastalex.train", "synthetic", "--devices", "cpu,cpu")
    assert expected in line_of(code, err)


def test_help_names_every_option_in_groups(tmp_path):
    code, out, _ = command_here(tmp_path, "fastalex.train", "--help-all")
    assert code == 0
    options = (
        "[DATA] -a --arch --width --lrn --overlapping --activation --dropout --without --conv6 --recipe --epochs -b "
        "--batch-size --lr --momentum --wd --weight-decay --scale-lr --warmup-epochs --lars --crops-shared-by --seed "
        "--set --init-from --bottleneck --init --order --random-crops --resized-crops "
        "--flip --color-noise --fraction --devices --stages "
        "--replicas --split --micro-batches --schedule --precision --max-restarts --cuda-graphs --overlap-update "
        "--on-non-finite --on-bad-sample --hardware-decoder-load --resume --output --save-every --keep"
    )
    assert set(options.split()) - set(re.split(r"[\s,]+", out)) == set()
    for group in ("The network, and its variations:", "The training recipe, and", "Devices, and", "Reading images:"):
        assert f"\n{group}" in out


COMMANDS = [name for name, module in _COMMANDS.items() if module.startswith("fastalex.")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_tells_a_mistake_in_one_line_and_has_no_empty_default(tmp_path, monkeypatch, capsys, name):
    assert "error: unknown option --zebra" in refused(tmp_path, f"fastalex.{name}", "--zebra")
    monkeypatch.setattr(sys, "argv", [name, "--help-all"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"fastalex.{name}").main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m fastalex.{name} ")
    assert not re.search(r"Default: (\.|None|True|False)|Default: .*Default: |True, *False", text)


def test_a_choice_that_there_is_not(tmp_path):
    message = refused(tmp_path, "fastalex.train", "--precision", "bf61")
    assert message == "error: --precision must be one of bf16, fp32, tf32, got 'bf61'"


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


def test_synthetic_images_need_no_files(tmp_path):
    arguments = ["synthetic", "--width", "0.0625", "--no-lrn", "-b", "16", "--epochs", "1", "--devices", "cpu"]
    process = start(tmp_path, "fastalex.train", *arguments, "--output", "run")
    wait_for_steps(tmp_path / "run", 1)
    process.terminate()
    process.communicate(timeout=SECONDS_TO_END)
    assert process.returncode == 128 + signal.SIGTERM
    assert read_metrics(tmp_path / "run")[0]["images"] == 640  # in 40 steps
    assert not (tmp_path / "prepared").exists()


def test_the_loader_feeds_the_architecture_its_own_size(tmp_path, prepared):
    arguments = [*SMALL, "-a", "caffe", "--epochs", "1", "--devices", "cpu", "--output", "run"]
    code, _, err = command_here(tmp_path, "fastalex.train", prepared, *arguments)
    assert code == 0, err
    assert torch.isfinite(torch.tensor(read_metrics(tmp_path / "run")[-1]["loss"]))
