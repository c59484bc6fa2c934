"""Predicts images/s and training time on many devices from the record of one (`--predict`)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import harness
from rich.console import Console
from rich.table import Table

from pipelining.block_costs import BlockCost, Link
from pipelining.simulation import Scenario, simulate

IMAGENET_IMAGES, EPOCHS = 1_281_167, 90


def predict(text: str, per_device: int, within: Link, between: Link, per_machine: int, results: Path) -> None:
    """Print images/s and hours for 90 epochs of ImageNet with replicas on many devices.

    Args:
        text: device and numbers of devices, such as "H100:2,8,64".
        per_device: images per device and step.
        within: link between the devices of a machine.
        between: link between machines.
        per_machine: devices per machine.
        results: folder of the records.

    Raises:
        ValueError: the text cannot be parsed, or there is no record of the device.
    """
    device, counts = _parse(text)
    path = _record_of(device, results)
    record = json.loads(path.read_text())
    settings = record["settings"]
    costs = [[BlockCost.from_json(cost) for cost in settings["costs"]]]
    names = tuple(cost.name for cost in costs[0])
    print(f"record: {path}, {record['device']}, {record['date']}, {settings['precision']}")
    print(
        f"assumed: {per_device} images per device and step, with costs measured for up to {settings['batch_size']}; "
        "one replica per device, without stages; ring all-reduce of the gradients after the backward pass at "
        f"{within.bytes_per_second / 1e9:g} GB/s within machines of {per_machine} devices and "
        f"{between.bytes_per_second / 1e9:g} GB/s between them, without latency; no time for data loading, validation "
        "and checkpoints"
    )
    table = Table(title=f"predicted for {IMAGENET_IMAGES:,} images and {EPOCHS} epochs")
    for name in ("devices", "batch", "images/s", "efficiency", "hours"):
        table.add_column(name, justify="right")
    single = 0.0
    for count in (1, *counts):
        link = within if count <= per_machine else min(within, between, key=lambda link: link.bytes_per_second)
        scenario = Scenario((names,), 1, per_device, 1, "gpipe", count, math.inf, reduce_link=link)
        rate = count * per_device / simulate(scenario, costs).seconds
        single = single or rate
        hours = EPOCHS * IMAGENET_IMAGES / rate / 3600
        cells = (f"{count}", f"{count * per_device}", f"{rate:,.0f}", f"{rate / single / count:.0%}", f"{hours:,.1f}")
        table.add_row(*cells)
    Console().print(table)


def _parse(text: str) -> tuple[str, list[int]]:
    device, _, numbers = text.partition(":")
    if not device or not all(number.isdecimal() and int(number) for number in numbers.split(",")):
        raise ValueError(f"--predict must be a device and numbers of devices, such as H100:2,8,64, got {text!r}")
    return device, [int(number) for number in numbers.split(",")]


def _record_of(device: str, results: Path) -> Path:
    name = harness.slug(device)
    records = sorted(path for path in results.glob("*/pipeline_one.json") if name in path.parent.name)
    if not records:
        raise ValueError(
            f"no record of {device} in {results} (*/pipeline_one.json); to make one, run python bench/pipeline.py "
            "--parts one on such a device"
        )
    return records[0]
