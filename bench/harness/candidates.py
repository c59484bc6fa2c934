"""Providers of a case with what was found before they are timed: whether they are right, and their memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.cases import (
    Case,
    Operator,
    definition_results,
    failure_reason,
    find_error,
    in_memory_format,
    random_inputs,
    timed_work,
)
from harness.memory import peak_bytes, saved_and_peak_bytes

Say = Callable[[str], None]
Own = tuple[list[Tensor], Tensor]
Timed = tuple[Callable[[], Any], Callable[[Any], Any]]


@dataclass(frozen=True)
class InPlace:
    """Work without a backward pass, such as an optimizer's update.

    Attributes:
        make: makes the work. Its first call may allocate memory that later calls use again.
        bytes_moved: the fewest bytes that it must read and write.
        check: returns what is wrong with the provider's result, or None.
    """

    make: Callable[[], Callable[[], Any]]
    bytes_moved: int
    check: Callable[[], str | None]


@dataclass
class Candidate:
    """A provider that is timed unless something is wrong with it.

    Attributes:
        amounts: direction -> bytes moved, or additions and multiplications.
        timed: direction -> what to prepare untimed, and what to time.
        error: what is wrong with it.
        saved: bytes saved for the backward pass.
        peak: the most bytes allocated.
    """

    name: str
    memory_format: str
    amounts: Mapping[str, int]
    timed: Callable[[str], Timed]
    error: str | None = None
    saved: int | None = None
    peak: int | None = None


def candidates_of_case(case: Case, names: Sequence[str], say: Say) -> list[Candidate]:
    """Check these providers of a case, and measure their memory.

    Args:
        say: prints the progress.
    """
    # Cases share their functions, and Dynamo compiles a function a few times only. What one provider compiles is timed
    # after the next one has been checked, so nothing is dropped between them. A function that is compiled too often
    # raises an exception; by default it would run eagerly under the name of a compiled one.
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    inputs, grad = random_inputs(case)
    wanted = definition_results(case, inputs, grad)
    # Providers of the same memory format share the memory of their inputs.
    formats = {case.providers[name][1] for name in names}
    shared = {memory_format: in_memory_format(case, inputs, grad, memory_format) for memory_format in formats}
    found = []
    for name in names:
        operator, memory_format = case.providers[name]
        own = in_memory_format(case, *shared[memory_format], memory_format)
        work = partial(timed_work, operator, *own, case)
        candidate = Candidate(name, memory_format, case.operations or case.bytes_moved, work)

        def examine(candidate: Candidate = candidate, operator: Operator = operator, own: Own = own) -> None:
            check = case.checks.get(candidate.name)
            candidate.error = check(operator(*own[0]), own[0]) if check else find_error(operator, case, *own, wanted)
            candidate.saved, candidate.peak = saved_and_peak_bytes(operator, own[0])

        say(f"  {case.op} {joined(case.shape)} {name}")
        _attempt(candidate, examine)
        say(f": wrong, {candidate.error}\n" if candidate.error else ": right\n")
        found.append(candidate)
    return found


def candidates_in_place(what: str, providers: Mapping[str, InPlace], say: Say) -> list[Candidate]:
    """Check these providers of work in place, and make the work of those that are right.

    Args:
        what: operator and shape, for the progress.
    """
    torch._dynamo.reset()
    found = [Candidate(name, "flat", {"forward": p.bytes_moved}, _nothing, saved=0) for name, p in providers.items()]
    for candidate in found:
        provider = providers[candidate.name]
        say(f"  {what} {candidate.name}")
        _attempt(candidate, partial(_check, candidate, provider))
        say(f": wrong, {candidate.error}\n" if candidate.error else ": right\n")
    torch._dynamo.reset()  # code compiled for the shapes of the check would be compiled again for any shape
    for candidate in found:
        if candidate.error is None:
            _attempt(candidate, partial(_make, candidate, providers[candidate.name]))
    return found


def _check(candidate: Candidate, provider: InPlace) -> None:
    candidate.error = provider.check()


def _make(candidate: Candidate, provider: InPlace) -> None:
    work = provider.make()
    work()
    candidate.peak = peak_bytes(work)
    candidate.timed = lambda _: (lambda: None, lambda _: work())


def _nothing(direction: str) -> Timed:
    raise ValueError(f"{direction} has no work")


def _attempt(candidate: Candidate, action: Callable[[], None]) -> None:
    """Do something; if it fails, the candidate is wrong."""
    try:
        action()
    except Exception as failure:
        candidate.error = failure_reason(failure)


def joined(shape: Sequence[int]) -> str:
    """A shape as text, such as 64x96x55x55."""
    return "x".join(map(str, shape))
