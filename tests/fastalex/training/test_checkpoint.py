"""Checkpoints: whole or not there, and refused where they do not fit."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastalex import AlexNet, ConfigurationError
from fastalex.network import weights as weights_files
from fastalex.network.variation import Variation
from fastalex.network.weights import NetworkSpec, load_model, load_parameters, load_spec
from fastalex.training.checkpoint import (
    checkpoints_of,
    finished_epochs,
    latest_checkpoint,
    load_state,
    load_velocities,
    publish,
    save_checkpoint,
)
from fastalex.training.state import TrainingState
from tests.dataloading.owning import fill, small_disk

ROOT = Path(__file__).parents[3]
BEST = (60.0, 50.0)
NETWORK = NetworkSpec("krizhevsky", 3, Variation(width=1 / 16, without=("conv4",)), ("a", "b", "c"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def save(run: Path, step: int, *, errors: tuple[float, ...] = (50.0, 60.0), seed: int = 0, keep: int = 1) -> AlexNet:
    """Save at the end of an epoch; with the default errors it is not the best."""
    model = NETWORK.build(seed=seed)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    velocities = {name: torch.full_like(w, step) for name, w in weights.items()}
    save_checkpoint(run, weights, velocities, TrainingState(1, 0, step, 2.5, list(errors)), NETWORK, keep=keep)
    return model


def no_links(*_: object) -> None:
    """As ``os.link`` on a file system without hard links."""
    raise OSError("not here")


def test_a_checkpoint_comes_back_whole(run: Path):
    model = save(run, 7, errors=BEST)
    checkpoint = latest_checkpoint(run)
    assert load_state(checkpoint) == TrainingState(1, 0, 7, 2.5, list(BEST))
    for path in (run / "last.safetensors", run / "best.safetensors", checkpoint / "model.safetensors"):
        loaded, spec = load_model(path)
        assert spec == NETWORK
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_the_latest_replaces_the_one_before_and_best_stays(run: Path):
    best = save(run, 99, errors=BEST, seed=1)
    last = save(run, 100, seed=2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["0001-00000100"]
    assert torch.equal(load_model(run / "best.safetensors")[0].conv1.weight, best.conv1.weight)
    assert torch.equal(load_model(run / "last.safetensors")[0].conv1.weight, last.conv1.weight)


def test_what_is_not_ours_is_neither_read_nor_removed(run: Path):
    foreign = ["checkpoints/.DS_Store", "checkpoints/0009-00000009 copy/x", "checkpoints/2026-01-01/x", "notes.txt"]
    foreign += ["checkpoints/0009-00000010", ".best.safetensors.bak", "checkpoints/._0001-00000001"]  # files
    for name in foreign:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    for step in (1, 2):
        save(run, step, errors=BEST)
        assert checkpoints_of(run) == [latest_checkpoint(run)] == [run / "checkpoints" / f"0001-0000000{step}"]
    assert all((run / name).exists() for name in foreign)


def test_several_checkpoints_are_kept_if_asked_for(run: Path):
    for step in (8, 9, 10, 11):
        save(run, step, keep=3)
    assert [load_state(checkpoint).step for checkpoint in checkpoints_of(run)] == [9, 10, 11]
    save(run, 12)
    assert [load_state(checkpoint).step for checkpoint in checkpoints_of(run)] == [12]


def test_a_checkpoint_that_is_published_again_stays_although_there_are_newer_ones(run: Path):
    for step in (1, 2):
        save(run, step, keep=2)
    publish(run, run / "checkpoints" / "0001-00000001")
    assert [load_state(checkpoint).step for checkpoint in checkpoints_of(run)] == [1, 2]


def test_checkpoints_are_ordered_by_epoch_and_step_as_numbers(run: Path):
    steps = [(9999, 99_999_999), (10_000, 99_999_999), (10_000, 100_000_000)]
    for epoch, step in reversed(steps):
        (run / "checkpoints" / f"{epoch:04d}-{step:08d}").mkdir(parents=True)
    assert [path.name for path in checkpoints_of(run)] == [f"{epoch}-{step}" for epoch, step in steps]


def test_everybody_may_read_the_weights(run: Path):
    save(run, 1)
    assert stat.S_IMODE((run / "last.safetensors").stat().st_mode) == 0o644


def test_leftovers_of_killed_processes_go(run: Path):
    (run / "checkpoints" / ".0001-00000001.4711").mkdir(parents=True)
    for name in (".best.safetensors.4711", ".last.safetensors.4711", ".config.json.1", ".metrics.jsonl.1"):
        (run / name).touch()
    save(run, 2, errors=BEST)
    publish(run, latest_checkpoint(run))  # what is there already is not made again
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    checkpoint = "checkpoints/0001-00000002"
    files = {f"{checkpoint}/model.safetensors", f"{checkpoint}/trainer.safetensors"}
    assert names == {"config.json", "last.safetensors", "best.safetensors", "checkpoints", checkpoint, *files}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path):
    with small_disk(tmp_path / "disk", "32m") as disk:
        run = fresh(disk, "run")
        save(run, 1, errors=BEST, seed=1)
        before = {path: path.stat().st_size for path in run.rglob("*")}
        for left in (0, 100_000, (run / "last.safetensors").stat().st_size + 100_000):  # in the first or second file
            ballast = fill(disk, left)
            with pytest.raises(OSError, match="No space left on device") as error:
                save(run, 2, errors=(*BEST, 1.0), seed=2)
            assert str(error.value.filename).startswith(str(run))
            assert {path: path.stat().st_size for path in run.rglob("*")} == before
            ballast.unlink()
        save(run, 2, errors=(*BEST, 1.0), seed=2)
        assert load_state(latest_checkpoint(run)).step == 2


def test_a_full_disk_without_hard_links_keeps_the_old_weights(run: Path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    save(run, 1, errors=BEST, seed=1)
    before = (run / "best.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left"):
            save(run, 2, errors=(*BEST, 1.0), seed=2)
    assert (run / "best.safetensors").read_bytes() == before
    assert not list(run.glob(".*"))
    publish(run, latest_checkpoint(run))
    assert (run / "best.safetensors").read_bytes() != before


@pytest.fixture
def calls(run: Path, monkeypatch) -> list[str]:
    """What is written, synced and given a name in the run folder, in this order; without process ids."""
    made: list[str] = []

    def record(owner: object, name: str, what: str, place: Callable[..., object]) -> None:
        original = getattr(owner, name)

        def recorded(*arguments, **more):
            result = original(*arguments, **more)
            path = os.path.relpath(str(place(*arguments)), run).replace(f".{os.getpid()}", "")
            made.append(f"{what} {path}")
            return result

        monkeypatch.setattr(owner, name, recorded)

    record(weights_files, "save_file", "write", lambda tensors, path: path)
    record(os, "fsync", "sync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    record(os, "link", "link", lambda source, target: target)
    record(shutil, "copyfile", "copy", lambda source, target: target)
    record(os, "replace", "name", lambda source, target: target)
    record(Path, "rename", "name", lambda source, target: target)
    return made


@pytest.mark.parametrize("has_links", [True, False])
def test_what_gets_its_name_is_on_disk_before_and_the_name_is_before_the_old_checkpoint_goes(
    run: Path, calls: list[str], monkeypatch, has_links: bool
):
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    save(run, 1, errors=BEST)
    calls.clear()
    save(run, 2, errors=(*BEST, 1.0))
    unfinished, made = "checkpoints/.0001-00000002", "link" if has_links else "copy"
    written = [f"{what} {unfinished}/{name}.safetensors" for name in ("model", "trainer") for what in ("write", "sync")]
    last, best = (
        [f"{made} .{name}.safetensors", f"sync .{name}.safetensors", f"name {name}.safetensors", "sync ."]
        for name in ("last", "best")
    )
    if has_links:  # to a file that is on disk
        del last[1], best[1]
    assert calls == [
        *written,
        f"sync {unfinished}",
        "name checkpoints/0001-00000002",
        "sync checkpoints",
        *last,
        *best,
        "name checkpoints/.0001-00000001",  # and then it is removed
    ]


def test_a_file_system_that_knows_no_modes_and_syncs_no_folders(run: Path, monkeypatch):
    fsync = os.fsync

    def refuse_modes(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "chmod", refuse_modes)
    monkeypatch.setattr(os, "fsync", refuse_folders)
    save(run, 1, errors=BEST)
    assert load_state(latest_checkpoint(run)).step == 1


def test_a_file_system_without_hard_links(run: Path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    model = save(run, 1, errors=BEST)
    assert torch.equal(load_model(run / "best.safetensors")[0].conv1.weight, model.conv1.weight)


# Save in a process that is killed after its n-th call of fsync, rename or replace, for each n up to their number: there
# is a whole checkpoint after every one. The processes are copies of one, because each would take seconds to import
# torch; it has no threads, which copies lack.
KILLED_WHILE_SAVING = """
import os, signal, sys
from pathlib import Path
import fastalex.network.weights as weights
from tests.fastalex.training.test_checkpoint import BEST, fresh, save

left = 1000

def counted(function):
    def call(*arguments, **more):
        global left
        result = function(*arguments, **more)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

def save_twice(run):
    save(run, 1, errors=BEST, seed=1)
    weights.save_file = counted(weights.save_file)
    os.fsync, os.link, os.replace = counted(os.fsync), counted(os.link), counted(os.replace)
    Path.rename = counted(Path.rename)
    save(run, 2, errors=(*BEST, 1.0), seed=2)

folder, moment, moments = Path(sys.argv[1]), 0, 1
while moment < moments:
    moment += 1
    run = fresh(folder, str(moment))
    assert len(os.listdir("/proc/self/task")) == 1
    child = os.fork()
    if child == 0:
        left = moment
        save_twice(run)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        moments += 1
    else:
        assert status == 0
print(moments - 1)
"""


def test_killed_at_any_moment_of_saving(tmp_path: Path):
    finished = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    moments = int(finished.stdout)
    assert moments >= 8
    steps = set()
    for moment in range(1, moments + 1):
        run = tmp_path / str(moment)
        step = load_state(latest_checkpoint(run)).step
        steps.add(step)
        seed = {1: 1, 2: 2}[step]
        expected = NETWORK.build(seed=seed).conv1.weight
        assert torch.equal(load_model(latest_checkpoint(run) / "model.safetensors")[0].conv1.weight, expected), moment
        publish(run, latest_checkpoint(run))  # as a resumed run does
        for name in ("last", "best"):
            assert torch.equal(load_model(run / f"{name}.safetensors")[0].conv1.weight, expected), (moment, name)
        save(run, 3)  # and the leftovers do no harm
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["0001-00000003"]
    assert steps == {1, 2}


def fresh(folder: Path, name: str) -> Path:
    run = folder / name
    run.mkdir()
    (run / "config.json").write_text("{}")
    return run


def test_velocities_come_back_by_name(run: Path):
    save(run, 7)
    (velocity,) = load_velocities(latest_checkpoint(run), ["conv1.bias"]).values()
    assert torch.equal(velocity, torch.full_like(velocity, 7))
    with pytest.raises(ConfigurationError, match=r"has no conv4.bias"):
        load_velocities(latest_checkpoint(run), ["conv4.bias"])


def test_no_run_and_no_checkpoint(run: Path):
    with pytest.raises(ConfigurationError, match="has no checkpoint yet"):
        latest_checkpoint(run)
    with pytest.raises(ConfigurationError, match="is not a run folder"):
        latest_checkpoint(run / "elsewhere")


def test_damage_is_named(run: Path):
    save(run, 1)
    trainer = latest_checkpoint(run) / "trainer.safetensors"
    trainer.write_bytes(trainer.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"trainer.safetensors is damaged"):
        load_state(latest_checkpoint(run))
    path = run / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigurationError, match=r"last.safetensors is damaged"):
        load_model(path)
    with pytest.raises(ConfigurationError, match="no such run folder or weights file"):
        load_model(run / "none.safetensors")


@pytest.mark.parametrize("name", ["model", "trainer"])
def test_one_wrong_bit_is_named(run: Path, name: str):
    model = save(run, 1)
    names = [name for name, _ in model.named_parameters()]
    path = latest_checkpoint(run) / f"{name}.safetensors"
    intact = path.read_bytes()
    for position in (-1, intact.index(b"krizhevsky") if name == "model" else intact.index(b"60.0")):
        data = bytearray(intact)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=rf"{name}.safetensors is damaged: the SHA-256 of"):
            load_parameters(model, path) if name == "model" else load_velocities(path.parent, names)


def test_files_of_others_are_refused(run: Path):
    from safetensors.torch import save_file

    save_file({"conv1.weight": torch.zeros(3)}, run / "other.safetensors")
    with pytest.raises(ConfigurationError, match="was not written by fastalex"):
        load_spec(run / "other.safetensors")
    save_file({"conv1.weight": torch.zeros(3)}, run / "trainer.safetensors")
    with pytest.raises(ConfigurationError, match=r"trainer.safetensors was not written by fastalex"):
        load_state(run)


def test_another_architecture_is_refused(run: Path):
    save(run, 1)
    with pytest.raises(ConfigurationError, match=r"has no conv4.weight, conv4.bias: .* of another architecture"):
        load_parameters(AlexNet("krizhevsky", 3, seed=0, width=1 / 16), run / "last.safetensors")
    with pytest.raises(ConfigurationError, match=r"conv1.weight has shape .* of another architecture"):
        load_parameters(AlexNet("krizhevsky", 3, seed=0, width=1 / 8, without=("conv4",)), run / "last.safetensors")


def test_the_epochs_that_are_finished_and_saved(run: Path):
    assert finished_epochs(run) == finished_epochs(run / "nowhere") == 0
    save(run, 7)
    assert finished_epochs(run) == 1
    (latest_checkpoint(run) / "trainer.safetensors").write_bytes(b"damaged")
    assert finished_epochs(run) == 0
