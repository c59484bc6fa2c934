"""TODO."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from fastalex.errors import ConfigurationError
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.failures import WorkerError, _lost_a_peer
from fastalex.parallel.launch import Worker, _die_with_parent, _run_worker
from fastalex.parallel.rendezvous import _is_said, _keeps_store, _meet, _open_store, _torchrun_keeps_store
from fastalex.parallel.world import World


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
