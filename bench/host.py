"""Time that the host takes for a call of an operator and for a training step: python bench/host.py

A step that is not captured in a CUDA graph is never faster than the host. Operators call their kernels directly in
eager mode; only tracers need them as custom operators of PyTorch. Both ways take turns here:

- direct: what a call does in eager mode;
- custom operator: the same call with every operator behind `torch.library.custom_op`.

Tensors are tiny and on the CPU, and launches do nothing: the time is that of Python and of PyTorch's dispatch. Triton's
own part of a launch, the same both ways, is left out. So is the arithmetic of a step, except for the small products
that PyTorch computes. Times are processor time, without what other processes take.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import harness
import rich.console
import torch
from harness.device import processor_name
from harness.summary import NAMES, times
from harness.tables import WIDTH
from harness.timing import HostClock
from harness.turns import Contender, median_ratio, take_turns
from host_time import calls, ways
from host_time.calls import Call
from rich import box
from rich.table import Table

_PERCENTILES = ("us_p20", "us_p50", "us_p80")


def measure(call: Call, seconds: float) -> list[dict[str, Any]]:
    """One row for each way of a call."""
    called = ways.count_calls(call.work)

    def repeat(_prepared: None) -> None:
        for _ in range(call.repetitions):
            call.work()

    contenders = {way: Contender(partial(ways.take, way), repeat) for way in ways.WAYS}
    take_turns(list(contenders.values()), seconds, HostClock(time.process_time))
    rows = []
    for way, contender in contenders.items():
        if contender.failure is not None:
            raise contender.failure
        unit = 1e3 / call.repetitions  # milliseconds of all repetitions to microseconds of one
        row: dict[str, Any] = {"op": call.op, "provider": way, "direction": call.direction, "shape": list(call.shape)}
        row |= {"operators_called": called}
        row |= {name: round(ms * unit, 2) for name, ms in zip(_PERCENTILES, contender.percentiles(), strict=True)}
        row["round_us"] = [round(ms * unit, 2) for ms in contender.round_ms]
        row["speed_to_custom"] = round(median_ratio(contenders[ways.CUSTOM].round_ms, contender.round_ms), 4)
        rows.append(row)
    return rows


def pairs(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows of each call: direct, and through custom operators."""
    direct, custom = ([row for row in rows if row["provider"] == way] for way in (ways.DIRECT, ways.CUSTOM))
    return list(zip(direct, custom, strict=True))


def saved_us(direct: dict[str, Any], custom: dict[str, Any]) -> float:
    """Microseconds of host time that a custom operator costs, per operator called: the median over the rounds."""
    differences = [late - early for early, late in zip(direct["round_us"], custom["round_us"], strict=True)]
    return statistics.median(differences) / direct["operators_called"]


def table(rows: Sequence[dict[str, Any]], processor: str) -> Table:
    """One line per call."""
    title = f"Host time, microseconds per call: {processor}, 1 thread"
    caption = (
        "operators: how many a call makes. speed: of direct calls relative to custom operators, the median of "
        "the ratios within rounds. saved: microseconds for each operator."
    )
    made = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column in ("call", "direction"):
        made.add_column(column, no_wrap=True)
    for column in ("operators", "direct", "custom operators", "speed", "saved"):
        made.add_column(column, justify="right")
    for direct, custom in pairs(rows):
        cells = [f"{direct['us_p50']:.1f}", f"{custom['us_p50']:.1f}", f"{direct['speed_to_custom']:.2f}"]
        counted = str(direct["operators_called"])
        made.add_row(direct["op"], direct["direction"], counted, *cells, f"{saved_us(direct, custom):.1f}")
    return made


def summary_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per operator, and one for the step: forward and backward where there are both."""
    chosen = {direct["op"]: (direct, custom) for direct, custom in pairs(rows)}  # the last direction of each is "both"
    return [
        f"{NAMES.get(op, op)}{', forward and backward' if direct['direction'] == 'both' and op != calls.STEP else ''}: "
        f"{direct['us_p50']:.0f} µs of host time, {custom['us_p50']:.0f} µs through custom operators; "
        f"{times(direct['speed_to_custom'])} as fast"
        for op, (direct, custom) in chosen.items()
    ]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Host time of operators and of a training step.")
    parser.add_argument("--quick", action="store_true", help="few repetitions; records host-quick")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--name", default="host", help="name of the record (host)")
    parser.add_argument("--seconds-per-timing", type=harness.positive(float), help="of each way; 1, or 0.1 if quick")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        sys.exit("error: TRITON_INTERPRET is set, and interpreted kernels take all of the time; unset it")
    device, processor = harness.device_name(), processor_name()
    torch.set_num_threads(1)  # what threads do is no host time of a call
    seconds = options.seconds_per_timing or (0.1 if options.quick else 1.0)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = WIDTH
    rows: list[dict[str, Any]] = []
    with ways.nothing_launched():
        for call in (*calls.operator_calls(), calls.training_step()):
            console.print(f"  {call.op} {call.direction}", style="dim", highlight=False)
            rows += measure(call, seconds)
    console.print(table(rows, processor))
    settings = {"quick": options.quick, "seconds_per_timing": seconds, "threads": 1, "processor": processor}
    harness.write_record(options.name, settings, rows, options.output, device=device)
    for line in summary_lines(rows):
        print(line)


if __name__ == "__main__":
    harness.run_script(main)
