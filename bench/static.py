"""Count what an H100 would execute, without one: python bench/static.py

Compiles the Triton kernels for sm_90 as AlexNet's training step launches them (batch 128, bf16, channels_last), reads
the machine code, and prints two tables: what the compiler made of each launch, and the time that a model of the H100
predicts from it, beside the recorded time if there is one. Nothing is measured.

It writes the record `bench/results/static/kernels.json`, to which `tests/kernels/test_compiled.py` holds all later
code. `--output` writes it elsewhere, to compare before and after.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import harness
import torch
import triton
from static_analysis import cases, compilation, prediction, recorded, rows, tables
from static_analysis.launches import Launch, launches_of
from triton.compiler import CompiledKernel

DEVICE, NAME = "static", "kernels"


def launches() -> tuple[list[Launch], dict[tuple[str, str], float]]:
    """All launches, and the measured microseconds of the tuned convolutions by case and direction."""
    found = [launch for case in cases.network(torch.bfloat16) for launch in launches_of(case)]
    measured = {}
    for case, entry in cases.tuned_convolutions(prediction.GPU):
        found += launches_of(case)
        measured[case.name, case.direction] = round(1e3 * entry.ms, 2)
    return found, measured


def analyse(found: list[Launch], gb_per_s: float) -> list[dict[str, Any]]:
    """The rows of the launches. Launches of the same code are compiled once."""
    compiled: dict[str, CompiledKernel] = {}
    for launch in found:
        key = compilation.identity(launch)
        if key not in compiled:
            ((_, compiled[key]),) = compilation.compiled(launch, [rows.ARCHITECTURE])
    return list(rows.rows_of(found, [compiled[compilation.identity(launch)] for launch in found], gb_per_s))


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what an H100 would execute, without one.")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the record (bench/results)")
    options = parser.parse_args()
    if triton.knobs.runtime.interpret:
        sys.exit("error: TRITON_INTERPRET is set, and interpreted kernels are not compiled; unset it")
    known = recorded.Recorded(harness.RESULTS / harness.slug(prediction.GPU))
    found, measured = launches()
    result = analyse(found, known.gb_per_s)
    recorded.with_times(result, known, measured)
    print(tables.code_table(result), tables.time_table(result), sep="\n\n")
    settings = {
        "predicted_for": prediction.GPU,
        "architecture": rows.ARCHITECTURE,
        "batch": cases.BATCH,
        "dtype": "bfloat16",
        "clock_ghz": prediction.CLOCK_GHZ,
        "copy_gb_per_s": known.gb_per_s,
    }
    harness.write_record(NAME, settings, result, options.output, device=DEVICE, versions=compilation.versions())


if __name__ == "__main__":
    main()
