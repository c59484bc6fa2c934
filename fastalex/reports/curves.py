"""Training curves: the points of ``metrics.jsonl`` over epochs, and where they are in a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastalex.training.metrics_log import without_backend

MOST_POINTS = 120
"""Training points of a run. More would not be told apart, so neighbours are averaged."""

# The chart in pixels of its own: its size, and its margins left, top, right and bottom.
WIDTH, HEIGHT = 460, 300
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 12, 12, 40

Quantity = Literal["loss", "top1_error"]


@dataclass(frozen=True)
class Point:
    """Mean values over images.

    Args:
        epoch: how many epochs were finished then; training points lie within an epoch.
        loss: cross-entropy in nats.
        top1_error: in percent.
    """

    epoch: float
    loss: float
    top1_error: float


@dataclass(frozen=True)
class History:
    """The curves of one run."""

    name: str
    training: tuple[Point, ...]
    validation: tuple[Point, ...]


@dataclass(frozen=True)
class Line:
    """One curve as it is drawn.

    Args:
        name: of the run.
        run: its number, from which colour, dashes and marker follow.
        kind: ``training`` or ``validation``.
        places: of its points in the drawing.
        points: for each place, the epoch and the value.
    """

    name: str
    run: int
    kind: Literal["training", "validation"]
    places: tuple[tuple[float, float], ...]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """One quantity of all runs over epochs.

    Args:
        title: the quantity with its unit.
        x_ticks, y_ticks: places and numbers on the axes.
        lines: the curves.
    """

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def history(name: str, lines: Sequence[dict[str, Any]]) -> History:
    """The curves of a run from the lines of its ``metrics.jsonl``.

    An epoch lasts from the last step of the one before to its own last step. The length of an unfinished epoch is that
    of the longest finished one, if there is any.
    """
    last_step: dict[int, int] = {}
    for line in lines:
        last_step[line["epoch"]] = max(line["step"], last_step.get(line["epoch"], 0))
    finished = {line["epoch"] for line in lines if line["kind"] == "val"}
    start, length = {}, {}
    previous = 0
    for epoch in sorted(last_step):
        start[epoch], length[epoch] = previous, last_step[epoch] - previous
        previous = last_step[epoch]
    longest = max((length[epoch] for epoch in finished), default=0)
    for epoch in set(last_step) - finished:
        length[epoch] = max(length[epoch], longest)

    training = [line for line in lines if line["kind"] == "train"]
    size = -(-len(training) // MOST_POINTS) or 1
    groups = [training[first : first + size] for first in range(0, len(training), size)]
    return History(
        name,
        tuple(
            _mean(group, group[-1]["epoch"] - 1 + _share(group[-1]["step"], start, length, group[-1]["epoch"]))
            for group in groups
        ),
        tuple(_mean([line], line["epoch"]) for line in lines if line["kind"] == "val"),
    )


def _share(step: int, start: dict[int, int], length: dict[int, int], epoch: int) -> float:
    return (step - start[epoch]) / length[epoch] if length[epoch] else 1.0


def _mean(lines: Sequence[dict[str, Any]], epoch: float) -> Point:
    """The mean over all images of some lines."""
    images = max(1, sum(line["images"] for line in lines))
    loss, error = (
        sum(line[name] * line["images"] for line in lines) / images if len(lines) > 1 else lines[0][name]
        for name in ("loss", "top1_error")
    )
    return Point(epoch, loss, error)


def draw(title: str, quantity: Quantity, histories: Sequence[History]) -> Chart:
    """Lay out one quantity of all runs.

    Args:
        histories: at least one has a point.
    """
    pairs = [(h, points) for h in histories for points in (h.training, h.validation)]
    epochs = max((point.epoch for _, points in pairs for point in points), default=1)
    highest = max((getattr(point, quantity) for _, points in pairs for point in points), default=1.0)
    if quantity == "top1_error":
        highest = 100.0
    x_numbers, y_numbers = _ticks(epochs, whole=True), _ticks(highest)
    x_end, y_end = max(x_numbers[-1], epochs), max(y_numbers[-1], highest)

    def x(value: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * value / x_end, 1)

    def y(value: float) -> float:
        return round(HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / y_end, 1)

    lines = []
    for number, run in enumerate(histories):
        kinds: tuple[tuple[Literal["training", "validation"], tuple[Point, ...]], ...] = (
            ("training", run.training),
            ("validation", run.validation),
        )
        for kind, points in kinds:
            values = tuple((round(p.epoch, 3), round(getattr(p, quantity), 4)) for p in points)
            lines.append(Line(run.name, number, kind, tuple((x(e), y(v)) for e, v in values), values))
    return Chart(
        title,
        tuple((x(number), f"{number:g}") for number in x_numbers),
        tuple((y(number), f"{number:g}") for number in y_numbers),
        tuple(lines),
    )


def _ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to at least ``highest``."""
    with without_backend():
        from matplotlib.ticker import MaxNLocator  # slow to import

    return [float(n) for n in MaxNLocator(6, integer=whole).tick_values(0, max(highest, 1e-9)) if n >= 0]
