"""TODO."""

from __future__ import annotations

import json
import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.distributed as dist

from fastalex.errors import ConfigurationError
from fastalex.parallel.world import World

# How long workers wait for each other at the start, in seconds; machines may need different times to import torch.
JOIN_TIMEOUT = 300


def fastalex_version() -> str:
    """The version of this package."""
    try:
        return version("fastalex")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


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
