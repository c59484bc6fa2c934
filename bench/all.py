"""Run all benchmarks and print a summary: python bench/all.py [--quick]

Writes `bench/results/<device>/all.json` next to the records of the benchmarks: for every operator and for the training
step, our time and that of the fastest other provider, and the duration of each benchmark. If a benchmark fails, the
others still run, the summary names it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import rich.console
import rich.table

SCRIPTS = (
    *("conv_relu", "lrn", "max_pool", "dropout", "fusions", "cross_entropy", "sgd"),
    *("loader", "training", "train_step", "pipeline"),
)
# On a GPU all benchmarks together take a few minutes; each script on its own measures more.
GPU_OPTIONS = {
    **{name: ["--dtypes", "bfloat16"] for name in ("lrn", "max_pool", "dropout", "fusions", "cross_entropy")},
    "loader": ["--seconds", "2", "--rounds", "2"],
    "train_step": ["--architectures", "krizhevsky", "--batches", "128", "1024"],
}


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
        command += ["--quick"] if arguments.quick else GPU_OPTIONS.get(name, []) if harness.CUDA else []
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
    groups: dict[str, list[tuple[bool, str, float]]] = {}
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
        groups.setdefault(what, []).append((ours, provider, row["ms_p50"]))
    return [compare(name, what, timed) for what, timed in groups.items()]


def compare(name: str, what: str, timed: list[tuple[bool, str, float]]) -> dict[str, Any]:
    """One row of the summary: our fastest provider and the fastest other one."""
    ours = min(((ms, provider) for is_ours, provider, ms in timed if is_ours), default=None)
    other = min(((ms, provider) for is_ours, provider, ms in timed if not is_ours), default=None)
    return {
        "benchmark": name,
        "what": what,
        "ours": ours and ours[1],
        "ours_ms": ours and ours[0],
        "best_other": other and other[1],
        "best_other_ms": other and other[0],
        "speed_up": round(other[0] / ours[0], 2) if ours and other else None,
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
