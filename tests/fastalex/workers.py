"""What the launch tests run in worker processes; here because a spawned process imports it by name."""

import atexit
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import torch

import dataloading
from fastalex.errors import Interrupted
from fastalex.evaluation.ensemble import Evaluation, evaluate
from fastalex.evaluation.features import Extraction, extract
from fastalex.parallel.world import World


def note_pids(world: World, folder: str) -> None:
    """Write this process's id to a file for the test."""
    (Path(folder) / f"{world.rank}.pid").write_text(str(os.getpid()))


class AbortsAtShutdown:
    """Aborts the process that holds it when its interpreter shuts down, as a thread of gloo does now and then."""

    def __del__(self, abort: Callable[[], NoReturn] = os.abort) -> None:
        abort()


def end_well(world: World, folder: str) -> None:
    """Every worker leaves something behind that must not be cleaned up, and a file that an exit function writes."""
    vars(sys)["kept"] = AbortsAtShutdown()  # the last module that a shutdown clears
    atexit.register((Path(folder) / f"{world.rank}.left").touch)
    world.barrier()


def fail_on_last(world: World, _: None) -> None:
    """The last worker raises an exception; the others wait for it."""
    if world.rank == world.size - 1:
        raise RuntimeError("the thing must be 4, got 3")
    world.barrier()


def read_images(world: World, data: str) -> None:
    """The last worker decodes all training images of a data set; the others wait for it."""
    if world.rank == world.size - 1:
        dataset = dataloading.Dataset(data)
        with closing(dataloading.Loader(dataset, "train", 8, shuffle=False, augment=None, drop_last=False)) as loader:
            for _ in loader.epoch(0):
                pass
    world.barrier()


def share(world: World, folder: str) -> None:
    """Every collective operation, between two workers; each saves what it got.

    In the end the last worker receives a signal, and all stop.
    """
    rank = world.rank
    got: dict[str, Any] = {
        "sum": world.sum(torch.tensor([rank + 1.0, 10.0])).tolist(),
        "minimum": world.minimum(torch.tensor([rank + 3.0])).tolist(),
        "objects": world.gather_objects(f"worker {rank}"),
        "from first": world.from_first(lambda: f"made by {rank}"),
    }
    gathered = world.gather({f"w{rank}": torch.full((2,), rank + 1.0), f"b{rank}": torch.ones(1)})
    got["gathered"] = {name: tensor.tolist() for name, tensor in gathered.items()}
    try:
        world.from_first(lambda: 1 // rank)
    except ZeroDivisionError as error:
        got["error"] = str(error)
    got["stop"] = [world.stop_requested()]
    if rank:
        os.kill(os.getpid(), signal.SIGTERM)
    got["stop"] += [world.stop_requested(), world.signal_number]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(got))
    raise Interrupted("stopped", world.signal_number)


def wait_for_the_end(world: World, folder: str) -> None:
    """Work until told to stop."""
    note_pids(world, folder)
    while not world.stop_requested():
        time.sleep(0.05)
    raise Interrupted("stopped", world.signal_number)


def take_two_seconds_to_end(world: World, folder: str) -> None:
    """Work until told to stop, and save for two seconds then."""
    note_pids(world, folder)
    while not world.stop_requested():
        time.sleep(0.05)
    time.sleep(2)
    (Path(folder) / f"{world.rank}.saved").touch()
    raise Interrupted("stopped", world.signal_number)


def heed_nothing(world: World, folder: str) -> None:
    """Hang and ignore all requests to stop."""
    note_pids(world, folder)
    while True:
        time.sleep(1)


def evaluate_and_extract(world: World, argument: tuple[Evaluation, Extraction, Path]) -> None:
    """Judge networks and write activations; the first worker saves the judgement."""
    evaluation, extraction, path = argument
    judgement = evaluate(world, evaluation)
    if world.is_first:
        torch.save(judgement, path)
    extract(world, extraction)
