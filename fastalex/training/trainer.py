"""The training run: epochs, schedule, validation, checkpoints.

Every worker runs the same loop over the same order of images, so they meet in the same steps without asking each
other; what they do exchange, every few steps, is one small vector with the counts of the last stage and whether anyone
was told to stop.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

import dataloading
import kernels
from dataloading.loader import Batch, Loader
from fastalex.console import command
from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError, Interrupted, NonFiniteLoss
from fastalex.metrics import Metrics
from fastalex.network.precision import configure_libraries, slow_precision
from fastalex.network.variation import narrow_init_warning
from fastalex.network.weights import load_parameters, load_tensors, start_from
from fastalex.parallel.engine import DataParallel, Replica, SingleDevice
from fastalex.parallel.partition import parse_split
from fastalex.parallel.pipeline import Pipeline
from fastalex.parallel.tuning import orders_of, settle
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import plateau_divisions
from fastalex.training.allocator import keep_freed_memory
from fastalex.training.checkpoint import latest_checkpoint, load_state, publish, save_checkpoint
from fastalex.training.config import RunConfig
from fastalex.training.graphed_step import build_step, capture_obstacle
from fastalex.training.memory import peak_bytes, ran_out
from fastalex.training.metrics_log import Rate, Stopwatch
from fastalex.training.readback import DelayedReadback
from fastalex.training.reporting import Reporter, SilentReporter
from fastalex.training.state import TrainingState
from fastalex.training.validation import count_errors


def train(world: World, config: RunConfig) -> None:
    """Train from the start, or from the latest checkpoint in the run folder, to the recipe's last epoch.

    Raises:
        Interrupted: told to stop; a checkpoint was written first.
        ConfigurationError: the loss is no longer finite, the memory does not suffice, or a checkpoint does not fit.
    """
    trainer = None
    try:
        trainer = Trainer(world, config)
        trainer.run()
    except (RuntimeError, MemoryError) as error:
        full = ran_out(error, trainer.config if trainer else config, world.pipeline_rank, world.device)
        if full is None:
            raise
        raise full from None
    finally:
        if trainer:
            trainer.close()


# So many skipped steps in a row, or an epoch of them, end the run: weights that no step changes do not get better.
_MOST_SKIPPED = 100


@dataclass(frozen=True)
class _Mark:
    """Where the run stood when counts were sent to the host; the rate is None where nothing is to be reported then."""

    progress: TrainingState
    rate: Rate | None


class Trainer:
    """One worker's part of a run."""

    def __init__(self, world: World, config: RunConfig) -> None:
        if world.device.type == "cpu":
            keep_freed_memory()
        world.arrange(config.layout)
        configure_libraries(config.precision)
        config = settle(world, config)
        self.world = world
        self.config = config
        self.recipe = config.recipe
        self.folder = Path(config.output)
        self.dataset = open_prepared(config.data, config.fraction, config.seed)
        self.engine = self._build_engine()
        self.progress = TrainingState()
        self.optimizer = self._build_optimizer()
        self.batch_size = self.recipe.batch_size
        self.steps_per_epoch = self.dataset.count("train") // self.batch_size
        # Asking the others costs a fraction of a millisecond: nothing beside a step on a CPU, something on a GPU.
        self.exchange_every = 1 if world.device.type == "cpu" else 10
        # On a GPU counts are read while the next ten steps run.
        self.late: DelayedReadback[_Mark] = DelayedReadback(0 if world.device.type == "cpu" else 1)
        self.peak_bytes = 0
        self.log_every = min(50, max(1, self.steps_per_epoch // 20))
        self.told_to_stop = False
        self._first_step = self._last_finite_step = self.progress.step
        self._skipped_before = self.progress.skipped
        self.training_data, self.validation_data = self._open_loaders()
        self.reporter = Reporter(self.folder, self.progress.step) if world.is_first else SilentReporter()
        self.step = build_step(
            self.engine,
            self.optimizer,
            on_non_finite=config.on_non_finite,
            agree=world.minimum,
            graphs=config.cuda_graphs,
            say=self.reporter.note if world.is_first else self._say_here,
        )

    # --- building -----------------------------------------------------------------------------------------------------

    def _build_engine(self) -> SingleDevice | Pipeline:
        config, world = self.config, self.world
        model = config.network.build(seed=config.seed)
        self.resumed_from = latest_checkpoint(self.folder) if (self.folder / "checkpoints").is_dir() else None
        self._check_shared(self.resumed_from.name if self.resumed_from else "none")
        if self.resumed_from:
            load_parameters(model, self.resumed_from / "model.safetensors")
            if world.is_first:
                publish(self.folder, self.resumed_from)
        elif config.init_from:
            start_from(model, config.network, Path(config.init_from))
        model.set_precision(config.precision)
        (layout, schedule), micro_batches = config.arranged, config.micro_batches or 1
        batch_size = self.recipe.batch_size // layout.replicas
        replica = Replica(world.replica, world.replica_group) if layout.replicas > 1 else None
        if layout.stages == 1:
            if replica is None:
                return SingleDevice(model, world.device, batch_size, micro_batches)
            return DataParallel(model, world.device, batch_size, micro_batches, replica)
        return Pipeline(
            model,
            parse_split(model.architecture, config.split, layout.stages),
            world.pipeline_rank,
            world.device,
            batch_size,
            micro_batches,
            schedule,
            orders=orders_of(world, config, model.architecture),
            ranks=layout.ranks,
            group=world.pipeline_group,
            replica=replica,
        )

    def _check_shared(self, checkpoint: str) -> None:
        """Refuse workers that would go on from different places."""
        found = self.world.gather_objects(checkpoint)
        for rank, other in enumerate(found):
            if other != found[0]:
                raise ConfigurationError(
                    f"the latest checkpoint in {self.folder} is {found[0]} for worker 0 and {other} for worker {rank}; "
                    "put the run folder where all machines see it (--output)"
                )

    def _build_optimizer(self) -> KrizhevskySGD:
        stage = self.engine.stage
        optimizer = KrizhevskySGD(stage, self.recipe, stage.compute_copies())
        if self.resumed_from:
            self.progress = load_state(self.resumed_from)
            parameters = dict(stage.named_parameters())
            for name, velocity in load_tensors(self.resumed_from / "trainer.safetensors", parameters).items():
                optimizer.velocity(parameters[name]).copy_(velocity)
        return optimizer

    def _open_loaders(self) -> tuple[Loader, Loader]:
        engine, world, recipe = self.engine, self.world, self.recipe
        on_gpu = world.device.type == "cuda"
        # Only the first stages decode. Each thread has buffers of its own on the GPU; 64 are plenty.
        cores = len(os.sched_getaffinity(0))
        threads = max(1, min(64, cores, cores * self.config.machines // world.layout.replicas)) if on_gpu else 1
        common: dict[str, Any] = {
            "crop_size": engine.stage.architecture.image_size,
            "seed": self.config.seed,
            "device": world.device.index if on_gpu else None,
            "threads": threads,
            "replica": world.replica,
            "replicas": world.layout.replicas,
            "images": engine.is_first,
            "labels": engine.is_last,
            "on_bad_sample": self.config.on_bad_sample,
            "hardware_decoder_load": self.config.hardware_decoder_load,
        }
        augment = dataloading.Augmentation(
            flip=recipe.flip,
            color_noise=recipe.color_noise_at,
            crops_shared_by=recipe.crops_shared_by,
            random_crop=recipe.crops,
        )
        ours = engine.batch_size
        training = Loader(self.dataset, "train", ours, shuffle=True, augment=augment, drop_last=True, **common)
        validation = Loader(self.dataset, "val", ours, shuffle=False, augment=None, drop_last=False, **common)
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
        notes = [slow_precision(self.config.precision, self.world.device)]
        if self.world.device.type == "cuda" and self.config.cuda_graphs is not False:
            notes.append(capture_obstacle(self.engine, self.config.cuda_graphs))
        if not progress.step and not self.config.init_from:
            notes.append(narrow_init_warning(self.engine.stage.architecture, self.config.network.variation))
        for note in filter(None, notes):
            self.reporter.note(note)
        while progress.epoch < self.recipe.epochs:
            self._set_learning_rates()
            self._train_epoch()
            metrics, rate = self._validate()
            progress.errors.append(metrics.top1_error)
            self.reporter.validated(progress, self.recipe, metrics, rate)
            progress.epoch, progress.samples = progress.epoch + 1, 0
            self._save()
        peaks = torch.zeros(self.world.size, dtype=torch.float64)
        peaks[self.world.rank] = self.peak_bytes
        self.reporter.end(progress, self.dataset, [int(peak) for peak in self.world.sum(peaks)])

    def _say_here(self, text: str) -> None:
        """Of what befell this worker alone, which is not the one that reports."""
        print(f"worker {self.world.rank}: {text}", file=sys.stderr)

    def _set_learning_rates(self) -> None:
        divisions = plateau_divisions(self.progress.errors, self.recipe.plateau) if self.recipe.plateau else 0
        self.optimizer.set_epoch(self.progress.epoch, divisions)

    def _train_epoch(self) -> None:
        """The rest of the current epoch; the images that do not fill a batch are left for another epoch's order."""
        progress = self.progress
        last_start = self.dataset.count("train") - self.batch_size
        batches = iter(self.training_data.epoch(progress.epoch, start_sample=progress.samples))
        pending = torch.zeros(4, dtype=torch.float64, device=self.world.device)  # not yet on its way to the host
        self._window = torch.zeros(4, dtype=torch.float64)  # known to all workers, not yet reported
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
                    self._put(pending, watch, due=is_last or watch.images >= self.log_every * self.batch_size)
                    self._account(everything=is_last)
                    if self.told_to_stop:
                        self._account(everything=True)
                        if self._window[3]:
                            self._report(self._mark(watch.lap()))
                        self._stop()
        self.peak_bytes = max(self.peak_bytes, peak_bytes(self.world.device))

    def _step(self, batch: Batch) -> Tensor | None:
        """One update; returns the batch's counts where the last stage is."""
        seed = kernels.philox.derive_seed(self.config.seed, self.progress.step)
        self.optimizer.set_warmup(
            self.recipe.warmup_at(
                self.progress.epoch + (self.progress.samples + self.batch_size) / self.dataset.count("train")
            )
        )
        counts = self.step(batch.images, batch.labels, seed)
        self.progress.step += 1
        self.progress.samples += self.batch_size
        return counts

    def _put(self, pending: Tensor, watch: Stopwatch, *, due: bool) -> None:
        """Send the counts since the last call on their way to the host, with a note of where the run stands."""
        step = self.step
        events = torch.stack([step.first_bad, step.skipped * (self.engine.is_last and self.world.replica == 0)])
        mark = self._mark(watch.lap() if due else None)
        self.late.put(torch.cat([pending, events.double()]), mark)
        pending.zero_()

    def _mark(self, rate: Rate | None) -> _Mark:
        if rate is not None:
            self.progress.seconds += rate.seconds
        return _Mark(replace(self.progress), rate)

    def _account(self, *, everything: bool) -> None:
        """Share the counts that have arrived among all workers, and report those that are due."""
        for counts, mark in self.late.take(everything=everything):
            *totals, _, skipped = self._exchange(counts).tolist()
            if self.config.on_non_finite == "stop" and not math.isfinite(totals[0]):
                calls = self.world.gather_objects(int(counts[4]))  # 0 where all was well
                self._check_finite(totals[0], self._first_step + min(call for call in calls if call))
            self._window += torch.tensor(totals, dtype=torch.float64)
            self.progress.skipped = mark.progress.skipped = self._skipped_before + int(skipped)
            if mark.rate is not None:
                self._report(mark)

    def _report(self, mark: _Mark) -> None:
        assert mark.rate is not None
        step = mark.progress.step
        if not self._window[3]:  # nothing but skipped steps: there is nothing to report
            if step - self._last_finite_step >= min(_MOST_SKIPPED, self.steps_per_epoch):
                raise NonFiniteLoss(
                    f"all {step - self._last_finite_step} steps up to step {step} were skipped, as their loss or "
                    f"gradients were not finite; {self._way_out()}"
                )
            return
        self._last_finite_step = step
        metrics = Metrics.from_counts(self._window)
        self.reporter.trained(mark.progress, metrics, mark.rate, self._learning_rate())
        self._window.zero_()

    def _learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"] * self.optimizer.warmup

    def _exchange(self, values: Tensor) -> Tensor:
        """Add up a vector of all workers on the CPU, and learn whether anyone was told to stop."""
        shared = torch.cat([values, torch.tensor([self.world.signal_number], dtype=torch.float64)])
        self.world.sum(shared)
        self.told_to_stop = self.told_to_stop or bool(shared[-1])
        return shared[:-1]

    def _check_finite(self, loss: float, step: int) -> None:
        if not math.isfinite(loss):
            rate = self._learning_rate()
            raise NonFiniteLoss(f"the loss is {loss} at step {step} with learning rate {rate:g}; {self._way_out()}")

    def _way_out(self) -> str:
        checkpoints = self.folder / "checkpoints"
        checkpoint = latest_checkpoint(self.folder) if checkpoints.is_dir() and any(checkpoints.iterdir()) else None
        if checkpoint is None:
            return "there is no checkpoint yet: start anew with a lower --lr, or with --on-non-finite skip"
        return (
            f"the last good checkpoint is {checkpoint}: lower --lr (or add --on-non-finite skip) and go on from it by "
            f"--resume {self.folder}"
        )

    def _validate(self) -> tuple[Metrics, Rate]:
        watch = Stopwatch()
        nothing = torch.zeros(1, dtype=torch.float64)

        def stopped() -> bool:
            self._exchange(nothing)
            return self.told_to_stop

        counts = count_errors(self.engine, self.validation_data.epoch(0), stopped=stopped)
        if counts is None:
            self._stop()
        assert counts is not None
        metrics = Metrics.from_counts(self.world.sum(counts))
        # Before weights that are beyond repair replace the last checkpoint.
        self._check_finite(metrics.loss, self.progress.step)
        watch.images = metrics.images
        return metrics, watch.lap()

    def _stop(self) -> NoReturn:
        self._save()
        number = self.world.signal_number or signal.SIGINT
        raise Interrupted(
            f"stopped at step {self.progress.step}, in epoch {self.progress.epoch + 1}; go on with: "
            f"{command('fastalex.train', '--resume', self.folder)}",
            number,
        )

    def _save(self) -> None:
        for loader in (self.training_data, self.validation_data):
            for replaced in self.world.gather_objects(loader.replaced):
                self.progress.add_replaced(loader.split, replaced)
        parameters = dict(self.engine.stage.named_parameters())
        weights = self.world.gather({name: parameter.data for name, parameter in parameters.items()})
        velocities = self.world.gather({name: self.optimizer.velocity(p) for name, p in parameters.items()})
        if self.world.is_first:
            save_checkpoint(self.folder, weights, velocities, self.progress, self.config.network)
        self.world.barrier()  # nobody says that it is saved before it is
