"""The training run: restore, build, then per step fetch, forward-backward, update, count and report.

Every worker runs the same loop over the same order of images, so all make the same steps without asking each other.
Every few steps they exchange one small vector: the counts of the last stage, and whether any worker was asked to stop
or wants a checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

import dataloading
import kernels
from dataloading import Batch, Loader
from fastalex.datasets import AnyDataset, open_prepared
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.metrics import Metrics
from fastalex.network.model import AlexNet
from fastalex.network.precision import configure_libraries, slow_precision
from fastalex.network.weights import load_parameters, start_from
from fastalex.options.training import resume_command
from fastalex.parallel.block_times import balance_split
from fastalex.parallel.engine import Engine
from fastalex.parallel.partition import format_split
from fastalex.parallel.pipeline import build_engine
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import plateau_divisions
from fastalex.training.checkpoint import (
    checkpoints_of,
    load_state,
    load_velocities,
    publish,
    record_of,
    remove_unfinished,
    save_checkpoint,
)
from fastalex.training.config import RunConfig
from fastalex.training.counters import Counters
from fastalex.training.graphed_step import build_step
from fastalex.training.memory import keep_freed_memory, out_of_memory_error, peak_bytes
from fastalex.training.metrics_log import Rate, Stopwatch
from fastalex.training.reporting import Reporter, SilentReporter, steps_between_reports
from fastalex.training.state import TrainingState
from fastalex.training.validation import count_errors

SECONDS_BETWEEN_CHECKPOINTS = 15 * 60.0
"""A run that does not save by steps saves after this time at the latest."""

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def train(world: World, config: RunConfig, *, is_brief: bool = False) -> None:
    """Train to the recipe's last epoch, from the start or from the latest checkpoint in the run folder.

    Args:
        is_brief: print neither what is trained nor the epochs and results; a caller with many runs does that.

    Raises:
        Interrupted: a worker was asked to stop. The run was saved first.
        ConfigurationError: a non-finite loss, too little memory, a checkpoint that does not fit, or a file that cannot
            be written. The last checkpoint is still there.
    """
    # Set up the process and this worker's part of the layout.
    if world.device.type == "cpu":
        keep_freed_memory()
    configure_libraries(config.precision)
    world.arrange(config.parallel.layout)
    try:
        # Restore the weights, and balance the split first if that was asked for.
        checkpoint = find_checkpoint(world, config.folder)
        model = restore_model(config, checkpoint)
        if config.measure_split:
            config = with_measured_split(world, config, model)
        # Build, then run.
        with contextlib.closing(Trainer(world, config, model, checkpoint, is_brief=is_brief)) as trainer:
            trainer.run()
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_ERRORS:
            raise
        raise ConfigurationError(
            f"{error.filename or config.folder}: {error.strerror}; once this is fixed, resume with: "
            f"{resume_command(config.folder)}"
        ) from None
    except (RuntimeError, MemoryError) as error:
        out_of_memory = out_of_memory_error(error, config, world.pipeline_rank, world.device)
        if out_of_memory is None:
            raise
        raise out_of_memory from None


def find_checkpoint(world: World, run: Path) -> Path | None:
    """The latest checkpoint of a run, or None if it starts from the beginning.

    Raises:
        ConfigurationError: the workers see different checkpoints.
    """
    checkpoint = next(reversed(checkpoints_of(run)), None)
    names = world.gather_objects(checkpoint.name if checkpoint else "none")
    for rank, name in enumerate(names):
        if name != names[0]:
            raise ConfigurationError(
                f"the latest checkpoint in {run} is {names[0]} for worker 0 and {name} for worker {rank}; choose a run "
                "folder that all machines share"
            )
    return checkpoint


def restore_model(config: RunConfig, checkpoint: Path | None) -> AlexNet:
    """The network with the weights of a checkpoint, or with its initial weights, in the precision of the run."""
    model = config.network.build(seed=config.seed)
    if checkpoint:
        load_parameters(model, checkpoint / "model.safetensors")
    elif config.init_from:
        start_from(model, config.network, Path(config.init_from))
    model.set_precision(config.precision)
    return model


def with_measured_split(world: World, config: RunConfig, model: AlexNet) -> RunConfig:
    """The run with a split that balances measured block times. The first worker saves it, so a resumed run keeps it."""
    if world.is_first:
        with contextlib.suppress(OSError):
            print("timing every block on the devices, to balance the split", flush=True)
    split = balance_split(world, model, config.parallel, config.recipe.batch_size)
    config = replace(config, parallel=replace(config.parallel, split=split), measure_split=False)
    if world.is_first:
        config.save()
        with contextlib.suppress(OSError):
            print(f"split by measured block times: later stages begin with {format_split(split)}", flush=True)
    return config


def open_loaders(world: World, config: RunConfig, dataset: AnyDataset, engine: Engine) -> tuple[Loader, Loader]:
    """The training and the validation loader of this worker.

    Images are read where the first stage is, labels where the last stage is, both only for this replica's rows.
    """
    recipe, on_gpu = config.recipe, world.device.type == "cuda"
    # Only first stages decode. Every thread has buffers of its own on the GPU; 64 threads are enough for any machine.
    cores = len(os.sched_getaffinity(0))
    threads = max(1, min(64, cores, cores * config.parallel.machines // world.layout.replicas)) if on_gpu else 1
    common: dict[str, Any] = {
        "crop_size": engine.stage.architecture.image_size,
        "seed": config.seed,
        "reshuffle": recipe.order == "shuffled",
        "device": world.device.index if on_gpu else None,
        "threads": threads,
        "replica": world.replica,
        "replicas": world.layout.replicas,
        "images": engine.is_first,
        "labels": engine.is_last,
        "on_bad_sample": config.on_bad_sample,
        "hardware_decoder_load": config.hardware_decoder_load,
    }
    augment = dataloading.Augmentation(
        flip=recipe.flip,
        color_noise=lambda finished: recipe.color_noise_at(finished + 1),
        crops_shared_by=recipe.crops_shared_by,
        random_crop=recipe.crops,
        resized_crop=recipe.resized_crops,
    )
    rows = engine.batch_size
    training = Loader(dataset, "train", rows, shuffle=True, augment=augment, drop_last=True, **common)
    validation = Loader(dataset, "val", rows, shuffle=False, augment=None, drop_last=False, **common)
    return training, validation


class Trainer:
    """One worker's part of a run. Building it writes no file and prints nothing; :meth:`run` does.

    Args:
        world: this worker, arranged in the run's layout.
        model: the whole network, with the weights to start from.
        checkpoint: where the weights come from; None for initial weights.
        is_brief: as for :func:`train`.
    """

    def __init__(
        self, world: World, config: RunConfig, model: AlexNet, checkpoint: Path | None, *, is_brief: bool = False
    ) -> None:
        self.world, self.config, self.recipe, self.checkpoint = world, config, config.recipe, checkpoint

        # The network, its optimizer and the state to resume from.
        self.engine = build_engine(model, world, config.parallel, config.recipe.batch_size)
        stage = self.engine.stage
        self.optimizer = KrizhevskySGD(stage, config.recipe, stage.compute_copies())
        self.state = TrainingState()
        if checkpoint:
            self.state = load_state(checkpoint)
            parameters = dict(stage.named_parameters())
            for name, velocity in load_velocities(checkpoint, parameters).items():
                self.optimizer.velocity(parameters[name]).copy_(velocity)
            self.optimizer.velocity_rates = {
                name: rate for name, rate in self.state.velocity_rates.items() if name in parameters
            }

        # The data. Images that do not fill the last batch of an epoch are left out of it.
        self.dataset = open_prepared(config.data, config.fraction, config.seed, by_channel=config.network.channel_means)
        self.training_data, self.validation_data = open_loaders(world, config, self.dataset, self.engine)
        self.batch_size = config.recipe.batch_size
        self.images_per_epoch = self.dataset.count("train")
        self.steps_per_epoch = self.images_per_epoch // self.batch_size

        # The step, what counts it, and what shows it.
        self.reporter = Reporter(config, self.dataset, is_brief=is_brief) if world.is_first else SilentReporter()
        self.step = build_step(
            self.engine,
            self.optimizer,
            on_non_finite=config.on_non_finite,
            agree=world.minimum,
            graphs=config.cuda_graphs,
            overlap_update=config.overlap_update,
            say=self.reporter.note if world.is_first else self._note_of_this_worker,
        )
        self.counters = Counters(
            world,
            self.step,
            self.state,
            config.folder,
            steps_per_epoch=self.steps_per_epoch,
            wants_save=self._wants_save,
        )
        self._saved_at = time.monotonic()
        self.report_every = steps_between_reports(self.steps_per_epoch)
        self.peak_bytes = 0

    def run(self) -> None:
        """Train the remaining epochs. Each ends with a validation and a checkpoint."""
        self._start()
        self._saved_at = time.monotonic()
        state = self.state
        while state.epoch < self.recipe.epochs:
            # Learning rates follow the recipe and, with a plateau, the validation errors so far.
            divisions = plateau_divisions(state.errors, self.recipe.plateau) if self.recipe.plateau else 0
            self.optimizer.set_epoch(state.epoch + 1, divisions)
            self._train_epoch()
            metrics, rate = self._validate()
            state.errors.append(metrics.top1_error)
            self.reporter.validated(state, metrics, rate)
            state.epoch, state.samples = state.epoch + 1, 0
            self._save()
        self.reporter.end(state, self.world.gather_objects(self.peak_bytes))

    def close(self) -> None:
        """Stop the loaders and close the files."""
        self.training_data.close()
        self.validation_data.close()
        self.reporter.close()

    def _start(self) -> None:
        """Say what is trained, and what a user should know about it."""
        config, world = self.config, self.world
        if world.is_first:  # the run may have been interrupted while it saved
            remove_unfinished(config.folder)
            if self.checkpoint:
                publish(config.folder, self.checkpoint, config.keep)
        self.reporter.start(self.state)
        notes = [slow_precision(config.precision, world.device), self.recipe.coasting_note(self.steps_per_epoch)]
        if world.device.type == "cuda" and config.cuda_graphs is not False:
            notes.append(self.engine.capture_obstacle(config.cuda_graphs))
        for note in filter(None, notes):
            self.reporter.note(note)

    def _train_epoch(self) -> None:
        """Train the rest of the current epoch."""
        state, counters = self.state, self.counters
        batches = iter(self.training_data.epoch(state.epoch, start_sample=state.samples))
        with self.reporter.epoch(state):
            watch, is_last = Stopwatch(), self._epoch_is_done()
            while not is_last:
                # Fetch a batch.
                with watch.waiting_for_data():
                    batch = next(batches)

                # Forward, backward and update.
                counts = self.train_step(batch)

                # Count. The host learns the counts a few steps later.
                watch.images += self.batch_size
                counters.add(counts)
                is_last = self._epoch_is_done()
                saves = not is_last and self.config.save_every and state.step % self.config.save_every == 0
                if not (is_last or saves) and state.step % counters.exchange_every:
                    continue
                is_due = is_last or saves or watch.images >= self.report_every * self.batch_size
                counters.send(self._lap(watch) if is_due else None)

                # Report what is due.
                for report in counters.receive(everything=is_last or bool(saves)):
                    self.reporter.trained(report)

                # Save, or stop, if any worker was asked to.
                if counters.stop_requested or saves or (counters.save_requested and not is_last):
                    for report in counters.receive_rest(self._lap(watch)):
                        self.reporter.trained(report)
                    if counters.stop_requested:
                        self._save_and_stop()
                    self._save()
                    watch.lap()  # saving is not training
        self.peak_bytes = max(self.peak_bytes, peak_bytes(self.world.device))

    def train_step(self, batch: Batch) -> Tensor | None:
        """One update; returns the batch's counts where the last stage is, else None.

        Dropout masks depend on the seed and the step alone, so a resumed run draws the same ones.
        """
        state = self.state
        self.optimizer.set_warmup(
            self.recipe.warmup_at(state.epoch + (state.samples + self.batch_size) / self.images_per_epoch)
        )
        counts = self.step(batch.images, batch.labels, kernels.philox.derive_seed(self.config.seed, state.step))
        state.step += 1
        state.samples += self.batch_size
        return counts

    def _epoch_is_done(self) -> bool:
        """Whether fewer images are left than a batch."""
        return self.state.samples + self.batch_size > self.images_per_epoch

    def _lap(self, watch: Stopwatch) -> Rate:
        """The rate since the last report. Its seconds count as training time."""
        rate = watch.lap()
        self.state.seconds += rate.seconds
        return rate

    def _wants_save(self) -> bool:
        """Whether the time for a checkpoint has come. The clock of the first worker counts."""
        by_clock = self.world.is_first and self.config.save_every is None
        return by_clock and time.monotonic() - self._saved_at >= SECONDS_BETWEEN_CHECKPOINTS

    def _validate(self) -> tuple[Metrics, Rate]:
        """Error rates on the validation images."""
        watch = Stopwatch()
        counts = count_errors(self.engine, self.validation_data.epoch(0), stopped=self.world.stop_requested)
        if counts is None:
            self._save_and_stop()
        metrics = Metrics.from_counts(self.world.sum(counts))
        self.counters.check_finite(metrics.loss)  # before broken weights replace the last checkpoint
        watch.images = metrics.images
        return metrics, watch.lap()

    def _save(self) -> None:
        """Gather weights and velocities of all stages; the first worker writes a checkpoint.

        Raises:
            NonFiniteLoss: the weights are not finite.
            ConfigurationError: the checkpoint cannot be written.
        """
        state, world = self.state, self.world
        for loader in (self.training_data, self.validation_data):
            for replaced in world.gather_objects(loader.replaced):
                state.add_replaced(loader.split, replaced)
        for rates in world.gather_objects(self.optimizer.velocity_rates):
            state.velocity_rates |= rates
        parameters = dict(self.engine.stage.named_parameters())
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in parameters.values()]).all()
        self.counters.check_weights(bool(world.minimum(finite.double())))  # before they replace the last checkpoint
        weights = world.gather({name: parameter.data for name, parameter in parameters.items()})
        velocities = world.gather({name: self.optimizer.velocity(p) for name, p in parameters.items()})
        # No worker goes on before the checkpoint is complete; all end if it cannot be written.
        world.from_first(lambda: self._write_checkpoint(weights, velocities))
        self._saved_at, self.counters.save_requested = time.monotonic(), False

    def _write_checkpoint(self, weights: dict[str, Tensor], velocities: dict[str, Tensor]) -> None:
        run, config = self.config.folder, self.config
        try:
            record = record_of(config, self.dataset, self.state)
            save_checkpoint(run, weights, velocities, self.state, config.network, record, config.keep)
        except OSError as error:
            saved = checkpoints_of(run)
            raise ConfigurationError(
                f"a checkpoint cannot be saved: {error.filename or run}: {error.strerror}; "
                f"{f'the last good one is {saved[-1]}' if saved else 'there is none yet'}; once this is fixed, resume "
                f"with: {resume_command(run)}"
            ) from None

    def _save_and_stop(self) -> NoReturn:
        self._save()
        state = self.state
        raise Interrupted(
            f"stopped and saved at step {state.step}, in epoch {state.epoch + 1} of {self.recipe.epochs}; resume with: "
            f"{resume_command(self.config.folder)}",
            self.world.signal_number or signal.SIGINT,
        )

    def _note_of_this_worker(self, text: str) -> None:
        """Print a message from a worker that does not write the log."""
        print(f"worker {self.world.rank}: {text}", file=sys.stderr)
