"""Running as one of the workers that torchrun has started, on one machine or on several."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import torch
import torch.distributed as dist

from dataloading.process import die_with_parent
from fastalex.errors import ConfigurationError, WorkerError
from fastalex.parallel.devices import parse_devices
from fastalex.parallel.failures import has_lost_peer
from fastalex.parallel.launch import Worker, run_worker
from fastalex.parallel.rendezvous import hosts_store, is_reported, launcher_hosts_store, meet, open_store
from fastalex.parallel.world import World
from fastalex.startup import is_worker


def refuse_launcher(remedy: str) -> None:
    """Refuse to run as one of torchrun's workers.

    Raises:
        ConfigurationError: this process is one; ``remedy`` is the message.
    """
    if is_worker():
        error = ConfigurationError(remedy)
        error.reported_elsewhere = is_reported(None, remedy)
        raise error


def machines() -> int:
    """The number of machines: as torchrun says, else one."""
    return int(os.environ.get("GROUP_WORLD_SIZE", 1)) if is_worker() else 1


def devices_under_torchrun(text: str | None) -> tuple[torch.device, ...]:
    """The devices of the workers that torchrun has started on this machine.

    Args:
        text: names them; None for one GPU per worker if there are GPUs, else CPUs.

    Raises:
        ConfigurationError: as :func:`parse_devices`; another number of devices than workers; machines with different
            numbers of workers.
    """
    workers, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if here * machines() != workers:
        raise ConfigurationError(
            f"torchrun started {workers} workers on {machines()} machines, {here} of them on {socket.gethostname()}; "
            "start the same number on every machine (torchrun --nproc-per-node)"
        )
    if text is None:
        text = ",".join(map(str, range(here)) if torch.cuda.device_count() else ["cpu"] * here)
    devices = parse_devices(text)
    if len(devices) != here:
        raise ConfigurationError(
            f"torchrun started {here} workers for {len(devices)} devices; name one device for each worker of a machine"
        )
    return devices


def run_under_torchrun(
    worker: Worker,
    options: Any,
    text: str | None,
    *,
    saves_checkpoint: bool = False,
) -> None:
    """Call ``worker(world, (options, devices))`` in this process, which torchrun has started.

    Args:
        options: what the user typed; the workers resolve it together, for the devices of each machine.
        text: names the devices; None for one GPU per worker, or CPUs.
        saves_checkpoint: as for :func:`~fastalex.parallel.launch.run_workers`.

    Raises:
        WorkerError: another worker has ended.
        ConfigurationError, DatasetError, Interrupted: raised by the worker.
    """
    die_with_parent(os.getppid())
    store: dist.Store | None = None
    try:
        store = open_store()
        try:
            devices = devices_under_torchrun(text)
        except ConfigurationError as error:  # perhaps on this machine only: tell the others, so that they do not wait
            meet(store, World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu")), str(error))
            raise
        run_worker(worker, (options, devices), devices, store, saves_checkpoint=saves_checkpoint)
    except Exception as error:
        if not has_lost_peer(str(error)):
            error.reported_elsewhere = is_reported(store, str(error))  # type: ignore[attr-defined]
            if hosts_store():
                time.sleep(1)  # so that the others can ask is_reported(), too
            raise
        where = f"worker {os.environ['RANK']} on {socket.gethostname()}"
        reason = str(error).splitlines()[0].split(". ")[0]
        lost = WorkerError(f"{where} lost another worker; see that worker's message for the cause ({reason})")
        lost.reported_elsewhere = launcher_hosts_store() and is_reported(store, "lost another worker")
        raise lost from None
