"""Run all benchmarks and print a summary: python bench/all.py [--quick]

Writes `bench/results/<device>/all.json` next to the records of the benchmarks: for every operator and for the training
step, our time, that of the fastest other provider and our speed relative to it (of operators, the median of the ratios
within rounds), and the duration of each benchmark. If a benchmark fails, the others still run, the summary names it,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import rich.console
import rich.table
from harness.turns import median_ratio

SCRIPTS = (
    *("conv_relu", "lrn", "max_pool", "dropout", "fusions", "cross_entropy", "sgd"),
    *("loader", "training", "train_step", "pipeline", "host"),
)
# On a GPU all benchmarks together take a few minutes; each script on its own measures more.
GPU_OPTIONS = {
    **{name: ["--dtypes", "bfloat16"] for name in ("lrn", "max_pool", "dropout", "fusions", "cross_entropy")},
    "loader": ["--seconds", "2", "--rounds", "2"],
    "train_step": ["--architectures", "krizhevsky", "--batches", "128", "1024"],
}
# Records of operators take more time than a first look, and LRN has the batch of the others.
_RECORD = ["--seconds-per-timing", "1"]
CPU_OPTIONS = {
    **dict.fromkeys(("conv_relu", "max_pool", "dropout", "fusions", "cross_entropy", "sgd"), _RECORD),
    "lrn": ["--batches", "64", *_RECORD],
}


@dataclass(frozen=True)
class Timed:
    """A row with a time."""

    ours: bool
    provider: str
    ms: float
    round_ms: list[float]  # empty without rounds


def main() -> None:
    parser = argparse.ArgumentParser(description="Run all benchmarks and print a summary.")
    parser.add_argument("--quick", action="store_true", help="small sizes where possible; no training run")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    failed = []
    for name in SCRIPTS:
        if arguments.quick and name == "training":
            continue
        started, begin = time.time(), time.perf_counter()
        command = [sys.executable, str(harness.ROOT / "bench" / f"{name}.py"), "--output", str(arguments.output)]
        sized = GPU_OPTIONS if harness.CUDA else CPU_OPTIONS
        command += ["--quick"] if arguments.quick else sized.get(name, [])
        print(f"--- {name}", flush=True)
        if subprocess.run(command).returncode:
            failed.append(name)
        seconds[name] = round(time.perf_counter() - begin, 1)
        rows += summarise(name, arguments.output, arguments.quick, since=started)
    settings = {"quick": arguments.quick, "seconds": seconds, "failed": failed}
    harness.write_record("all", settings, rows, arguments.output)
    show(rows, seconds, failed)
    sys.exit(1 if failed else 0)


def summarise(name: str, output: Path, quick: bool, since: float) -> list[dict[str, Any]]:
    """Rows of the summary from the record that a benchmark has just written, if there is one."""
    path = output / harness.slug(harness.device_name()) / f"{harness.record_name(name, {'quick': quick})}.json"
    if not path.exists() or path.stat().st_mtime < since:
        return []
    groups: dict[str, list[Timed]] = {}
    for row in json.loads(path.read_text())["rows"]:
        if row.get("ms_p50") is None:
            continue
        if name == "train_step":
            what, provider, ours = f"{row['architecture']}, batch {row['batch']}", row["variant"], row["ours"]
        elif row["direction"] in ("both", "forward"):
            shape = "x".join(map(str, row["shape"]))
            what, provider = f"{row['op']} {shape} {row['dtype']} {row['direction']}", row["provider"]
            ours = provider.startswith("ours")
        else:
            continue
        groups.setdefault(what, []).append(Timed(ours, provider, row["ms_p50"], row.get("round_ms", [])))
    return [compare(name, what, timed) for what, timed in groups.items()]


def compare(name: str, what: str, timed: list[Timed]) -> dict[str, Any]:
    """One row of the summary: our fastest provider and the fastest other one."""
    ours = min((row for row in timed if row.ours), key=lambda row: row.ms, default=None)
    other = min((row for row in timed if not row.ours), key=lambda row: row.ms, default=None)
    speed_up = None
    if ours and other:
        # The step's processes take turns, too, but its rows have no rounds.
        in_turns = ours.round_ms and other.round_ms
        speed_up = round(median_ratio(other.round_ms, ours.round_ms) if in_turns else other.ms / ours.ms, 2)
    return {
        "benchmark": name,
        "what": what,
        "ours": ours and ours.provider,
        "ours_ms": ours and ours.ms,
        "best_other": other and other.provider,
        "best_other_ms": other and other.ms,
        "speed_up": speed_up,
    }


def show(rows: list[dict[str, Any]], seconds: dict[str, float], failed: list[str]) -> None:
    """Print the summary."""
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160
    table = rich.table.Table(title=f"Summary: {harness.device_name()}")
    for column in ("benchmark", "what", "ours", "best other"):
        table.add_column(column)
    table.add_column("speed-up", justify="right")
    for row in rows:
        cells = [f"{row[f'{who}_ms']:.2f} ms, {row[who]}" if row[who] else "-" for who in ("ours", "best_other")]
        table.add_row(
            row["benchmark"], row["what"], *cells, "-" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
        )
    console.print(table)
    times = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    console.print(f"{sum(seconds.values()):.0f} s in total: {times}")
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="bold")


if __name__ == "__main__":
    main()
