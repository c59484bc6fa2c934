"""From ``--devices`` to worker processes, one per device, on torch's elastic launcher.

One device runs in this process. Several start one worker each; the same command started by ``torchrun``, on one machine
or on several, finds itself a worker already and starts nothing. Whatever ends the command ends its workers: a failing
worker takes the others with it, signals are passed on, and a worker whose parent dies is killed by the kernel.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from dataloading import DatasetError
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.parallel.failures import WorkerError, _lost_a_peer, _raise_cause, _watch_peers
from fastalex.parallel.layout import Layout
from fastalex.parallel.rendezvous import _meet, _open_store
from fastalex.parallel.world import World

# A peer that dies is noticed at once on gloo; this is how long a peer may be silent, loading data or compiling.
PEER_TIMEOUT = timedelta(minutes=10)


Worker = Callable[[World, Any], None]


def run_workers(worker: Worker, argument: Any, devices: Sequence[torch.device], restarts: int = 0) -> None:
    """Call ``worker(world, argument)`` once per device and return when all have.

    Args:
        worker: a module-level function (several devices import it in new processes).
        argument: picklable.
        devices: of this machine.
        restarts: how often to start all workers again after one has failed; ``worker`` goes on from its checkpoint.

    Raises:
        ConfigurationError, Interrupted: raised by a worker.
        WorkerError: a worker failed or was killed.
    """
    if len(devices) == 1 and not restarts:
        _run_here(worker, argument, World(0, 1, devices[0]))
    else:
        _run_with_restarts(worker, argument, devices, restarts)


def _run_with_restarts(worker: Worker, argument: Any, devices: Sequence[torch.device], restarts: int) -> None:
    """A failed worker is replaced with all others; what a user has to change or has asked for is not tried again."""
    for restart in range(1, restarts + 1):
        try:
            return _run_elastic(worker, argument, devices)
        except WorkerError as error:
            print(
                f"{str(error).splitlines()[0].rstrip(':')}; restarting from the last checkpoint ({restart} of "
                f"{restarts})",
                file=sys.stderr,
                flush=True,
            )
    return _run_elastic(worker, argument, devices)


def _run_here(worker: Worker, argument: Any, world: World) -> None:
    previous = _catch_signals(world, insist=True)
    try:
        if world.device.type == "cuda":
            torch.cuda.set_device(world.device)
        worker(world, argument)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run_worker(worker: Worker, argument: Any, devices: Sequence[torch.device], store: dist.Store) -> None:
    """The body of one of several workers: rank and rendezvous come from the launcher's environment."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, devices[int(os.environ.get("LOCAL_RANK", rank))], layout=Layout(ranks=size))
    store = _meet(store, world)
    if world.device.type == "cpu":
        torch.set_num_threads(_threads(len(devices)))
        dist.init_process_group("gloo", timeout=PEER_TIMEOUT, store=store, rank=rank, world_size=size)
    else:
        torch.cuda.set_device(world.device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl",
            timeout=PEER_TIMEOUT,
            store=store,
            rank=rank,
            world_size=size,
            device_id=world.device,
        )
    _catch_signals(world)  # not earlier: until all have met, a signal had better end the process
    worker(world, argument)
    world.barrier()
    # Only after success: with operations under way this would wait for peers that may be gone.
    dist.destroy_process_group()


def _threads(workers: int) -> int:
    """Threads of each CPU worker: OMP_NUM_THREADS if set, else twice its share of the cores.

    Stages wait for each other at the pipeline's ends, and a stage that waits leaves its cores to the others.
    """
    cores = len(os.sched_getaffinity(0))
    return int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, min(cores, 2 * cores // workers))


def _catch_signals(world: World, *, insist: bool = False) -> dict[int, Any]:
    """Let signals set a flag. With ``insist`` a second Ctrl-C does what it always does."""

    def note(number: int, frame: FrameType | None) -> None:
        if insist and world.signal_number:
            raise KeyboardInterrupt
        world.signal_number = number

    return {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}


def _run_elastic(worker: Worker, argument: Any, devices: Sequence[torch.device]) -> None:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher logs what it does about a failure over dozens of lines; the one line that matters is said below.
    # Its loggers have levels of their own, so silencing their parent would not do.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # How long workers may take to write their last checkpoint. Those that wait for a dead peer end themselves sooner.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    # Threads that wait for work sleep; by default they spin, on cores that another worker could use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix="fastalex-") as directory:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(devices),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=directory),
        )
        failures = Path(directory) / "failures"
        failures.mkdir()
        number = 0
        try:
            elastic_launch(config, _elastic_worker)(worker, argument, tuple(devices), str(failures), os.getpid())
        except SignalException as error:
            number = int(error.sigval)
            _stop_heartbeat()
            for process in torch.multiprocessing.active_children():  # told so again, it stopped waiting for them
                process.kill()
        except ChildFailedError as error:
            _raise_cause(failures, error, devices)
        _raise_cause(failures, None, devices, number)


def _stop_heartbeat() -> None:
    """Stop what torch's launcher leaves running where a signal ends it.

    Its heartbeat holds on to the launcher now and then. Were it the last to do so, it would clean up, which is to wait
    for itself, and print an error. So this is to be called while the launcher still exists, as the signal's exception
    sees to.
    """
    from torch.distributed.elastic.rendezvous.utils import _PeriodicTimer

    for thing in gc.get_objects():
        if type(thing) is _PeriodicTimer:
            thing.cancel()


def _elastic_worker(
    worker: Worker, argument: Any, devices: tuple[torch.device, ...], failures: str, parent: int
) -> None:
    """What the elastic launcher runs in each process.

    Success returns, because the launcher waits for the return value. Everything else is written down and left by
    ``os._exit``: an orderly exit would wait for threads that wait for the other workers.
    """
    _die_with_parent(parent)
    rank = int(os.environ["RANK"])
    folder = Path(failures)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    threading.Thread(target=_watch_peers, args=(folder, rank, len(devices)), daemon=True).start()
    try:
        _run_worker(worker, argument, devices, _open_store())
        (folder / f"{rank}.done").touch()
    except BaseException as error:
        report = {
            "time": time.time(),
            "rank": rank,
            "device": str(devices[rank]),
            "type": type(error).__name__,
            "is_user_error": isinstance(error, (ConfigurationError, DatasetError)),
            "message": str(error),
            "signal": getattr(error, "signal_number", 0),
            "traceback": traceback.format_exc(),
        }
        temporary = folder / f".{rank}"
        temporary.write_text(json.dumps(report))
        temporary.rename(folder / f"{rank}.json")
        if isinstance(error, Interrupted):
            (folder / f"{rank}.done").touch()
        sys.stdout.flush()
        sys.stderr.flush()
        if _lost_a_peer(str(error)):
            # Let the launcher find the peer first: its exit code is the cause. It then ends this worker by SIGTERM.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            time.sleep(5)
        os._exit(1)


def _die_with_parent(parent: int) -> None:
    # The kernel's signal is the only thing that ends a worker whose parent was killed outright.
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)
