"""The training run: epochs, schedule, validation, checkpoints.

Every worker runs the same loop over the same order of images, so they meet in the same steps without asking each
other; what they do exchange, every few steps, is one small vector with the counts of the last stage and whether anyone
was told to stop.
"""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dataloading
import kernels
from dataloading.loader import Batch, Loader
from fastalex.checkpoint import (
    Progress,
    latest_checkpoint,
    load_parameters,
    load_progress,
    load_tensors,
    publish,
    save_checkpoint,
    start_from,
)
from fastalex.config import RunConfig
from fastalex.data import open_prepared
from fastalex.errors import NonFiniteLoss
from fastalex.evaluation import count_errors
from fastalex.launch import Interrupted, World
from fastalex.metrics import Metrics
from fastalex.optimizer import KrizhevskySGD
from fastalex.partition import partition
from fastalex.pipeline import Pipeline, SingleDevice
from fastalex.progress import Rate, Reporter, SilentReporter, Stopwatch
from fastalex.recipe import plateau_divisions


def train(world: World, config: RunConfig) -> None:
    """Train from the start, or from the latest checkpoint in the run folder, to the recipe's last epoch.

    Raises:
        Interrupted: told to stop; a checkpoint was written first.
        ConfigurationError: the loss is no longer finite, or a checkpoint does not fit.
    """
    trainer = Trainer(world, config)
    try:
        trainer.run()
    finally:
        trainer.close()


class Trainer:
    """One worker's part of a run."""

    def __init__(self, world: World, config: RunConfig) -> None:
        self.world = world
        self.config = config
        self.recipe = config.recipe
        self.folder = Path(config.output)
        self.dataset = open_prepared(config.data, config.fraction, config.seed)
        self.engine = self._build_engine()
        self.progress = Progress()
        self.optimizer = self._build_optimizer()
        self.batch_size = self.recipe.batch_size
        self.steps_per_epoch = self.dataset.count("train") // self.batch_size
        # Asking the others costs a fraction of a millisecond: nothing beside a step on a CPU, something on a GPU.
        self.exchange_every = 1 if world.device.type == "cpu" else 10
        self.log_every = min(50, max(1, self.steps_per_epoch // 20))
        self.told_to_stop = False
        self.training_data, self.validation_data = self._open_loaders()
        self.reporter = Reporter(self.folder, self.progress.step) if world.is_first else SilentReporter()

    # --- building -----------------------------------------------------------------------------------------------------

    def _build_engine(self) -> SingleDevice | Pipeline:
        config, world = self.config, self.world
        model = config.network.build(seed=config.seed)
        self.resumed_from = latest_checkpoint(self.folder) if (self.folder / "checkpoints").is_dir() else None
        if self.resumed_from:
            load_parameters(model, self.resumed_from / "model.safetensors")
            if world.is_first:
                publish(self.folder, self.resumed_from)
        elif config.init_from:
            start_from(model, config.network, Path(config.init_from))
        model.set_precision(config.precision)
        torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; cuDNN's default would round convolutions to TF32
        if world.size == 1:
            return SingleDevice(model, world.device, self.recipe.batch_size, config.micro_batches)
        stages = partition(model.architecture, world.size)
        return Pipeline(
            model, stages, world.rank, world.device, self.recipe.batch_size, config.micro_batches, config.schedule
        )

    def _build_optimizer(self) -> KrizhevskySGD:
        stage = self.engine.stage
        optimizer = KrizhevskySGD(stage, self.recipe, stage.compute_copies())
        if self.resumed_from:
            self.progress = load_progress(self.resumed_from)
            parameters = dict(stage.named_parameters())
            for name, velocity in load_tensors(self.resumed_from / "trainer.safetensors", parameters).items():
                optimizer.velocity(parameters[name]).copy_(velocity)
        return optimizer

    def _open_loaders(self) -> tuple[Loader, Loader]:
        engine, world, recipe = self.engine, self.world, self.recipe
        on_gpu = world.device.type == "cuda"
        cores = len(os.sched_getaffinity(0))
        common: dict[str, Any] = {
            "crop_size": engine.stage.architecture.image_size,
            "seed": self.config.seed,
            "device": world.device.index if on_gpu else None,
            "threads": max(1, min(8, cores // world.size)) if on_gpu else 1,
            "images": engine.is_first,
            "labels": engine.is_last,
            "on_bad_sample": self.config.on_bad_sample,
            "hardware_decoder_load": self.config.hardware_decoder_load,
        }
        augment = dataloading.Augmentation(
            flip=recipe.flip, color_noise=recipe.color_noise_at, random_crop=recipe.crops
        )
        training = Loader(
            self.dataset, "train", self.batch_size, shuffle=True, augment=augment, drop_last=True, **common
        )
        validation = Loader(
            self.dataset, "val", self.batch_size, shuffle=False, augment=None, drop_last=False, **common
        )
        return training, validation

    def close(self) -> None:
        """Stop the loaders and close the files."""
        self.training_data.close()
        self.validation_data.close()
        self.reporter.close()

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """All remaining epochs."""
        progress = self.progress
        self.reporter.start(self.config, self.dataset, progress)
        while progress.epoch < self.recipe.epochs:
            self._set_learning_rates()
            self._train_epoch()
            metrics, rate = self._validate()
            progress.errors.append(metrics.top1_error)
            self.reporter.validated(progress, self.recipe, metrics, rate)
            progress.epoch, progress.samples = progress.epoch + 1, 0
            self._save()
        self.reporter.end(progress, self.dataset)

    def _set_learning_rates(self) -> None:
        divisions = plateau_divisions(self.progress.errors, self.recipe.plateau) if self.recipe.plateau else 0
        self.optimizer.set_epoch(self.progress.epoch, divisions)

    def _train_epoch(self) -> None:
        """The rest of the current epoch; the images that do not fill a batch are left for another epoch's order."""
        progress = self.progress
        last_start = self.dataset.count("train") - self.batch_size
        batches = iter(self.training_data.epoch(progress.epoch, start_sample=progress.samples))
        # Counts that the other workers do not know yet, and those that are not logged yet.
        pending = torch.zeros(4, dtype=torch.float64, device=self.world.device)
        window = torch.zeros(4, dtype=torch.float64)
        with self.reporter.epoch(progress, self.recipe, self.steps_per_epoch):
            watch = Stopwatch()
            while progress.samples <= last_start:
                asked = time.perf_counter()
                batch = next(batches)
                watch.waiting += time.perf_counter() - asked
                counts = self._step(batch)
                if counts is not None:
                    pending += counts
                watch.images += self.batch_size
                is_last = progress.samples > last_start
                if is_last or progress.step % self.exchange_every == 0:
                    window += self._exchange(pending)
                    if is_last or self.told_to_stop or watch.images >= self.log_every * self.batch_size:
                        rate = watch.lap()
                        progress.seconds += rate.seconds
                        learning_rate = self.optimizer.param_groups[0]["lr"]
                        self.reporter.trained(progress, Metrics.from_counts(window), rate, learning_rate)
                        window.zero_()
                    self._stop_if_told()

    def _step(self, batch: Batch) -> Tensor | None:
        """One update; returns the batch's counts where the last stage is."""
        seed = kernels.philox.derive_seed(self.config.seed, self.progress.step)
        counts = self.engine.train_step(batch.images, batch.labels, seed)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step += 1
        self.progress.samples += self.batch_size
        return counts

    def _exchange(self, pending: Tensor) -> Tensor:
        """Add up the counts of all workers, clear them, and learn whether anyone was told to stop."""
        shared = torch.cat([pending.cpu(), torch.tensor([self.world.signal_number], dtype=torch.float64)])
        pending.zero_()
        self.world.sum(shared)
        self.told_to_stop = bool(shared[4])
        self._check_finite(shared[0].item())
        return shared[:4]

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss} at step {self.progress.step} with --lr {self.recipe.lr:g}; lower --lr and start "
                f"anew, or resume {self.folder} from its last checkpoint with a lower --lr"
            )

    def _validate(self) -> tuple[Metrics, Rate]:
        watch = Stopwatch()
        nothing = torch.zeros(4, dtype=torch.float64)

        def stopped() -> bool:
            self._exchange(nothing)
            return self.told_to_stop

        counts = count_errors(self.engine, self.validation_data.epoch(0), stopped=stopped)
        if counts is None:
            self._stop_if_told()
        assert counts is not None
        metrics = Metrics.from_counts(self.world.sum(counts))
        self._check_finite(metrics.loss)  # before weights that are beyond repair replace the last checkpoint
        watch.images = metrics.images
        return metrics, watch.lap()

    def _stop_if_told(self) -> None:
        if not self.told_to_stop:
            return
        self._save()
        number = self.world.signal_number or signal.SIGINT
        raise Interrupted(
            f"stopped at step {self.progress.step}, in epoch {self.progress.epoch + 1}; go on with: "
            f"python -m fastalex.train --resume {self.folder}",
            number,
        )

    def _save(self) -> None:
        for loader in (self.training_data, self.validation_data):
            self.progress.add_replaced(loader.split, loader.replaced)
        parameters = dict(self.engine.stage.named_parameters())
        weights = self.world.gather({name: parameter.data for name, parameter in parameters.items()})
        velocities = self.world.gather({name: self.optimizer.velocity(p) for name, p in parameters.items()})
        if self.world.is_first:
            save_checkpoint(self.folder, weights, velocities, self.progress, self.config.network)
        self.world.barrier()  # nobody says that it is saved before it is
