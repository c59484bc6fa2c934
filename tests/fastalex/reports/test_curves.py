"""Where the points of the training curves are."""

import pytest

from fastalex.reports.curves import HEIGHT, MOST_POINTS, WIDTH, Point, draw, history


def line(kind: str, epoch: int, step: int, loss: float = 1.0, error: float = 50.0, images: int = 8) -> dict:
    return {"kind": kind, "epoch": epoch, "step": step, "loss": loss, "top1_error": error, "images": images}


def test_points_lie_within_their_epoch_whatever_its_length():
    """A run whose second epoch has other data, and whose third one is not finished."""
    lines = [line("train", 1, 2), line("train", 1, 4), line("val", 1, 4), line("train", 2, 7), line("train", 2, 10)]
    lines += [line("val", 2, 10), line("train", 3, 13)]
    found = history("run", lines)
    assert [point.epoch for point in found.training] == pytest.approx([0.5, 1, 1.5, 2, 2.5])
    assert [point.epoch for point in found.validation] == [1, 2]


def test_the_first_epoch_of_a_run_that_has_finished_none():
    found = history("run", [line("train", 1, 2), line("train", 1, 8)])
    assert [point.epoch for point in found.training] == [0.25, 1]
    assert found.validation == ()


def test_points_of_long_runs_are_averaged_over_their_images():
    lines = [line("train", 1, 1 + i, loss=i, error=i % 7, images=1 + i % 3) for i in range(5 * MOST_POINTS // 2)]
    found = history("run", lines).training
    assert len(found) == -(-len(lines) // 3)
    assert found[1] == Point((6 / len(lines)), (3 * 1 + 4 * 2 + 5 * 3) / 6, (3 * 1 + 4 * 2 + 5 * 3) / 6)


def test_the_drawing_has_its_origin_at_the_lower_left_and_all_points_inside():
    one = history("one", [line("train", 1, 4, loss=7.3), line("val", 1, 4, loss=2), line("val", 2, 8, loss=1)])
    two = history("two", [line("val", 1, 5, loss=0)])
    chart = draw("loss", "loss", [one, two])
    assert [(drawn.name, drawn.run, drawn.kind) for drawn in chart.lines] == [
        ("one", 0, "training"),
        ("one", 0, "validation"),
        ("two", 1, "training"),
        ("two", 1, "validation"),
    ]
    (early, high), (late, low) = chart.lines[1].places
    assert early < late
    assert high < low  # SVG counts downwards
    assert chart.lines[1].points == ((1, 2), (2, 1))
    assert chart.lines[3].places[0][1] == chart.y_ticks[0][0] == chart.bottom
    assert chart.y_ticks[0][1] == chart.x_ticks[0][1] == "0"
    assert chart.x_ticks[0][0] == chart.left
    for drawn in chart.lines:
        assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn.places)
    assert all(float(text).is_integer() for _, text in chart.x_ticks)


def test_errors_have_the_same_axis_in_every_report():
    chart = draw("error", "top1_error", [history("run", [line("val", 1, 4, error=3.0)])])
    assert chart.y_ticks[-1] == (chart.top, "100")
