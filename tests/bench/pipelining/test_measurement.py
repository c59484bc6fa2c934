"""From measured rounds to rows."""

import json

import pytest
from pipelining.block_costs import INSTANT, BlockCost, Link
from pipelining.measurement import Measurement, describe, median_round, scenario
from pipelining.parts import all_splits, balanced, sizes
from pipelining.simulation import Span

from fastalex.network.variation import build_architecture
from fastalex.parallel.layout import Layout
from fastalex.parallel.partition import partition

PIPELINE = Layout(1, 2, 2)


@pytest.fixture
def bench(tmp_path) -> Measurement:
    architecture = build_architecture("krizhevsky")
    return Measurement(architecture, 128, 128, steps=4, rounds=3, precision="fp32", output=tmp_path)


def measured(bench: Measurement, seconds: float) -> dict:
    names = bench.architecture.block_names
    costs = [BlockCost(name, ((1, 0.01),), ((1, 0.02),), 0.0, 0, 0) for name in names]
    spans = [
        Span(0, ("forward", 0, 0, 0, 0), 0.0, 1.0),
        Span(1, ("forward", 0, 1, 0, 0), 1.0, 2.0),
        Span(1, ("backward", 0, 1, 0, 0), 2.0, 4.0),
    ]
    return {"seconds": seconds, "spans": spans, "costs": [costs, costs]}


def test_trials_have_the_defaults_of_training(bench):
    plan = bench.trial(PIPELINE, 4).plan
    assert (plan.schedule, plan.micro_batches) == ("1f1b", 4)
    assert plan.split == tuple(partition(bench.architecture, 2))
    assert len(plan.devices) == 2
    assert bench.trial(PIPELINE, 1).plan.schedule == "gpipe"
    assert bench.trial(Layout(1, 2, 4), 4).plan.schedule == "interleaved"
    assert bench.trial(PIPELINE, 4, "eager-1f1b").plan.schedule == "eager-1f1b"
    assert [trial.plan.layout.workers for trial in bench.alone([1, 2])] == [1, 1]
    assert bench.trial(Layout(2, 1, 1), 1).rows == 64


def test_rows_compare_with_the_baseline_of_the_same_round(bench, capsys):
    rounds = [measured(bench, seconds) for seconds in (4.0, 8.0, 16.0)]
    baseline = [measured(bench, seconds) for seconds in (4.0, 6.0, 8.0)]
    trial = bench.trial(PIPELINE, 4)
    simulated = bench.add("two workers", trial, rounds, {}, baseline)
    (row,) = bench.rows
    assert row["images_per_second"] == 64.0
    assert row["rounds"] == [128.0, 64.0, 32.0]
    assert row["of_one_process"] == 0.75
    assert row["simulated_images_per_second"] == pytest.approx(128 / simulated.seconds, abs=0.01)
    assert row["measured_over_simulated"] == pytest.approx(simulated.seconds / 2, abs=0.001)
    assert row["bubble"] == [0.75, 0.25]
    assert row["split"] == "conv3"
    path = bench.write("two", links=[])
    record = json.loads(path.read_text())
    assert path.name == "pipeline_two.json"
    assert record["rows"] == [row]
    assert record["settings"]["timed_steps"] == 4
    assert bench.rows == []
    assert "two workers" in capsys.readouterr().out


def test_the_simulation_knows_the_link_of_a_layout_with_other_stages(bench):
    links = {PIPELINE: (Link(1.0, 2.0), INSTANT)}
    assert scenario(bench.trial(Layout(1, 2, 4), 4), links).link == Link(1.0, 2.0)
    assert scenario(bench.trial(Layout(2, 1, 1), 1), links).link == INSTANT
    assert scenario(bench.trial(Layout(2, 1, 1), 1), links).batch_size == 64


def test_the_median_round_is_the_faster_of_two():
    rounds = [{"seconds": seconds} for seconds in (3.0, 1.0, 2.0)]
    assert median_round(rounds)["seconds"] == 2.0
    assert median_round(rounds[:2])["seconds"] == 1.0


def test_trials_are_described(bench):
    assert describe(bench.trial(PIPELINE, 4)) == "two workers, 2 stages"
    assert describe(bench.trial(Layout(2, 2, 2), 2)) == "four workers, 2 replicas of 2 stages"
    assert describe(bench.trial(Layout(2, 1, 1), 1)) == "two workers, 2 replicas"


def test_every_split_has_all_blocks_in_order():
    every = list(all_splits("abcd", 3))
    assert every == [(("a",), ("b",), ("c", "d")), (("a",), ("b", "c"), ("d",)), (("a", "b"), ("c",), ("d",))]
    assert sizes(16, (1, 2, 4)) == [4, 8, 16]


def test_the_balanced_network_has_two_equal_halves():
    names = balanced().block_names
    assert [len(part) for part in partition(balanced(), 2)] == [5, 5]
    assert len(names) == 10


def test_single_processes_and_workers_take_turns(bench, monkeypatch):
    pipeline, (alone, apart), calls = bench.trial(PIPELINE, 4), bench.alone([1, 2]), []
    seconds = {1: iter([(8.0, 4.0), (6.0, 9.0), (9.0, 5.0)]), 2: iter([(5.0,), (12.0,), (6.0,)])}

    def time(self, workers, trials):
        calls.append((self.rounds, workers, list(trials)))
        return [[measured(bench, one)] for one in next(seconds[workers])]

    monkeypatch.setattr(Measurement, "time", time)
    bench.compare([("two workers", pipeline)], [alone, apart])
    assert calls == [(1, 1, [alone, apart]), (1, 2, [pipeline])] * 3
    # The fastest single process by its median has 2 micro-batches: 4, 9 and 5 seconds.
    assert [row["of_one_process"] for row in bench.rows] == [0.556, 1.0, 0.8]
    assert bench.rows[2]["rounds"] == [102.4, 42.67, 85.33]
