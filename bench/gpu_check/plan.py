"""The plan: which commands run, in which order, and for how long at most."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 540
"""Seconds that the whole check takes at most."""
RESERVE = 15
"""Seconds of them for the start and the report."""
PARTS = ("tests", "operators", "conv", "step", "loader")

# Tests of the CPU's implementation are of no interest here. Tensors of more than 2^31 elements need the whole GPU.
_LARGE = "offsets_pass_32_bits or to_the_31"
_SMALL = "not native and not offsets_pass_32_bits and not to_the_31"
# Ahead-of-time compilation, which needs no GPU.
_WITHOUT_GPU = {"test_compiled.py"}
_TESTED = ("pytest", "hypothesis")


@dataclass(frozen=True)
class Job:
    """One command with its time limit.

    Attributes:
        part: the part of the check that it belongs to.
        name: what it does.
        seconds: time limit; 0 for a job that only runs in the time that earlier jobs have saved.
        command: the command. "{ready}" stands for the seconds that a training step has to be ready.
        record: name of the record that it writes, or None for tests.
        claim: name of the committed record that it is compared with.
        needs: packages without which it is skipped.
        spare: for a job without a time limit of its own: the fewest seconds it needs, and the most it may take.
    """

    part: str
    name: str
    seconds: int
    command: tuple[str, ...]
    record: str | None = None
    claim: str | None = None
    needs: tuple[str, ...] = ()
    spare: tuple[int, int] | None = None

    def command_for(self, seconds: float) -> list[str]:
        """The command, given its time limit."""
        # A training step's other phases (start, ceilings, turns) take about half a minute.
        ready = str(max(10, int(seconds) - 30))
        return [argument.replace("{ready}", ready) for argument in self.command]

    def missing(self) -> str | None:
        """The first package that it needs and that is not installed, or None."""
        return next((name for name in self.needs if not is_installed(name)), None)


def is_installed(name: str) -> bool:
    """Whether a package can be imported; its parents are imported to find out."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def plan(only: Sequence[str] = PARTS, output: Path | None = None) -> list[Job]:
    """The jobs of the chosen parts in their order. If parts are left out, the others share the whole time.

    Args:
        output: folder of the records, if it is not bench/results.
    """
    jobs = [job for job in (*_tests(), *_benchmarks()) if job.part in only]
    if set(only) != set(PARTS):
        factor = (TOTAL - RESERVE) / sum(job.seconds for job in jobs)
        jobs = [replace(job, seconds=int(job.seconds * factor)) for job in jobs]
    if output is not None:
        jobs = [replace(job, command=(*job.command, "--output", str(output))) if job.record else job for job in jobs]
    return jobs


def _tests() -> list[Job]:
    """Tests in several processes, by subject: a time limit or a broken GPU context ends one of them only."""
    groups = {
        "normalisation and pooling": (
            62,
            ("lrn", "same_map_norm", "max_pool", "lrn_max_pool", "same_map_norm_max_pool"),
        ),
        "convolution": (55, ("conv_relu", "conv_gemm", "channel_sum")),
        "dropout, loss, update": (38, ("dropout", "philox", "cross_entropy", "sgd")),
    }
    files = {name: [f"tests/kernels/test_{stem}.py" for stem in stems] for name, (_, stems) in groups.items()}
    named = {file for group in files.values() for file in group}
    everything = sorted(
        f"tests/kernels/{path.name}"
        for path in (ROOT / "tests" / "kernels").glob("test_*.py")
        if path.name not in _WITHOUT_GPU
    )
    step = ["tests/fastalex/training/test_step.py", "tests/fastalex/training/test_graphed_step.py"]
    step.append("tests/fastalex/parallel/test_pipeline.py")
    jobs = [_pytest(name, groups[name][0], files[name], _SMALL) for name in groups]
    jobs.append(_pytest("training step, CUDA graphs", 32, step, "test_step or graphed_step or graphs"))
    jobs.append(_pytest("other operator tests", 28, [file for file in everything if file not in named], _SMALL))
    jobs.append(_pytest("tensors beyond 2^31", 25, everything, _LARGE, parallel=False))
    return jobs


def _pytest(name: str, seconds: int, files: Sequence[str], expression: str, parallel: bool = True) -> Job:
    return Job("tests", name, seconds, (*pytest_command(parallel), *files, "-k", expression), needs=_TESTED)


def pytest_command(parallel: bool = True) -> tuple[str, ...]:
    """pytest with the plugin that writes every outcome; several processes compile kernels at the same time."""
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu_check.pytest_log")
    processes = min(8, len(os.sched_getaffinity(0)))
    return (*command, "-n", str(processes)) if parallel and processes > 1 and is_installed("xdist") else command


def _benchmarks() -> list[Job]:
    """Benchmarks: ours and eager PyTorch, bf16, batch 128. Compiled variants run in spare time."""
    few = ("--providers", "ours", "eager")
    sized = ("--batches", "128", "--dtypes", "bfloat16", *few)
    operators = ("lrn", "max_pool", "fusions", "dropout", "cross_entropy")
    step = ("--architectures", "krizhevsky", "--batches", "128", "--ready", "{ready}", "--variants")
    loader = ("--images", "800", "--seconds", "1.5", "--rounds", "1", "--workers", "4")
    return [
        *(_benchmark("operators", name, 15, sized) for name in operators),
        _benchmark("operators", "sgd", 15, ("--providers", "ours", "fused")),
        _benchmark("conv", "conv_relu", 40, sized),
        _benchmark("step", "train_step", 95, (*step, "ours bf16", "eager bf16")),
        _benchmark("step", "train_step", 0, (*step, "compile"), suffix="-compile", spare=(75, 150)),
        _benchmark("loader", "loader", 55, loader, needs=("nvidia.dali", "tyro")),
    ]


def _benchmark(
    part: str,
    script: str,
    seconds: int,
    options: tuple[str, ...],
    *,
    suffix: str = "",
    needs: tuple[str, ...] = (),
    spare: tuple[int, int] | None = None,
) -> Job:
    """A benchmark; its record's name begins with "gpu-", so that it replaces none with all providers and sizes."""
    record = f"gpu-{script}{suffix}"
    command = (sys.executable, f"bench/{script}.py", "--name", record, *options)
    return Job(part, f"{script}{suffix}", seconds, command, record, script, needs, spare)
