"""The counters from which a run resumes."""

import json
from dataclasses import asdict

import pytest

from fastalex.training.state import TrainingState


def test_best_is_strictly_lower_than_all_before_at_the_end_of_an_epoch():
    assert TrainingState(1, 0, 5, 1.0, [50.0]).is_best
    assert TrainingState(2, 0, 5, 1.0, [50.0, 49.0]).is_best
    assert not TrainingState(2, 0, 5, 1.0, [50.0, 50.0]).is_best
    assert not TrainingState(2, 64, 5, 1.0, [50.0, 49.0]).is_best
    assert not TrainingState().is_best


def test_replaced_samples_count_once():
    state = TrainingState()
    state.add_replaced("train", [13, 5])
    state.add_replaced("train", [5, 20])
    state.add_replaced("val", [])
    assert state.replaced == {"train": [5, 13, 20], "val": []}


def test_json_keeps_its_fields():
    values = {
        "epoch": 1, "samples": 8, "step": 5, "seconds": 1.5, "errors": [50.0], "replaced": {"train": [3]}, "skipped": 2,
        "velocity_rates": {"conv1.weight": 0.1},
    }  # fmt: skip
    assert asdict(TrainingState(**values)) == values
    assert TrainingState(**json.loads(json.dumps(values))) == TrainingState(**values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "there is no epoch"),
        ('{"epoch": 1, "samples": 0}', "there is no step"),
        ('{"epoch": "1", "samples": 0, "step": 4}', "epoch must be an integer, got '1'"),
        ('{"epoch": 1, "samples": 0, "step": -4}', "must be at least 0"),
        ('{"epoch": 1, "samples": 0, "step": 4, "errors": 5}', "errors must be a list, got 5"),
        ('{"epoch": 1, "samples": 0, "step": 4, "unknown": 5}', "unknown"),
        ("[]", "must be an object"),
        ("", "Expecting value"),
    ],
)
def test_what_is_no_state(text, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TrainingState.from_json(text)


def test_a_state_is_read_as_it_was_written():
    state = TrainingState(2, 8, 9, 1.5, [50.0, 25.0], {"train": [3]}, 1)
    assert TrainingState.from_json(json.dumps(asdict(state))) == state
