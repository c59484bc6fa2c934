"""As torchrun's workers: how many there are, which devices they get, and runs over two of them and two machines."""

import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastalex.errors import ConfigurationError
from fastalex.parallel.torchrun import devices_under_torchrun, is_worker, machines, refuse_launcher
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from tests.fastalex.commands import SMALL, command, command_here, start
from tests.fastalex.conftest import save_run
from tests.fastalex.training.test_trainer import two_stages


def be_worker(monkeypatch: pytest.MonkeyPatch, *, workers: int, here: int, machines: int) -> None:
    values = {"RANK": 0, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": here, "GROUP_WORLD_SIZE": machines}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_a_process_that_torchrun_started(monkeypatch):
    assert not is_worker()
    assert machines() == 1
    refuse_launcher("leave torchrun out")
    be_worker(monkeypatch, workers=4, here=2, machines=2)
    assert is_worker()
    assert machines() == 2
    with pytest.raises(ConfigurationError, match=r"^leave torchrun out$"):
        refuse_launcher("leave torchrun out")


def test_devices_of_torchruns_workers(monkeypatch):
    be_worker(monkeypatch, workers=4, here=2, machines=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices_under_torchrun(None) == (torch.device("cpu"),) * 2
    with pytest.raises(ConfigurationError, match="torchrun started 2 workers for 3 devices; name one device for each"):
        devices_under_torchrun("cpu,cpu,cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_under_torchrun(None) == (torch.device("cuda:0"), torch.device("cuda:1"))
    be_worker(monkeypatch, workers=3, here=2, machines=2)
    with pytest.raises(ConfigurationError, match="torchrun started 3 workers on 2 machines, 2 of them on"):
        devices_under_torchrun(None)


def test_torchrun_starts_the_workers_instead(tmp_path, prepared):
    """And resume a run without naming devices."""
    config = RunConfig.load(save_run(tmp_path / "run", prepared))
    plan = replace(two_stages(config), micro_batches=2)
    replace(config, parallel=plan).save()
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint"]
    resume = ["-m", "fastalex.train", "--resume", "run", "--epochs", "2"]
    code, out, err = command(tmp_path, *torchrun, "localhost:0", *resume)
    assert code == 0, err
    assert out.count("trained and evaluated") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [5, 6, 7, 8, 8]
    assert RunConfig.load(tmp_path / "run").parallel == plan


def test_a_worker_that_is_done_leaves_before_the_interpreter_shuts_down(tmp_path):
    """As those of the launcher of this project."""
    script = tmp_path / "end_well.py"
    script.write_text(
        "from fastalex import cli\n"
        "from fastalex.parallel.torchrun import run_under_torchrun\n"
        "from tests.fastalex.workers import end_well\n"
        "def worker(world, argument):\n"
        "    end_well(world, argument[0])\n"
        f"cli.main(lambda: run_under_torchrun(worker, {str(tmp_path)!r}, None))\n"
    )
    code, _, err = command(tmp_path, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script)
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.glob("*.left")) == ["0.left", "1.left"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_two_machines(folder: Path, workers: int, *arguments: tuple[str | Path, ...]) -> list[subprocess.Popen[str]]:
    """Two torchrun agents on this machine's loopback, each with its arguments."""
    port = free_port()
    return [
        start(
            folder, "torch.distributed.run", "--nnodes", "2", "--node-rank", str(node), "--nproc-per-node",
            str(workers), "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "fastalex.train", *given,
        )
        for node, given in enumerate(arguments)
    ]  # fmt: skip


def test_two_machines_make_the_same_run_as_one_device(tmp_path, prepared):
    """Two replicas of two stages."""
    training = [prepared, *SMALL, "--epochs", "1", "--scale-lr", "--lars", "0.01", "--output"]
    code, _, err = command_here(tmp_path, "fastalex.train", *training, "alone", "--devices", "cpu")
    assert code == 0, err
    cut = ["--stages", "2", "--micro-batches", "2", "--devices", "cpu,cpu"]
    agents = on_two_machines(tmp_path, 2, *[(*training, "together", *cut)] * 2)
    said = [agent.communicate(timeout=180) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert "2 replicas on 2 machines, 4 images per step each; 2 stages:" in said[0][0]
    assert "; 2 micro-batches" in said[0][0]
    assert [out.count("trained and evaluated") for out, _ in said] == [1, 0]
    alone, together = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "together")
    for expected, line in zip(alone, together, strict=True):
        for name in ("kind", "step", "images", "top1_error", "top5_error"):
            assert line[name] == expected[name]
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # sums over the batch in another order


def test_a_machine_that_cannot_take_part_ends_the_others(tmp_path, prepared):
    agents = on_two_machines(tmp_path, 1, *[(prepared, *SMALL, "--devices", device) for device in ("cpu", "7")])
    for agent in agents:
        _, err = agent.communicate(timeout=120)
        assert agent.returncode != 0
        assert err.count("error: device 7 does not exist") == 1, err
