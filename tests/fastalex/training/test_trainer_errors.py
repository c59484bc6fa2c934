"""Runs that meet non-finite losses, damaged images or full memory: each is named, and no good checkpoint is lost."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dataloading import DatasetError
from fastalex.errors import ConfigurationError
from fastalex.parallel.engine import WholeNetwork
from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.trainer import Trainer, train
from tests.dataloading.damage import copied, overwritten
from tests.fastalex.training.test_trainer import CPU, assert_same_state, moved, run_here, state, stop_after, two_stages


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_way_out(config):
    half = {"warmup_epochs": 1e6, "warmup_start": 0.5}  # of the rate, for the whole run
    wild = moved(config, "wild", recipe=replace(config.recipe, lr=2e6, epochs=5, **half))
    message = r"the loss is (nan|inf) at step \d+ with learning rate 1e\+06; there is no checkpoint yet"
    with pytest.raises(ConfigurationError, match=message):
        run_here(wild)
    assert not (Path(wild.output) / "last.safetensors").exists() or all(
        torch.isfinite(tensor).all() for tensor in load_file(Path(wild.output) / "last.safetensors").values()
    )


@pytest.fixture
def damaged(config, tmp_path) -> RunConfig:
    """The same run on data with one damaged byte in training sample 13."""
    overwritten(copied(Path(config.data), tmp_path / "data"), "train", 13, b"?")
    damaged = replace(config, data=str(tmp_path / "data"))
    damaged.save()
    return damaged


def test_a_damaged_image_stops_the_run_and_is_named(damaged):
    with pytest.raises(DatasetError, match=r"sample 13 of train \(.*train-000000.tar, offset \d+\) is damaged"):
        run_here(damaged)


def test_a_damaged_image_can_be_skipped_and_the_count_survives_resuming(damaged, config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    skipping = replace(damaged, on_bad_sample="skip")
    stop_after(skipping, 4)
    assert load_state(latest_checkpoint(Path(skipping.output))).replaced == {"train": [13], "val": []}
    run_here(replace(skipping, data=config.data))  # where nothing is damaged
    assert load_state(latest_checkpoint(Path(skipping.output))).replaced == {"train": [13], "val": []}
    assert "1 of train, 0 of val: replaced by others of their class" in capsys.readouterr().out


def test_weights_beyond_repair_do_not_replace_a_checkpoint(config, monkeypatch):
    run_here(replace(config, recipe=replace(config.recipe, epochs=1)))
    good = state(config.output)
    step = Trainer.train_step

    def ruin(self, batch):
        counts = step(self, batch)
        if self.state.step == 8:  # the last update of the epoch: no training loss will ever show it
            with torch.no_grad():
                self.engine.stage.fc8.weight.fill_(float("inf"))
        return counts

    monkeypatch.setattr(Trainer, "train_step", ruin)
    with pytest.raises(ConfigurationError, match=r"the loss is (nan|inf) at step 8 .* checkpoint is .*--resume"):
        run_here(config)
    assert all(torch.equal(tensor, good[name]) for name, tensor in state(config.output).items())


def train_with_bad_steps(world: World, config: RunConfig) -> None:
    """A run whose third step gets images that are not finite, which every stage notices, and in whose second step a
    gradient of the first stage alone is not finite; worker processes call this."""
    step = Trainer.train_step

    def spoiled(self, batch):
        if self.state.step == 2 and batch.images is not None:
            batch = batch._replace(images=batch.images * float("nan"))
        if self.state.step != 1 or not self.engine.is_first:
            return step(self, batch)
        hook = self.engine.stage.get_parameter("conv1.weight").register_hook(lambda gradient: gradient + float("inf"))
        try:
            return step(self, batch)
        finally:
            hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", spoiled)
        train(world, config)


def test_steps_that_are_not_finite_are_skipped_by_all_stages_and_counted(config, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    skipping = replace(config, on_non_finite="skip", recipe=replace(config.recipe, epochs=1, changes=()))
    two = moved(skipping, "two", parallel=two_stages(config))
    run_workers(train_with_bad_steps, two, [CPU, CPU])
    one = moved(skipping, "one")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        train_with_bad_steps(World(0, 1, CPU), one)
    finally:
        torch.set_num_threads(threads)
    assert_same_state(two.output, one.output)
    for run in (one, two):
        assert load_state(latest_checkpoint(run.folder)).skipped == 2
    assert all(torch.isfinite(tensor).all() for tensor in state(one.output).values())


def test_skipped_steps_are_counted_over_all_parts_of_a_run(config, monkeypatch):
    step, skipping = Trainer.train_step, replace(config, on_non_finite="skip")

    def spoiled(self, batch):
        if self.state.step in (0, 1, 5):
            batch = batch._replace(images=batch.images * float("nan"))
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", spoiled)
    stop_after(skipping, 3)
    assert load_state(latest_checkpoint(config.folder)).skipped == 2
    run_here(skipping)
    assert load_state(latest_checkpoint(config.folder)).skipped == 3


def test_a_run_without_any_finite_step_ends(config, monkeypatch):
    step = Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, batch: step(self, batch._replace(images=batch.images * float("nan")))
    )
    message = r"all 4 steps up to step 4 were skipped because .* not finite; there is no"
    with pytest.raises(ConfigurationError, match=message):
        run_here(replace(config, on_non_finite="skip"))


def full_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More advice follows.")


def full_cpu(*_, **__):
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:  # as the pipeline's schedule does
        raise RuntimeError("[Stage 0] failed to run forward") from error


@pytest.mark.parametrize("where", ["train_step", "logits", "__init__"])
@pytest.mark.parametrize(("full", "what"), [(full_gpu, "CUDA out of memory"), (full_cpu, r"can't allocate memory: .*")])
def test_memory_that_runs_out_anywhere_names_a_batch_that_would_fit(config, monkeypatch, where, full, what):
    monkeypatch.setattr(WholeNetwork, where, full)
    message = rf"a batch size of 8 does not fit into memory \({what}\); a batch size of about [246] would fit, or use"
    with pytest.raises(ConfigurationError, match=message):
        run_here(config)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"run: No space left on device; once .* --resume \S*run$"),
        (
            PermissionError(errno.EACCES, "Permission denied", "labels"),
            r"^labels: Permission denied; once this is fixe",
        ),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), None),
    ],
)
def test_an_error_of_files_is_one_line_and_one_of_connections_is_none_of_them(config, monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(Trainer, "run", fail)
    with pytest.raises(ConfigurationError if message else ConnectionResetError, match=message):
        run_here(config)


def test_other_errors_stay_what_they_are(config, monkeypatch):
    monkeypatch.setattr(WholeNetwork, "train_step", lambda *_: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"must match the size of tensor"):
        run_here(config)
