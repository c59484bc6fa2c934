"""Rendezvous: the workers find each other in a store, and refuse to start if their versions or devices differ."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist

from fastalex.errors import ConfigurationError
from fastalex.parallel.world import World
from fastalex.startup import VERSION

# Seconds that workers wait for each other at the start; machines may need different times to import torch.
JOIN_TIMEOUT = 300


def open_store() -> dist.Store:
    """Open the key-value store at MASTER_ADDR:MASTER_PORT, which the launcher hosts, or else the first worker.

    Raises:
        ConfigurationError: no address is given, its name is unknown, it is in use, or nothing answers there.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigurationError(
            f"RANK and WORLD_SIZE are set, but MASTER_ADDR is {host!r} and MASTER_PORT is {port!r}; set them to the "
            "first machine and a free port there, or unset all four"
        )
    try:
        socket.getaddrinfo(host, None)  # the store would ask again and again, until its time is up
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"MASTER_ADDR is {host}, which {socket.gethostname()} cannot resolve ({reason}); give a name or an IP "
            "address that every machine knows (torchrun --master-addr), or on one machine 127.0.0.1 "
            "(torchrun --local-addr 127.0.0.1)"
        ) from None
    limit = timedelta(seconds=JOIN_TIMEOUT)
    try:
        # wait_for_workers=False, because meet() waits and knows who is missing.
        return dist.TCPStore(host, int(port), None, hosts_store(), limit, wait_for_workers=False, multi_tenant=True)
    except dist.DistError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise ConfigurationError(f"{host}:{port} is in use; choose another port (torchrun --master-port)") from None
        raise ConfigurationError(
            f"{socket.gethostname()}: no answer from {host}:{port} within {JOIN_TIMEOUT} s; check that the first "
            "machine's command runs and that this machine can reach it"
        ) from None


def launcher_hosts_store() -> bool:
    """Whether the launcher's process hosts the store, so that it outlives the workers."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def hosts_store() -> bool:
    """Whether this worker hosts the store."""
    return os.environ["RANK"] == "0" and not launcher_hosts_store()


def is_reported(store: dist.Store | None, message: str) -> bool:
    """Whether another worker of this machine reports the same message; the first one to ask gets False."""
    # The parent is the launcher. After a restart the same message may be reported again.
    group = f"{socket.gethostname()}/{os.getppid()}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    try:
        if store is not None:
            store.set_timeout(timedelta(seconds=5))
            return store.add(f"fastalex/reported/{group}/{message}", 1) > 1
    except RuntimeError:  # the machine that hosts the store is gone
        pass
    return os.environ.get("LOCAL_RANK", "0") != "0"


def meet(store: dist.Store, world: World, problem: str | None = None) -> dist.Store:
    """Wait until every worker has joined, compare their versions, and return a store for these workers alone.

    The store may hold entries of workers that were restarted since. So the first worker opens a roll call under a new
    name, the others answer it, and a worker that finds its own answer in the complete list has met its peers.

    Args:
        problem: why this worker cannot take part; all workers then raise it.

    Raises:
        ConfigurationError: workers are missing, differ in version or kind of device, or have a problem.
    """
    if world.device.type == "cuda" and not dist.is_nccl_available():
        problem = "this torch was built without NCCL; install a CUDA build, or choose the devices cpu,cpu"
    mine = {
        "worker": uuid.uuid4().hex,
        "problem": problem or "",
        "machine": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastalex": VERSION,
        "kind of device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
    }
    roll, everyone = _open_roll(store, world, mine) if world.is_first else _answer_roll(store, world, mine)
    check_alike(everyone)
    return dist.PrefixStore(roll, store)


def check_alike(workers: Sequence[dict[str, str]]) -> None:
    """Check that the workers can communicate and compute the same.

    Args:
        workers: by rank, as :func:`meet` describes them.

    Raises:
        ConfigurationError: a worker has a problem, or differs from the first one.
    """
    first = workers[0]
    problems = [other for other in workers if other["problem"]]
    if problems:
        machine = f"{problems[0]['machine']}: " if len({other["machine"] for other in workers}) > 1 else ""
        raise ConfigurationError(machine + problems[0]["problem"])
    for rank, other in enumerate(workers):
        for what in ("fastalex", "torch", "python", "kind of device"):
            if other[what] != first[what]:
                raise ConfigurationError(
                    f"{what} is {other[what]} for worker {rank} on {other['machine']} and {first[what]} for worker 0 "
                    f"on {first['machine']}; make them the same"
                )


def _open_roll(store: dist.Store, world: World, mine: dict[str, str]) -> tuple[str, list[dict[str, str]]]:
    roll, deadline = f"fastalex/roll/{mine['worker']}", time.monotonic() + JOIN_TIMEOUT
    store.set(f"{roll}/0", json.dumps(mine))
    store.set("fastalex/roll", roll)
    while missing := _missing(store, world, roll):
        if time.monotonic() > deadline:
            raise _absent(store, world, roll, missing)
        time.sleep(0.05)
    everyone = [json.loads(store.get(f"{roll}/{rank}")) for rank in range(world.size)]
    store.set(f"{roll}/everyone", json.dumps(everyone))
    # If there is a problem, this worker ends, and perhaps the store with it: let the others read first.
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
    joined = set(range(world.size)) - missing if roll else set()
    machines = {socket.gethostname(), *(json.loads(store.get(f"{roll}/{rank}"))["machine"] for rank in joined)}
    ranks = ", ".join(map(str, sorted(missing)))
    return ConfigurationError(
        f"worker {ranks} of {world.size} did not join within {JOIN_TIMEOUT} s; there are workers on "
        f"{', '.join(sorted(machines))}: start the command on the other machines, too"
    )
