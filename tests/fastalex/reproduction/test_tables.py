"""Tables, claims, figure 1 and the estimate of time, from records with known numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastalex.options.training import NetworkOptions
from fastalex.reproduction import claims, figures, hours, tables
from fastalex.reproduction.job import Job
from fastalex.reproduction.targets import Targets
from fastalex.studies.claims import STUDIES, find_study
from tests.fastalex.studies.conftest import finish, line


def write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def errors(top1: float, top5: float) -> dict:
    return {"top1_error": top1, "top5_error": top5}


@pytest.fixture
def targets(job: Job) -> Targets:
    """Of a job with pre-training whose evaluations and baselines are there, with two networks a row."""
    job = replace(job, pretraining=replace(job.main, place="ImageNet's Fall 2011 release"))
    found = Targets(job, 8)
    alone = [errors(40.0, 10.0), errors(50.0, 12.0)]
    write(found.evaluation(1).result, errors(44.0, 9.0) | {"networks": [errors(42.0, 11.0), errors(52.0, 13.0)]})
    write(found.evaluation(10).result, errors(39.0, 8.0) | {"networks": alone})
    more = [errors(30.0, 5.0), errors(32.0, 7.0)]
    write(found.pretrained_evaluation.result, errors(25.0, 4.0) | {"networks": [*alone, *more]})
    for fraction, baselines in found.baselines.items():
        for seed, step in enumerate(baselines):
            images = round(60 * fraction)
            write(step.result, errors(60 - 20 * fraction + seed, 20.0) | {"training_images": images})
    stage = {"memory": 3 * 2**30, "device": "cpu"}
    write(found.plan.result, {"stages": [stage, stage], "batch_size": 8, "images_per_second": 100.0})
    return found


def test_table_1(targets):
    table = tables.table1(targets)
    assert [row.model for row in table.rows] == ["sparse coding", "SIFT + FVs", "CNN", "CNN, one view"]
    assert table.cells == [
        ("sparse coding", "47.1", "28.2", "–", "–", "not reproduced"),
        ("SIFT + FVs", "45.7", "25.7", "40.50 ± 0.71", "20.00 ± 0.00", "2 seeds"),
        ("CNN", "37.5", "17.0", "45.00 ± 7.07", "11.00 ± 1.41", "2 networks, ten views"),
        ("CNN, one view", "39.0", "18.3", "47.00 ± 7.07", "12.00 ± 1.41", "2 networks, one view"),
    ]
    assert "6 classes, not ILSVRC-2010: 12 val images, 60 training images" in table.caption


def test_table_2(targets):
    table = tables.table2(targets)
    assert [row[:1] + row[3:] for row in table.cells] == [
        ("1 CNN", "45.00 ± 7.07", "11.00 ± 1.41", "2 networks"),
        ("5 CNNs", "39.00", "8.00", "the 2 together"),
        ("1 CNN*", "31.00 ± 1.41", "6.00 ± 1.41", "2 networks"),
        ("7 CNNs*", "25.00", "4.00", "the 2 and 2 pre-trained together"),
    ]
    assert [row["published"]["top1_error"] for row in table.record()["rows"]] == [40.7, 38.1, 39.0, 36.7]


def test_one_network_is_no_ensemble(job, targets):
    alone = Targets(replace(job, settings=replace(job.settings, seeds=1)), 8)
    write(alone.evaluation(10).result, errors(40.0, 10.0) | {"networks": [errors(40.0, 10.0)]})
    rows = {row.model: row for row in tables.table2(alone).rows}
    assert str(rows["1 CNN"].top1) == "40.00"
    assert rows["5 CNNs"].behind == "needs several networks"
    assert rows["7 CNNs*"].top1 is None


def test_top_5_is_left_out_of_few_classes(targets):
    table = tables.table2(targets)
    data = table.source.data
    data.classes = data.classes[:5]
    assert [len(row) for row in table.cells] == [5] * 4
    assert table.header == ("model", "paper, top-1", "paper, top-5", "measured, top-1", "measured on")


def study_record(name: str) -> dict:
    """A record in which every variant is worse than the one before by a point, with a known mark."""
    study, rows = STUDIES[name], []
    for number, variant in enumerate(study.variants):
        difference = {"value": float(number), "is_larger": number > 1}
        runs = [{"seed": seed, "top1_error": 50.0 + number} for seed in (0, 1)]
        rows.append(
            {"variant": variant.name, "options": {**variant.network, **variant.training}, "runs": runs}
            | {"diverged": 0, "not_learned": 2 * (number == 3), "epochs_to_goal": None}
            | {"top1_difference": difference if number else None, "top5_difference": None}
        )
    return {"rows": rows, "ratio": 4.0, "fastest": {"relu": "relu lr 0.001", "tanh": "tanh lr 0.01"}}


def test_every_claim_has_a_finding(targets):
    for name in STUDIES:
        write(targets.study(name).result / "study.json", study_record(name))
    found = claims.findings(targets)
    by_variant = {finding.variant: finding for finding in found}
    assert len(by_variant) == len(found)
    depth = [by_variant[f"{name}, against five conv layers"].measured for name in ("without conv3", "without conv4")]
    assert depth == ["+1.00~", "+2.00"]
    assert by_variant["without conv5, against five conv layers"].measured == "+3.00 (did not learn)"
    assert by_variant["without conv5, against five conv layers"].published == "about +2.0"
    assert by_variant["relu against tanh"].measured == "4.0 times"
    assert by_variant["relu against tanh"].published == "6 times"
    assert by_variant["1 CNN* against 1 CNN"].measured == "45.00 / 11.00 to 31.00 / 6.00"
    views = by_variant["one view, ten views, 2 networks together"]
    assert views.measured == "47.00 / 12.00 to 45.00 / 11.00 to 39.00 / 8.00"
    assert views.published.startswith("39.0 / 18.3 to 37.5 / 17.0")
    handcrafted = by_variant["SIFT + Fisher vectors against the network, one view"]
    assert handcrafted.measured == "40.50 / 20.00 to 47.00 / 12.00"
    memory = by_variant["memory of each device, and speed"]
    assert memory.measured == "3.00 and 3.00 GiB at batch 8; 100.0 images/s"
    assert {finding.claim for finding in found} >= {study.claim for study in STUDIES.values()}


def test_the_curve_of_data_set_size(targets):
    write(targets.study("dataset-size").result / "study.json", study_record("dataset-size"))
    lines = figures.data_set_size(targets)["lines"]
    assert lines["the network"] == [
        {"images": images, "top1_errors": [error, error]} for images, error in ((6, 52.0), (18, 51.0), (60, 50.0))
    ]
    assert lines["SIFT + Fisher vectors"][-1] == {"images": 60, "top1_errors": [40.0, 41.0]}
    assert (targets.job.output / "dataset-size.svg").read_text().startswith("<?xml")


def test_figure_1_shows_the_best_rate_of_each(targets):
    step, study = targets.study("activation"), find_study("activation")
    write(step.result / "study.json", study_record("activation"))
    slow = {
        "relu lr 0.003": (60.0, 20.0, 10.0),
        "relu lr 0.001": (60.0, 30.0, 24.0),
        "tanh lr 0.01": (70.0, 65.0, 60.0),
    }
    for run in hours._runs(step):
        log = []
        for epoch, error in enumerate(slow.get(run.variant.name, (90.0, 90.0, 90.0)), 1):
            # Two batches of different sizes, whose weighted mean is the error.
            log += [line("train", epoch, error - 1.0, 24), line("train", epoch, error + 3.0, 8)]
        finish(run, log, epoch=3)
    found = figures.figure1(targets)
    assert {name: curve["variant"] for name, curve in found["curves"].items()} == {
        "relu": "relu lr 0.003",
        "tanh": "tanh lr 0.01",
    }
    assert found["curves"]["relu"]["training_errors"] == pytest.approx([60.0, 20.0, 10.0])
    assert found["curves"]["relu"]["epochs_to_goal"] == 2
    assert found["curves"]["tanh"]["epochs_to_goal"] is None
    assert study.published_ratio == found["published_ratio"]
    with Image.open(targets.job.output / "figure1.png") as picture:
        assert picture.size[0] > 400


def test_the_estimate_counts_arithmetic_and_shared_runs_once(targets, tmp_path):
    path = tmp_path / "plan.json"
    config = hours.recipe_of(targets.networks[0])
    macs = hours._macs(config)
    write(path, {"images_per_second": 10.0, "training_macs_per_image": macs})
    estimate = hours.Estimate(path)
    assert config.network.variation == NetworkOptions(width=0.0625, init="scaled").variation
    assert estimate.seconds(targets.networks[0], set()) == pytest.approx(2 * 60 / 10)
    assert estimate.seconds(targets.evaluation(10), set()) == pytest.approx(12 * 10 * 2 / 3 / 10)
    assert estimate.seconds(targets.first_baselines[0], set()) is None
    finished: set[str] = set()
    first, second = (estimate.seconds(targets.study(name), finished) for name in ("lrn", "overlapping"))
    assert first == pytest.approx(2 * estimate.seconds(targets.study("lrn"), {*finished, "other"}) + first, rel=1e-6)
    assert second == pytest.approx(estimate.seconds(targets.study("overlapping"), set()) - 2 * 2 * 60 / 10, rel=0.01)
