"""Run a function on every device of this machine: in this process for one, else in one worker process per device.

Workers are started by torch's elastic launcher. They end with the command, however it ends: a failed worker takes the
others with it, signals are forwarded, and the kernel kills a worker whose parent dies.

Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 ask for an end: the work that is under way is saved first. SLURM can be told to send
SIGUSR1 before the time is up. A SIGHUP that the process was told to ignore, as by nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from dataloading.process import die_with_parent
from fastalex.errors import Aborted, WorkerError
from fastalex.parallel.failures import leave, read_reports, report_and_exit, root_cause, watch_peers
from fastalex.parallel.layout import Layout
from fastalex.parallel.rendezvous import meet, open_store
from fastalex.parallel.world import World

# How long a peer may be silent while it loads data or compiles. On gloo, a peer that dies is noticed at once.
PEER_TIMEOUT = timedelta(minutes=10)

Worker = Callable[[World, Any], None]

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

_interruptions: list[SignalException] = []  # kept until this process ends; see _run_elastic


def run_workers(
    worker: Worker,
    argument: Any,
    devices: Sequence[torch.device],
    restarts: int = 0,
    *,
    saves_checkpoint: bool = False,
) -> None:
    """Call ``worker(world, argument)`` once per device and return when all calls have returned.

    Args:
        worker: a module-level function (new processes import it). It checks ``world.stop_requested()`` regularly.
        argument: picklable.
        devices: of this machine.
        restarts: how often to start all workers again after one has failed; ``worker`` resumes from its checkpoint.
        saves_checkpoint: whether ``worker`` saves a checkpoint when it is told to stop; Ctrl-C then says so.

    Raises:
        ConfigurationError, DatasetError, Interrupted: raised by a worker.
        WorkerError: a worker failed or was killed.
    """
    with _handlers_restored():
        if len(devices) == 1 and not restarts:
            _run_here(worker, argument, devices[0], saves_checkpoint)
            return
        for restart in range(1, restarts + 1):
            try:
                return _run_elastic(worker, argument, devices, saves_checkpoint)
            except WorkerError as error:  # other errors would come again
                cause = str(error).splitlines()[0].rstrip(":")
                with contextlib.suppress(OSError):
                    print(
                        f"{cause}; restarting from the last checkpoint ({restart} of {restarts})",
                        file=sys.stderr,
                        flush=True,
                    )
        _run_elastic(worker, argument, devices, saves_checkpoint)


@contextlib.contextmanager
def _handlers_restored() -> Iterator[None]:
    """Put the signal handlers back that this module and torch's launcher replace."""
    numbers = (*_STOP_SIGNALS, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except SignalException as error:  # while no worker was running
        raise Aborted("interrupted", int(error.sigval)) from None
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # not installed by Python
                signal.signal(number, handler)


def _run_here(worker: Worker, argument: Any, device: torch.device, saves_checkpoint: bool) -> None:
    world = World(0, 1, device)
    _catch_signals(world, _stop_notice(saves_checkpoint, alone=True), repeat_aborts=True)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        worker(world, argument)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _stop_notice(saves_checkpoint: bool, *, alone: bool = False) -> str:
    """What Ctrl-C prints at once."""
    if not alone:
        return "stopping after this step; saving a checkpoint" if saves_checkpoint else "stopping after this batch"
    if saves_checkpoint:
        return "stopping after this step; press Ctrl-C again to abort without saving"
    return "stopping after this batch; press Ctrl-C again to abort at once"


def _catch_signals(world: World, notice: str, *, repeat_aborts: bool = False) -> None:
    """Let the signals that ask for an end set ``world.signal_number``, and print a notice on the first worker.

    Args:
        repeat_aborts: raise KeyboardInterrupt at the second signal if it is Ctrl-C. One of several workers ignores it,
            because a terminal sends Ctrl-C to the worker and to the launcher, which forwards it. Other signals may come
            several times, from a shell, the kernel and a scheduler, and do not abort what the first one has begun.
    """
    line = ("\n" if os.isatty(2) else "") + notice + "\n"  # a terminal has just echoed ^C

    def handle(number: int, frame: FrameType | None) -> None:
        if not world.signal_number:
            world.signal_number = number
            # No notice for SIGTERM: the launcher also sends it to the peers of a failed worker.
            if world.is_first and number != signal.SIGTERM:
                with contextlib.suppress(OSError):
                    os.write(2, line.encode())  # print() is not reentrant
        elif repeat_aborts and number == signal.SIGINT:
            raise KeyboardInterrupt

    for number in _heeded_signals():
        signal.signal(number, handle)


def _heeded_signals() -> list[signal.Signals]:
    """The signals that ask for an end, without a SIGHUP that is ignored."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in _STOP_SIGNALS if number != signal.SIGHUP or not ignores_hangup]


# --- several workers --------------------------------------------------------------------------------------------------


def _run_elastic(worker: Worker, argument: Any, devices: Sequence[torch.device], saves_checkpoint: bool) -> None:
    """Start one worker per device with torch's elastic launcher, and raise the root cause if any fails."""
    _configure_launcher()
    exit_codes: dict[int, int] = {}
    signal_number = 0
    with tempfile.TemporaryDirectory(prefix="fastalex-") as directory:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(devices),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            # Not the host's name, which need not resolve. The workers' store gets this address, too.
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            start_method="spawn",
            logs_specs=DefaultLogsSpecs(log_dir=directory),
            signals_to_handle="SIGQUIT",  # we handle the others: the launcher would heed an ignored SIGHUP
        )
        try:
            _forward_signals()
            elastic_launch(config, _elastic_worker)(
                worker, argument, tuple(devices), directory, os.getpid(), saves_checkpoint
            )
            return
        except SignalException as error:
            signal_number = int(error.sigval)
            # The launcher's heartbeat thread refers to the launcher now and then. If its reference were the last one,
            # the thread would try to join itself and print an error. The exception's traceback holds another one.
            _interruptions.append(error)
            for process in torch.multiprocessing.active_children():  # after a second signal it no longer waits for them
                process.kill()
        except ChildFailedError as error:
            exit_codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        reports = read_reports(Path(directory))
    raise root_cause(reports, exit_codes, devices, signal_number)


def _forward_signals() -> None:
    """Let the signals that ask for an end raise SignalException; the launcher then sends the same one to the workers.

    After a second Ctrl-C the launcher no longer waits for the workers.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not received or number == signal.SIGINT:
            received.append(number)
            raise SignalException(f"process {os.getpid()} got signal {number}", signal.Signals(number))

    for number in _heeded_signals():
        signal.signal(number, handle)


def _configure_launcher() -> None:
    # The launcher logs dozens of lines about a failure; root_cause() says it in one. Its loggers have levels of their
    # own, so their parent's would not silence them.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    # Seconds that workers have to save a checkpoint. Workers that wait for a dead peer end sooner by themselves.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "300")
    # All workers are here. Otherwise gloo looks up the host's name, which need not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    # Idle OpenMP threads sleep. By default they spin, on cores that other workers could use.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _elastic_worker(
    worker: Worker,
    argument: Any,
    devices: tuple[torch.device, ...],
    directory: str,
    parent_pid: int,
    saves_checkpoint: bool,
) -> None:
    """The function that the elastic launcher calls in every worker process."""
    die_with_parent(parent_pid)
    try:
        with watch_peers(Path(directory)):
            run_worker(worker, argument, devices, open_store(), saves_checkpoint=saves_checkpoint)
    except BaseException as error:
        report_and_exit(error)
    # The last of what multiprocessing does at the end of this process, after the launcher has got the result.
    Finalize(None, leave, exitpriority=-1_000_000)


def run_worker(
    worker: Worker, argument: Any, devices: Sequence[torch.device], store: dist.Store, *, saves_checkpoint: bool = False
) -> None:
    """Meet the other workers, join their process group and call ``worker``.

    Rank and size come from the environment, as torch's launchers set it.

    Args:
        devices: of this machine, by local rank.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, devices[int(os.environ.get("LOCAL_RANK", rank))], layout=Layout(ranks=size))
    store = meet(store, world)
    group: dict[str, Any] = {"timeout": PEER_TIMEOUT, "store": store, "rank": rank, "world_size": size}
    if world.device.type == "cpu":
        torch.set_num_threads(cpu_threads(len(devices)))
        dist.init_process_group("gloo", **group)
    else:
        torch.cuda.set_device(world.device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=world.device, **group)
    # Not earlier: a signal that arrives before all workers have met ends the process.
    _catch_signals(world, _stop_notice(saves_checkpoint))
    worker(world, argument)
    world.barrier()
    # Only after success: with operations under way this would wait for peers that may be gone.
    dist.destroy_process_group()


def cpu_threads(workers: int) -> int:
    """Threads of each CPU worker: OMP_NUM_THREADS if set, else twice its share of the cores.

    Pipeline stages wait for each other at the start and the end of a step; a waiting stage leaves its cores to others.
    """
    cores = len(os.sched_getaffinity(0))
    # OpenMP allows a list such as 4,2, one number for each level of nested regions. It ignores what is no number.
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(given) if given.isdecimal() and 0 < int(given) < 2**31 else max(1, min(cores, 2 * cores // workers))
