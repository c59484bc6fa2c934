"""Known speeds against the benchmarks' records, and the paper's own."""

import json

import pytest

from fastalex.planning.speed import PAPER_EPOCHS, PAPER_IMAGES, Speed, known_speeds, paper_speeds
from tests.fastalex.planning.recorded_speeds import SPEEDS, recorded_speeds


def test_the_table_holds_the_recorded_speeds():
    """After a record has changed: python -m tests.fastalex.planning.recorded_speeds."""
    assert json.loads(SPEEDS.read_text()) == recorded_speeds()


def test_known_speeds_are_those_of_the_architecture_fastest_first():
    speeds = known_speeds("krizhevsky")
    assert speeds[0] == Speed("NVIDIA H100 80GB HBM3", "bf16, batch 128, steps", speeds[0].images_per_second)
    assert [speed.images_per_second for speed in speeds] == sorted(
        (row["images_per_second"] for row in recorded_speeds() if row["architecture"] == "krizhevsky"), reverse=True
    )
    assert known_speeds("caffe") == []


def test_days_are_images_over_speed():
    assert Speed("", "", 27.0).days(27 * 86_400, 2) == pytest.approx(2)


def test_the_papers_speed_follows_from_its_days():
    slowest, fastest = paper_speeds()
    assert (round(slowest), round(fastest)) == (222, 267)
    assert Speed("", "", slowest).days(PAPER_IMAGES, PAPER_EPOCHS) == pytest.approx(6)
