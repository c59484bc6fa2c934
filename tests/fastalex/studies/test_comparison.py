"""The comparison of a study: figures follow from its runs, and uncertain differences are marked."""

import re
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Picture
from rich.console import Console

from fastalex.metrics import did_not_learn, learning_margin
from fastalex.studies.claims import Variant, find_study
from fastalex.studies.comparison import (
    Difference,
    Figure,
    Row,
    _record,
    _row_record,
    compare,
    comparison_table,
    epoch_ratio,
    fastest_variants,
    remarks,
    uncertain_differences,
)
from fastalex.studies.picture import draw_comparison
from fastalex.studies.runs import RunResult, plan_runs
from tests.fastalex.studies.conftest import finish, line, options


def test_epochs_to_the_goal_are_read_from_the_training_error(prepared, tmp_path):
    chosen = find_study("activation")
    chosen = replace(chosen, variants=(chosen.variants[0], chosen.variants[4]), network={}, training={})
    runs = plan_runs(chosen, options(prepared, lr=None, epochs=9), seeds=2, folder=tmp_path)
    first_epoch_within = {"relu": (3, 5), "tanh": (8, 8)}
    for run in runs:
        within = first_epoch_within[run.variant.name.split()[0]][run.config.seed]
        log = []
        for epoch in range(9):
            log.append(line("train", epoch, 20.0 if epoch + 1 >= within else 40.0, 24))
            log.append(line("train", epoch, 40.0, 8))  # in a window of another size
            log.append(line("val", epoch, 60.0))
        finish(run, log, epoch=9)
    table = compare(chosen, runs)
    best = fastest_variants(chosen, table)
    assert (best["relu"].epochs_to_goal, best["tanh"].epochs_to_goal) == (Figure(4.0, 2**0.5), Figure(8.0, 0.0))
    record = _record(chosen, runs, table)
    assert (record["ratio"], record["published_ratio"]) == (2.0, 6)
    assert record["fastest"] == {family: row.variant.name for family, row in best.items()}
    assert epoch_ratio(chosen, table) in record["remarks"]


def test_the_record_has_every_figure_of_a_row():
    results = (RunResult(0, 40.0, 20.0, 7.26, 3), RunResult(1, 42.0, 23.0, 8.0, 5))
    variant = find_study("lrn").variants[1]
    errors = Figure(41.0, 1.41421), Figure(21.5, None)
    differences = Difference(1.5, True), Difference(-0.5, None)
    published = variant.published
    assert _row_record(Row(variant, 77, 9, results, 1, *errors, *differences, 1000, 2)) == {
        "variant": variant.name,
        "options": {"lrn": False},
        "parameters": 77,
        "epochs": 9,
        "top1_error": {"mean": 41.0, "spread": 1.4142},
        "top5_error": {"mean": 21.5, "spread": None},
        "top1_difference": {"value": 1.5, "is_larger": True},
        "top5_difference": {"value": -0.5, "is_larger": None},
        "published": {
            "top1": published.top1,
            "top5": published.top5,
            "where": published.details,
            "about": published.qualifier,
        },
        "seconds": 7.6,
        "epochs_to_goal": None,  # not reached by the run that diverged
        "diverged": 1,
        "not_learned": 2,
        "runs": [
            {"seed": 0, "top1_error": 40.0, "top5_error": 20.0, "seconds": 7.3, "epochs_to_goal": 3},
            {"seed": 1, "top1_error": 42.0, "top5_error": 23.0, "seconds": 8.0, "epochs_to_goal": 5},
        ],
    }
    assert published.top1 != published.top5


def row(variant: Variant, *epochs: int | None, diverged: int = 0) -> Row:
    """A variant whose runs reached the training error in these epochs."""
    results = tuple(RunResult(seed, 10.0 + seed, 5.0, 1.0, epoch) for seed, epoch in enumerate(epochs))
    error = Figure.of([result.top1_error for result in results])
    return Row(variant, 1, 9, results, diverged, error, error, None, None, 1000, 0)


def test_the_goal_counts_only_if_every_run_of_a_variant_reached_it():
    relu, _, third = find_study("activation").variants[:3]
    assert row(relu, 3, 5).epochs_to_goal == Figure(4.0, 2**0.5)
    assert row(relu, 3).epochs_to_goal == Figure(3.0, None)
    for incomplete in (row(relu), row(relu, None), row(relu, 3, None), row(relu, 3, diverged=1)):
        assert incomplete.epochs_to_goal is None
    rows = [row(relu, 8, 8), row(third, 3, diverged=1)]
    assert fastest_variants(find_study("activation"), rows)["relu"] is rows[0]


def test_the_fastest_variant_of_each_family_is_compared():
    study = find_study("activation")
    families = {family: [v for v in study.variants if v.name.startswith(family)] for family in study.families}
    rows = [row(variant, 5 - index) for variants in families.values() for index, variant in enumerate(variants[:2])]
    rows.append(row(replace(rows[0].variant, name=f"no {study.families[0]}"), 1))  # of neither family
    assert fastest_variants(study, rows) == dict(zip(study.families, (rows[1], rows[3]), strict=True))
    assert "Ratio 1.0" in epoch_ratio(study, rows)
    only_relu = epoch_ratio(study, rows[:2])
    assert only_relu.endswith(f"{study.families[1]} did not reach it.")


def test_a_goal_that_was_not_reached_is_a_text_and_not_a_bar(tmp_path, monkeypatch, capsys):
    chosen = find_study("activation")
    table = [row(v, *e) for v, e in zip(chosen.variants, [(4, 5), (None, 6), (), (8, 9), (7, None)], strict=False)]
    table[2] = replace(table[2], diverged=2)
    drawn: list[Picture] = []
    monkeypatch.setattr(Picture, "savefig", lambda picture, *_, **__: drawn.append(picture))
    draw_comparison(chosen, table, tmp_path / "study.png")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [4.5, 8.5]
    assert [(text.get_position()[1], text.get_text()) for text in axes.texts] == [
        (1, "not reached"),
        (2, "diverged"),
        (4, "not reached"),
    ]
    draw_comparison(find_study("dropout"), table[1:3], tmp_path / "study.png")
    for axes in drawn[1].axes:
        assert len(axes.patches) == 1
        assert [text.get_text() for text in axes.texts] == ["diverged"]
    Console(width=200).print(comparison_table(chosen, table))
    out = capsys.readouterr().out
    assert "difference" not in out
    assert out.count("not reached") == 2


def test_top_5_errors_are_shown_where_there_are_any(tmp_path, monkeypatch, capsys):
    """With five classes or fewer there are none, and the published ones would compare with nothing."""
    chosen = find_study("lrn")
    table = [row(variant, 1) for variant in chosen.variants]
    without = [replace(one, top5=None) for one in table]
    published = chosen.variants[1].published
    assert published.top5 is not None
    drawn: list[Picture] = []
    monkeypatch.setattr(Picture, "savefig", lambda picture, *_, **__: drawn.append(picture))
    for rows, shown in ((table, str(published)), (without, str(replace(published, top5=None)) + " ")):
        draw_comparison(chosen, rows, tmp_path / "study.png")
        Console(width=200).print(comparison_table(chosen, rows))
        out = capsys.readouterr().out
        assert shown in out
        assert ("top-5" in out) == (len(drawn[-1].axes) == 2) == (rows is table)


def test_a_ratio_within_the_spread_is_marked_as_uncertain():
    chosen = find_study("activation")
    relu, tanh = chosen.variants[0], chosen.variants[4]
    for epochs, expected in (
        (((4, 4), (8, 9)), r"Ratio 2\.1 \(paper: 6\)\.$"),
        (((4, 4), (3, 9)), r"Ratio 1\.5 .* not larger than the spread over seeds and may be chance"),
        (((4,), (8,)), r"Ratio 2\.0 .* One run has no spread"),
    ):
        assert re.search(expected, epoch_ratio(chosen, [row(relu, *epochs[0]), row(tanh, *epochs[1])]))


def test_both_marks_of_uncertain_differences_are_explained():
    base, small, alone = (row(variant) for variant in find_study("depth").variants[:3])
    small = replace(small, top1_difference=Difference(0.1, False))
    alone = replace(alone, top1_difference=Difference(3.0, None))
    assert [line[:2] for line in uncertain_differences([base, small, alone])] == ["~:", "?:"]


def test_differences_within_the_spread_are_marked_as_uncertain():
    base = Figure.of([50.0, 52.0, 54.0])
    assert base == Figure(52.0, 2.0)
    assert str(Difference.between(Figure(53.9, 0.1), base)) == "+1.90~"
    assert str(Difference.between(Figure(54.1, 0.1), base)) == "+2.10"
    assert str(Difference.between(Figure(49.0, 4.0), base)) == "-3.00~"
    assert str(Difference.between(Figure.of([60.0]), base)) == "+8.00?"
    assert str(Difference.between(Figure(54.0, 0.1), base)) == "+2.00~"
    assert str(Difference.between(Figure(49.0, 1.0), base)) == "-3.00"
    assert str(Difference.between(Figure(60.0, 1.0), Figure(50.0, None))) == "+10.00?"
    assert Difference.between(None, base) is None
    assert Difference.between(base, None) is None
    assert Figure.of([]) is None


def test_the_fastest_variant_of_a_family_needs_the_fewest_epochs():
    chosen = find_study("activation")
    epochs = (6, 4, 5, 9, 8, None, 7, 9)
    table = [row(variant, within) for variant, within in zip(chosen.variants, epochs, strict=True)]
    fastest = fastest_variants(chosen, table)
    assert {family: best.variant.name for family, best in fastest.items()} == {
        "relu": chosen.variants[1].name,
        "tanh": chosen.variants[6].name,
    }


def test_each_error_that_may_be_chance_is_named():
    base, one, both = (row(variant) for variant in find_study("depth").variants[:3])
    one = replace(one, top1_difference=Difference(3.0, True), top5_difference=Difference(0.1, False))
    both = replace(both, top1_difference=Difference(0.1, False), top5_difference=Difference(0.1, False))
    (line,) = uncertain_differences([base, one, both])
    assert line.endswith(f"be chance: {one.variant.name} (top-5), {both.variant.name} (top-1 and top-5).")


@pytest.mark.parametrize(
    ("classes", "images", "margin"), [(10, 250, 5.692), (1000, 50_000, 2.0), (20, 400, 3.269), (2, 16, 37.5)]
)
def test_learning_begins_three_standard_errors_below_chance_but_at_least_two_points(classes, images, margin):
    assert learning_margin(classes, images) == pytest.approx(margin, abs=1e-3)
    start = 100 * (1 - 1 / classes) - margin
    assert did_not_learn(start + 0.01, classes, images)
    assert not did_not_learn(start - 0.01, classes, images)


def test_runs_that_did_not_learn_are_counted_and_named(prepared, tmp_path, capsys):
    """Three classes and as many validation images as there are: guessing has an error of 66.67 %."""
    chosen = find_study("dropout")
    runs = plan_runs(chosen, options(prepared), seeds=2, folder=tmp_path)
    errors = {("dropout 0.5", 0): 10.0, ("dropout 0.5", 1): 66.0, ("no dropout", 0): 65.0, ("no dropout", 1): 70.0}
    for run in runs:
        top1 = errors[run.variant.name, run.config.seed]
        finish(run, [line("train", 1, top1, 32), line("val", 1, top1), line("val", 2, top1)], epoch=2)
    table = compare(chosen, runs)
    assert [(row.not_learned, row.failures) for row in table] == [(1, "1 of 2 did not learn"), (2, "did not learn")]
    assert [row.classes for row in table] == [3, 3]
    record = _record(chosen, runs, table)
    assert record["question"] == "Does dropout reduce overfitting?"
    assert [row["not_learned"] for row in record["rows"]] == [1, 2]
    (sentence,) = (text for text in remarks(chosen, runs, table) if text.startswith("did not learn: "))
    assert "points below chance" in sentence
    Console(width=200).print(comparison_table(chosen, table))
    out = capsys.readouterr().out
    assert "2 x 2 epochs, 1 of 2 did not learn" in out
    assert "2 x 2 epochs, did not learn" in out
    well = [replace(row, not_learned=0) for row in table]
    assert not [text for text in remarks(chosen, runs, well) if text.startswith("did not learn: ")]


def test_the_picture_asks_the_question_and_shows_chance_and_the_marks(tmp_path, monkeypatch):
    chosen = find_study("depth")
    base, small, alone, failed = (row(variant, 1, 2) for variant in chosen.variants[:4])
    small = replace(small, top1_difference=Difference(0.1, False), top5_difference=Difference(-2.5, True))
    alone = replace(alone, top1_difference=Difference(3.0, None), diverged=1, not_learned=1)
    failed = replace(failed, not_learned=2)
    drawn: list[Picture] = []
    monkeypatch.setattr(Picture, "savefig", lambda picture, *_, **__: drawn.append(picture))
    draw_comparison(chosen, [base, small, alone, failed], tmp_path / "study.png")
    draw_comparison(chosen, [base, replace(small, top1_difference=None)], tmp_path / "study.png")
    marked, plain = drawn
    assert marked.get_suptitle() == chosen.question == "Does every convolutional layer help?"
    top1, top5 = marked.axes
    for axes, chance in ((top1, 99.9), (top5, 99.5)):
        (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert list(dashed.get_xdata()) == pytest.approx([chance, chance])
        assert to_hex(dashed.get_color()) == "#d62728"
        assert [bar.get_hatch() for bar in axes.patches] == [None, None, None, "///"]
    in_part = "1 diverged, 1 of 2 did not learn"
    assert [text.get_text() for text in top1.texts] == ["+0.10~", "+3.00?", in_part, "did not learn"]
    assert [text.get_text() for text in top5.texts] == ["-2.50", in_part, "did not learn"]
    labels = [[text.get_text() for text in picture.legends[0].get_texts()] for picture in drawn]
    assert labels[0][:4] == ["mean over seeds", "one run", "chance", "did not learn"]
    assert [label[0] for label in labels[0][4:]] == ["~", "?"]
    assert labels[1] == labels[0][:3]
    assert plain.axes[0].get_yticklabels()[0].get_text() == "five conv layers"
