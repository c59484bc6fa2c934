"""The commands of a reproduction: those that a user would type, and when their results are complete."""

import json
import os
from dataclasses import replace

import pytest
import tyro

from fastalex.errors import ConfigurationError
from fastalex.evaluation.options import EvaluateOptions
from fastalex.handcrafted.options import BaselineOptions
from fastalex.options.training import TrainOptions
from fastalex.planning.options import PlanOptions
from fastalex.reports.options import ReportOptions
from fastalex.reproduction import steps
from fastalex.reproduction.hours import check_possible
from fastalex.reproduction.job import TARGETS
from fastalex.reproduction.steps import Drawing, StudyStep, Training
from fastalex.reproduction.targets import Targets
from fastalex.studies.claims import STUDIES
from fastalex.studies.options import StudyOptions
from fastalex.studies.options import resolve as resolve_study
from tests.fastalex.reproduction.conftest import job_on

OPTIONS = {
    "fastalex.train": TrainOptions,
    "fastalex.evaluate": EvaluateOptions,
    "fastalex.baseline": BaselineOptions,
    "fastalex.study": StudyOptions,
    "fastalex.report": ReportOptions,
    "fastalex.plan": PlanOptions,
}


def test_every_command_is_understood(job, animals):
    """Also with pre-training, and with every option given."""
    job = replace(job, pretraining=job.main, settings=replace(job.settings, lr=0.01, precision="fp32"))
    planned = Targets(job, 8).steps()
    assert len({str(step.result) for step in planned}) == len(planned)
    for step in planned:
        if step.words[0] in OPTIONS:
            options = tyro.cli(OPTIONS[step.words[0]], args=step.words[1:])
            if isinstance(step, StudyStep):
                resolve_study(options)  # refuses options that the study sets itself
    names = [step.words[1] for step in planned if isinstance(step, StudyStep)]
    assert sorted(names) == sorted(STUDIES)
    trained = [tyro.cli(TrainOptions, args=step.words[1:]) for step in planned if isinstance(step, Training)]
    assert [options.training.seed for options in trained] == [0, 1] * 3
    assert [options.network.conv6 for options in trained] == [False, False, True, True, True, True]
    starts = [options.training.init_from for options in trained]
    assert starts == [None] * 4 + [options.output for options in trained[2:4]]
    assert {options.training.lr for options in trained} == {0.01}


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_alone_has_few_steps(animals, tmp_path, target, monkeypatch):
    monkeypatch.setattr(steps, "FEWEST_IMAGES", 6)
    planned = Targets(job_on(animals, tmp_path, target), 8).steps()
    kinds = [step.words[0].removeprefix("fastalex.") for step in planned]
    expected = {
        "table1": ["plan", "train", "evaluate", "evaluate", "baseline", "report"],
        "table2": ["plan", *["train"] * 5, "evaluate", "evaluate", "report"],
        "figure1": ["plan", "study"],
        "figure2": ["plan"],
        "figure3": ["plan", "train", "show", "report"],
        "figure4": ["plan", "train", "show", "report"],
        "claims": ["plan", *["train"] * 5, "evaluate", "evaluate", *["baseline"] * 9, *["study"] * 10, "report"],
    }
    assert kinds == expected[target]


def test_wide_networks_keep_their_initial_weights(animals, tmp_path):
    job = job_on(animals, tmp_path)
    assert "--init" in steps.network(job, job.main, 0).words
    whole = replace(job, settings=replace(job.settings, width=1.0))
    assert not {"--init", "--width"} & set(steps.network(whole, whole.main, 0).words)
    real = replace(whole.first, is_real=True)
    assert "source-145-2010" in steps.network(whole, real, 0).words


@pytest.mark.parametrize(
    ("fewest", "most", "fractions"),
    [(6, 60, [1.0, 0.3, 0.1]), (7, 60, [1.0, 0.3]), (60, 60, [1.0]), (61, 99, []), (6, 59, [])],
)
def test_hand_crafted_features_need_enough_images_and_not_too_many(job, monkeypatch, fewest, most, fractions):
    monkeypatch.setattr(steps, "FEWEST_IMAGES", fewest)
    monkeypatch.setattr(steps, "MOST_IMAGES", most)
    targets = Targets(job, 8)
    assert list(targets.baselines) == fractions
    assert bool(targets.first_baselines) == bool(fractions)
    assert any("baseline" in step.words[0] for step in targets.steps()) == bool(fractions)


def test_steps_that_could_not_start_are_refused_before_the_first_one(job, monkeypatch):
    monkeypatch.setattr(steps, "FEWEST_IMAGES", 2)
    (step,) = (step for step in Targets(job, 8).steps() if "--fraction 0.1 --seed 1" in " ".join(step.words))
    with pytest.raises(ConfigurationError, match="has 6 training images, fewer than 64 Gaussians"):
        check_possible(step)


def test_a_study_is_done_when_every_variant_has_its_runs(tmp_path):
    step = StudyStep("s", (), tmp_path, study="lrn", seeds=2)
    record = tmp_path / "study.json"
    for rows, done in (
        ([([1, 2], 0), ([1, 2], 0)], True),
        ([([1, 2], 0), ([1], 1)], True),
        ([([1, 2], 0), ([1], 0)], False),
    ):
        record.write_text(json.dumps({"rows": [{"runs": runs, "diverged": diverged} for runs, diverged in rows]}))
        assert step.is_done is done
    for text in ("{", "{}", "[]"):
        record.write_text(text)
        assert not step.is_done
    record.unlink()
    assert not step.is_done


def test_a_drawing_is_made_anew_when_a_run_has_changed(tmp_path):
    source, result, beside = (tmp_path / name for name in "abc")
    step = Drawing("d", (), result, sources=(source,), also=(beside,))
    for path, age in ((source, 30), (result, 20), (beside, 10)):
        assert not step.is_done
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert step.is_done
    os.utime(source, (985, 985))
    assert not step.is_done


def test_a_killed_baseline_begins_anew(job):
    step = steps.baseline(job, job.main, 0)
    (step.result.parent / "tmp").mkdir(parents=True)
    assert step.words_now() == step.words
    assert not step.result.parent.exists()
