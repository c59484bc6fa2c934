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
import platform
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from dataloading import DatasetError
from fastalex.errors import ConfigurationError, NonFiniteLoss
from fastalex.layout import Layout
from kernels.dispatch import check_choice

# A peer that dies is noticed at once on gloo; this is how long a peer may be silent, loading data or compiling.
PEER_TIMEOUT = timedelta(minutes=10)
# How long workers wait for each other at the start, in seconds; machines may need different times to import torch.
JOIN_TIMEOUT = 300
_USER_ERRORS = {"NonFiniteLoss": NonFiniteLoss}  # what a worker raised is raised again by its name
# What gloo, NCCL and the store say when another worker has ended. Other NCCL errors may be causes themselves.
_LOST_PEER = (
    "connection closed by peer",
    "connection reset",
    "connection was likely closed",
    "timed out waiting",
    "remote process exited",
    "ncclremoteerror",
    "communicator was aborted",
)


T = TypeVar("T")


class Interrupted(Exception):
    """The run stopped on request (Ctrl-C or SIGTERM) and left a checkpoint behind."""

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Aborted(Interrupted):
    """Ended by a signal before the workers could say how far they were."""


class WorkerError(Exception):
    """A worker failed for a reason that is not the user's input; the message says which and how."""

    said = False


def command(*arguments: object) -> str:
    """How to run a module again with this interpreter from the current folder, to be shown to users."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join(map(str, (python, "-m", *arguments)))


# --- devices ----------------------------------------------------------------------------------------------------------


def default_devices() -> str:
    """Two GPUs if there are two, one if there is one, else two CPU workers."""
    gpus = torch.cuda.device_count()
    return "0,1" if gpus >= 2 else "0" if gpus == 1 else "cpu,cpu"


def parse_devices(text: str) -> tuple[torch.device, ...]:
    """``"0,1"``, ``"cuda:0"``, ``"cpu,cpu"`` as devices, one per worker.

    Raises:
        ConfigurationError: not a device, a GPU that this machine lacks or that is named twice, or CPU and GPU mixed;
            or what FASTALEX_KERNELS names does not run there.
    """
    devices = tuple(_parse_device(part.strip()) for part in text.split(","))
    if len({device.type for device in devices}) > 1:
        raise ConfigurationError(f"--devices {text} mixes CPU and GPU; name devices of one kind")
    gpus = [device.index for device in devices if device.type == "cuda"]
    if len(set(gpus)) < len(gpus):
        raise ConfigurationError(
            f"--devices {text} names a GPU twice; name each once (several stages on one GPU: --stages)"
        )
    try:
        check_choice(devices[0])
    except (ValueError, RuntimeError) as error:
        raise ConfigurationError(str(error)) from None
    return devices


def _parse_device(part: str) -> torch.device:
    if part == "cpu":
        return torch.device("cpu")
    index = part.removeprefix("cuda:")
    if not index.isdecimal():
        raise ConfigurationError(f"{part!r} is not a device; write GPU numbers (0,1) or cpu (cpu,cpu)")
    gpus = torch.cuda.device_count()
    if int(index) >= gpus:
        there = f"this machine has GPUs 0 to {gpus - 1}" if gpus else "this machine has no GPU that torch can use"
        raise ConfigurationError(f"device {index} does not exist: {there}; name another one, or cpu")
    return torch.device("cuda", int(index))


# --- what a worker knows of the others --------------------------------------------------------------------------------


@dataclass
class World:
    """This worker among its peers.

    ``device`` is where it computes; ``signal_number`` is set by Ctrl-C and SIGTERM, which do nothing else: all workers
    agree on it (:meth:`sum`) and stop at the same step. ``layout`` says which part of the work is whose
    (:meth:`arrange`).
    """

    rank: int
    size: int
    device: torch.device
    signal_number: int = 0
    layout: Layout = field(default_factory=Layout)
    _groups: tuple[Any, Any] = (None, None)

    def arrange(self, layout: Layout) -> None:
        """Share the work out; every worker calls this.

        Raises:
            ConfigurationError: the layout is for another number of workers.
        """
        if layout.workers != self.size:
            raise ConfigurationError(
                f"{layout.replicas} replicas of {layout.ranks} devices are {layout.workers} workers; there are "
                f"{self.size}"
            )
        if self.size == 1 and layout.stages > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # the stages' engine asks
        self.layout, self._groups = layout, (None, None)
        if layout.replicas > 1:
            names = ("replicas", "stages")
            mesh = init_device_mesh(self.device.type, (layout.replicas, layout.ranks), mesh_dim_names=names)
            self._groups = mesh.get_group("replicas"), mesh.get_group("stages")

    @property
    def replica(self) -> int:
        """Which replica of the network this worker belongs to."""
        return self.rank // self.layout.ranks

    @property
    def pipeline_rank(self) -> int:
        """This worker's place in its replica's pipeline."""
        return self.rank % self.layout.ranks

    @property
    def replica_group(self) -> Any:
        """The process group of the workers with the same stages; None means that there is only one replica."""
        return self._groups[0]

    @property
    def pipeline_group(self) -> Any:
        """The process group of this replica's workers; None means all workers."""
        return self._groups[1]

    @property
    def is_first(self) -> bool:
        """Whether this worker reads images, reports and writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a CPU tensor over all workers, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def minimum(self, value: Tensor) -> Tensor:
        """The minimum of a tensor over all workers, in place, on its device and without waiting for it."""
        if self.size > 1:
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on the first worker, on all of them; what it raises there, all raise."""
        made: list[Any] = [None]
        if self.is_first:
            try:
                made = [make()]
            except Exception as error:
                made = [error]
        if self.size > 1:
            dist.broadcast_object_list(made, 0)
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def barrier(self) -> None:
        """Wait until every worker is here."""
        self.sum(torch.zeros(1))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first replica's workers, on the first one's CPU; others get an empty dict.

        Sent one by one over gloo, so that nothing is held twice but the tensor under way.
        """
        if self.size == 1:
            return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        shapes: list[Any] = [None] * self.size
        dist.all_gather_object(shapes, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        if not self.is_first:
            if self.replica == 0:
                for tensor in tensors.values():
                    dist.send(tensor.detach().cpu().contiguous(), 0)
            return {}
        gathered = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        for rank in range(1, self.layout.ranks):
            for name, (shape, dtype) in shapes[rank].items():
                gathered[name] = torch.empty(shape, dtype=dtype)
                dist.recv(gathered[name], rank)
        return gathered

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks, on all of them."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values


# --- starting workers -------------------------------------------------------------------------------------------------

Worker = Callable[[World, Any], None]


def fastalex_version() -> str:
    """The version of this package."""
    try:
        return version("fastalex")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def is_worker() -> bool:
    """Whether an outer launcher (torchrun) started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def refuse_launcher(remedy: str) -> None:
    """Refuse to be started by an outer launcher.

    Raises:
        ConfigurationError: it was.
    """
    if is_worker():
        error = ConfigurationError(remedy)
        error.said = _is_said(None, remedy)
        raise error


def machines() -> int:
    """On how many machines the workers are: as torchrun says, else one."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1)) if is_worker() else 1


def devices_under_torchrun(text: str | None) -> tuple[torch.device, ...]:
    """The devices of the workers that torchrun started on this machine: as named, else one GPU each, else CPUs.

    Raises:
        ConfigurationError: as :func:`parse_devices`; another number of devices than workers; machines with unequal
            numbers of workers.
    """
    workers, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if here * machines() != workers:
        raise ConfigurationError(
            f"torchrun started {workers} workers on {machines()} machines, {here} of them on {socket.gethostname()}; "
            "give every machine the same --nproc-per-node"
        )
    if text is None:
        text = ",".join(map(str, range(here)) if torch.cuda.device_count() else ["cpu"] * here)
    devices = parse_devices(text)
    if len(devices) != here:
        raise ConfigurationError(
            f"torchrun started {here} workers for {len(devices)} devices; name one device for each worker of a machine"
        )
    return devices


def run(worker: Worker, argument: Any, devices: Sequence[torch.device], restarts: int = 0) -> None:
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


def run_under_torchrun(worker: Worker, argument: Callable[[Sequence[torch.device]], Any], text: str | None) -> None:
    """As :func:`run`, as one of torchrun's workers.

    Args:
        argument: makes the worker's argument of this machine's devices.
        text: names them; None for one GPU each, or CPUs.
    """
    _die_with_parent(os.getppid())
    store: dist.Store | None = None
    try:
        store = _open_store()
        try:
            devices = devices_under_torchrun(text)
        except ConfigurationError as error:  # perhaps on this machine only: the others must not wait for it
            _meet(store, World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu")), str(error))
            raise
        _run_worker(worker, argument(devices), devices, store)
    except Exception as error:
        if not _lost_a_peer(str(error)):
            error.said = _is_said(store, str(error))  # type: ignore[attr-defined]
            if _keeps_store():
                time.sleep(1)  # for the others to ask it the same
            raise
        where = f"worker {os.environ['RANK']} on {socket.gethostname()}"
        what = str(error).splitlines()[0].split(". ")[0]
        lost = WorkerError(f"{where} lost another worker, whose own message says why ({what})")
        lost.said = _torchrun_keeps_store() and _is_said(store, "lost another worker")
        raise lost from None


def _is_said(store: dist.Store | None, message: str) -> bool:
    """Whether another worker of this machine says the same: it is to be read once, not once a worker."""
    # torchrun is the parent; a restart may say again what was said before.
    ours = f"{socket.gethostname()}/{os.getppid()}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    try:
        if store is not None:
            store.set_timeout(timedelta(seconds=5))
            return store.add(f"fastalex/said/{ours}/{message}", 1) > 1
    except RuntimeError:  # the machine that kept the store is gone
        pass
    return os.environ.get("LOCAL_RANK", "0") != "0"


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


def _open_store() -> dist.Store:
    """Where the workers of an outer launcher exchange their first words; kept by torchrun, else by the first worker.

    Raises:
        ConfigurationError: no address was given, it is in use, or nobody answers there.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal():
        raise ConfigurationError(
            f"RANK and WORLD_SIZE are set, but MASTER_ADDR is {host!r} and MASTER_PORT is {port!r}; name the first "
            "machine and a free port there, or unset all four"
        )
    limit = timedelta(seconds=JOIN_TIMEOUT)
    try:
        # Waiting for all is left to _meet, which knows who is missing.
        return dist.TCPStore(host, int(port), None, _keeps_store(), limit, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigurationError(f"{host}:{port} is in use; choose another port (torchrun --master-port)") from None
        raise ConfigurationError(
            f"{socket.gethostname()}: nobody answers at {host}:{port} within {JOIN_TIMEOUT} s; is the first machine's "
            "command running, and can this machine reach it?"
        ) from None


def _torchrun_keeps_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _keeps_store() -> bool:
    return os.environ["RANK"] == "0" and not _torchrun_keeps_store()


def _meet(store: dist.Store, world: World, problem: str | None = None) -> dist.Store:
    """Wait until every worker has said where it is and what it runs; returns a store for them alone.

    The store may outlive workers that were restarted, and hold what they said. So the first worker calls a roll under a
    name that was never used, the others answer it, and whoever finds its own answer among all of them has met the rest.

    Args:
        problem: why this worker cannot take part; all of them then raise it.

    Raises:
        ConfigurationError: some did not come in time, run another version, have another kind of device or a problem.
    """
    if world.device.type == "cuda" and not dist.is_nccl_available():
        problem = "this torch was built without NCCL; install a CUDA build, or choose --devices cpu,cpu"
    mine = {
        "worker": uuid.uuid4().hex,
        "problem": problem or "",
        "machine": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastalex": fastalex_version(),
        "kind of device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
    }
    roll, everyone = _call_roll(store, world, mine) if world.is_first else _answer_roll(store, world, mine)
    _check_alike(everyone)
    return dist.PrefixStore(roll, store)


def _call_roll(store: dist.Store, world: World, mine: dict[str, str]) -> tuple[str, list[dict[str, str]]]:
    roll, deadline = f"fastalex/roll/{mine['worker']}", time.monotonic() + JOIN_TIMEOUT
    store.set(f"{roll}/0", json.dumps(mine))
    store.set("fastalex/roll", roll)
    while missing := _missing(store, world, roll):
        if time.monotonic() > deadline:
            raise _absent(store, world, roll, missing)
        time.sleep(0.05)
    everyone = [json.loads(store.get(f"{roll}/{rank}")) for rank in range(world.size)]
    store.set(f"{roll}/everyone", json.dumps(everyone))
    # The store may end with this worker: if there is a problem, the others are to read of it first.
    deadline = time.monotonic() + 5
    while store.add(f"{roll}/read", 0) < world.size - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return roll, everyone


def _answer_roll(store: dist.Store, world: World, mine: dict[str, str]) -> tuple[str, list[dict[str, str]]]:
    roll, deadline = "", time.monotonic() + JOIN_TIMEOUT
    while True:
        if store.check(["fastalex/roll"]) and (latest := store.get("fastalex/roll").decode()) != roll:
            roll = latest
            store.set(f"{roll}/{world.rank}", json.dumps(mine))
        if roll and store.check([f"{roll}/everyone"]):
            everyone = json.loads(store.get(f"{roll}/everyone"))
            if everyone[world.rank] == mine:
                store.add(f"{roll}/read", 1)
                return roll, everyone
        if time.monotonic() > deadline:
            raise _absent(store, world, roll, (_missing(store, world, roll) if roll else set()) or {0})
        time.sleep(0.05)


def _missing(store: dist.Store, world: World, roll: str) -> set[int]:
    return {rank for rank in range(world.size) if not store.check([f"{roll}/{rank}"])}


def _absent(store: dist.Store, world: World, roll: str, missing: set[int]) -> ConfigurationError:
    there = set(range(world.size)) - missing if roll else set()
    names = {socket.gethostname(), *(json.loads(store.get(f"{roll}/{rank}"))["machine"] for rank in there)}
    ranks = ", ".join(map(str, sorted(missing)))
    return ConfigurationError(
        f"worker {ranks} of {world.size} did not join within {JOIN_TIMEOUT} s; there are workers on "
        f"{', '.join(sorted(names))}: start the command on the other machines, too"
    )


def _check_alike(everyone: Sequence[dict[str, str]]) -> None:
    """Refuse workers whose results would differ, or who could not talk to each other."""
    first = everyone[0]
    problems = [other for other in everyone if other["problem"]]
    if problems:
        there = f"{problems[0]['machine']}: " if len({other["machine"] for other in everyone}) > 1 else ""
        raise ConfigurationError(there + problems[0]["problem"])
    for rank, other in enumerate(everyone):
        for what in ("fastalex", "torch", "python", "kind of device"):
            if other[what] != first[what]:
                raise ConfigurationError(
                    f"{what} is {other[what]} for worker {rank} on {other['machine']} and {first[what]} for worker 0 "
                    f"on {first['machine']}; make them the same"
                )


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


def _watch_peers(folder: Path, rank: int, size: int) -> None:
    """End this process soon after a peer has ended without success.

    A worker that waits for a peer inside a transport runs no Python code, not even a signal handler, until the wait
    times out; this thread still runs. The grace leaves time to say what went wrong, if that is known here.
    """
    while True:
        time.sleep(1)
        for peer in range(size):
            path = folder / f"{peer}.pid"
            if peer != rank and path.exists() and not (folder / f"{peer}.done").exists() and not _lives(path):
                time.sleep(5)
                os._exit(1)


def _lives(path: Path) -> bool:
    """Whether the process whose id is in the file runs; one that only waits to be collected does not."""
    try:
        state = Path(f"/proc/{path.read_text() or 'self'}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _lost_a_peer(message: str) -> bool:
    return any(phrase in message.lower() for phrase in _LOST_PEER)


def _die_with_parent(parent: int) -> None:
    # The kernel's signal is the only thing that ends a worker whose parent was killed outright.
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)


def _raise_cause(failures: Path, error: Any, devices: Sequence[torch.device], signal_number: int = 0) -> None:
    """Raise the root cause of what the workers reported, if anything went wrong."""
    reports = [json.loads(path.read_text()) for path in failures.glob("*.json")]
    reports.sort(key=lambda report: report["time"])
    for report in reports:
        if report["type"] == "Interrupted":
            raise Interrupted(report["message"], report["signal"])
        if report["is_user_error"]:
            raise _USER_ERRORS.get(report["type"], ConfigurationError)(report["message"])
    if signal_number:
        raise Aborted("interrupted", signal_number)
    if error is None and not reports:
        return
    # A worker that lost its peer is a victim: look for one with a reason of its own, then for one that was killed.
    for report in reports:
        if not _lost_a_peer(report["message"]):
            name = f"worker {report['rank']} ({report['device']})"
            raise WorkerError(f"{name} failed:\n{report['traceback'].rstrip()}")
    killed = [(rank, failure) for rank, failure in (error.failures if error else {}).items() if failure.exitcode < 0]
    # NCCL aborts the processes that wait for one that was killed.
    killed.sort(key=lambda pair: (pair[1].exitcode == -signal.SIGABRT, pair[1].timestamp, pair[0]))
    for rank, failure in killed:
        name = signal.Signals(-failure.exitcode).name
        raise WorkerError(f"worker {rank} ({devices[rank]}) was killed by {name}")
    for report in reports:
        name = f"worker {report['rank']} ({report['device']})"
        raise WorkerError(f"{name} lost another one, which ended without a word:\n{report['traceback'].rstrip()}")
    raise WorkerError("a worker ended without a word")
