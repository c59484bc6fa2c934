"""Checkpoints within an epoch, how many are kept, and disks that take none."""

import os
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fastalex.errors import ConfigurationError, NonFiniteLoss
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from fastalex.training import metrics_log, trainer
from fastalex.training.checkpoint import checkpoints_of, latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from fastalex.training.trainer import Trainer, restore_model, train
from tests.dataloading.owning import fill, small_disk
from tests.fastalex.training.test_trainer import (
    CPU,
    assert_same_state,
    curve,
    moved,
    one_thread,
    run_here,
    state,
    stop_after,
    two_stages,
)


def steps_saved(config: RunConfig) -> list[int]:
    """The steps of all checkpoints that the run has kept."""
    return [load_state(checkpoint).step for checkpoint in checkpoints_of(config.folder)]


class Killed(BaseException):
    """Ends a run at once, like SIGKILL: nothing is saved."""


@pytest.mark.parametrize("killed", [[3], [5, 6, 7]])
def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_end(config, undisturbed, monkeypatch, killed):
    config = replace(config, save_every=2 if len(killed) > 1 else 3)
    step = Trainer.train_step
    for last in killed:

        def until(self, batch, last=last):
            counts = step(self, batch)
            if self.state.step == last:
                raise Killed
            return counts

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", until)
            with pytest.raises(Killed):
                run_here(config)
        saved = max(steps_saved(config), default=0)
        assert last - saved <= config.save_every
    assert curve(run_here(config)) == curve(read_metrics(undisturbed.folder))
    assert_same_state(config.output, undisturbed.output)


def train_and_kill_once(world: World, config: RunConfig) -> None:
    """The second worker is killed in step 7, once; worker processes call this."""
    step, mark = Trainer.train_step, config.folder / "killed"

    def killed(self, batch):
        if self.state.step == 6 and world.rank == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        train(world, config)


def test_a_killed_worker_costs_two_workers_no_more_than_the_steps_since_the_checkpoint(config, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config = replace(config, save_every=3, keep=10)
    straight, killed = moved(config, "straight"), moved(config, "killed", parallel=two_stages(config))
    one_thread(straight)  # to the bit what two workers train
    run_workers(train_and_kill_once, killed, [CPU, CPU], restarts=1)
    out, err = capfd.readouterr()
    assert "resumed     at step 6, in epoch 2" in out
    assert "worker 1 (cpu) was killed by SIGKILL; restarting from the last checkpoint (1 of 1)\n" in err
    assert steps_saved(killed) == steps_saved(straight) == [3, 4, 6, 8]
    assert curve(read_metrics(killed.folder)) == curve(read_metrics(straight.folder))
    assert_same_state(killed.output, straight.output)


def train_with_a_fast_clock(world: World, config: RunConfig) -> None:
    """Only the first worker's clock says that checkpoints are due; worker processes call this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SECONDS_BETWEEN_CHECKPOINTS", 0.0 if world.is_first else 1e9)
        train(world, config)


def test_the_first_workers_clock_decides_for_all_when_to_save(config):
    two = moved(config, "two", parallel=two_stages(config), keep=3)
    run_workers(train_with_a_fast_clock, two, [CPU, CPU])
    assert steps_saved(two) == [6, 7, 8]
    by_steps = moved(config, "by-steps", save_every=100, keep=10)
    train_with_a_fast_clock(World(0, 1, CPU), by_steps)
    assert steps_saved(by_steps) == [4, 8]


def test_only_the_first_worker_asks_for_checkpoints_and_not_again_after_one(config):
    trainer = Trainer(World(0, 1, CPU), config, restore_model(config, None), None)
    with closing(trainer):
        assert not trainer._wants_save()
        trainer._saved_at -= 15 * 60
        assert trainer._wants_save()
        trainer.world.rank = 1
        assert not trainer._wants_save()
        trainer.world.rank = 0
        trainer.counters.save_requested = True
        trainer._save()
        assert not trainer._wants_save()
        assert not trainer.counters.save_requested


def test_training_time_is_that_of_all_steps_and_of_nothing_else(config, monkeypatch):
    """On a clock by which a step takes a second, and saving and validation take hours."""
    config, now = replace(config, save_every=2), [0.0]

    def slow(method: str, seconds: float) -> None:
        original = getattr(Trainer, method)

        def slowed(self, *arguments):
            now[0] += seconds
            return original(self, *arguments)

        monkeypatch.setattr(Trainer, method, slowed)

    slow("train_step", 1.0)
    slow("_save", 1e4)
    slow("_validate", 1e5)
    monkeypatch.setattr(metrics_log, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    stop_after(config, 3)
    lines = run_here(config)
    assert [line["images_per_second"] for line in lines if line["kind"] == "train"] == [8.0] * 8
    assert load_state(latest_checkpoint(config.folder)).seconds == 8.0


def test_saving_by_the_clock_changes_no_weights(config, undisturbed):
    train_with_a_fast_clock(World(0, 1, CPU), config)
    assert steps_saved(config) == [8]
    assert_same_state(config.output, undisturbed.output)


def test_the_best_weights_stay_when_their_checkpoint_goes(config):
    run_here(replace(config, save_every=1, keep=2))
    assert steps_saved(config) == [7, 8]
    assert (config.folder / "best.safetensors").exists()


def test_weights_that_an_update_has_ruined_do_not_replace_a_checkpoint(config, monkeypatch):
    step = Trainer.train_step

    def ruin(self, batch):
        counts = step(self, batch)
        if self.state.step == 2:  # no loss shows it yet
            with torch.no_grad():
                self.engine.stage.conv1.weight[0] = float("nan")
        return counts

    monkeypatch.setattr(Trainer, "train_step", ruin)
    with pytest.raises(NonFiniteLoss, match=r"weights are not finite after step 2 with .* checkpoint is .*-00000001"):
        run_here(replace(config, save_every=1))
    assert steps_saved(config) == [1]
    assert all(torch.isfinite(tensor).all() for tensor in state(config.output).values())


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_keeps_the_last_good_checkpoint(config, tmp_path, workers):
    with small_disk(tmp_path / "disk", "32m") as disk:
        run = disk / "run"
        run.mkdir()
        one_epoch = replace(config, output=str(run), recipe=replace(config.recipe, epochs=1))
        one_epoch.save()
        run_here(one_epoch)
        before = {path.relative_to(run) for path in run.rglob("*") if "tfevents" not in path.name}
        ballast = fill(disk, left=200_000)
        two_epochs = replace(one_epoch, recipe=config.recipe)
        if workers == 2:
            two_epochs = replace(two_epochs, parallel=two_stages(config))
        message = (
            r"^a checkpoint cannot be saved: \S+\.safetensors: No space left on device; the last good one is "
            r"\S+/0001-00000004; once this is fixed, resume with: .* --resume \S+$"
        )
        with pytest.raises(ConfigurationError, match=message):
            run_workers(train, two_epochs, [CPU] * workers)
        assert {path.relative_to(run) for path in run.rglob("*") if "tfevents" not in path.name} == before
        assert steps_saved(two_epochs) == [4]
        ballast.unlink()
        run_here(replace(two_epochs, parallel=config.parallel))
        assert steps_saved(two_epochs) == [8]


def test_a_full_disk_for_the_log_is_one_line_that_names_it(config, tmp_path):
    with small_disk(tmp_path / "disk", "8m") as disk:
        (disk / "run").mkdir()
        config = replace(config, output=str(disk / "run"))
        config.save()
        fill(disk, left=0)
        with pytest.raises(ConfigurationError, match=r"metrics\.jsonl: No space left on device; once .* --resume"):
            run_here(config)
        assert not [path for path in Path(config.output).iterdir() if path.name.startswith(".")]
