"""Studies: every variant can be built, a study goes on after anything, and its figures are those of its runs."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure as Picture
from rich.console import Console

from fastalex import study
from fastalex.errors import ConfigurationError
from fastalex.network.variation import Variation, build_architecture
from fastalex.parallel.devices import parse_devices
from fastalex.studies import runs
from fastalex.studies.claims import STUDIES, Variant, find_study
from fastalex.studies.comparison import Difference, Figure, Row, draw, fastest, ratio, rows, shown, verdicts
from fastalex.studies.runs import RunResult, alone_in, is_finished, outcome, plan, run_to_completion
from fastalex.study import StudyOptions
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from fastalex.training.options import NetworkOptions, ParallelOptions, RecipeOptions, TrainOptions
from tests.fastalex.test_commands import command, refused, start, wait_for_steps
from tests.fastalex.training.test_trainer import assert_same_state, curve


def study_of(name: str, data: Path, devices: str = "cpu") -> list[str | Path]:
    """The command line of a small study."""
    return [
        "fastalex.study", name, data, "--width", "0.0625", "--no-lrn", "-b", "8", "--recipe", "small",
        "--devices", devices,
    ]  # fmt: skip


def options(prepared: Path, **training) -> TrainOptions:
    return TrainOptions(
        prepared,
        NetworkOptions(width=0.0625),
        RecipeOptions(**{"recipe": "small", "batch_size": 8, "epochs": 2, **training}),
        ParallelOptions(devices="cpu"),
    )


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_every_study_can_be_trained(name, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the small images of the activation study are prepared here
    chosen = find_study(name)
    shared = options(prepared, recipe=None if name == "activation" else "small", batch_size=2)
    members = plan(chosen, shared, seeds=2, folder=tmp_path / "study")
    assert len(members) == 2 * len(chosen.variants)
    assert len({member.folder for member in members}) == len(members)
    assert [member.config.seed for member in members] == [0] * len(chosen.variants) + [1] * len(chosen.variants)
    asked = {json.dumps([str(m.config.network), str(m.config.recipe), m.config.fraction]) for m in members}
    assert len(asked) == len(chosen.variants)  # every variant is another run, and both seeds make the same
    assert not (tmp_path / "study").exists()


def test_what_the_variants_are():
    networks = {
        (chosen.name, variant.name): Variation(**{k: v for k, v in variant.network.items() if k != "arch"})
        for chosen in STUDIES.values()
        for variant in chosen.variants
    }
    assert networks["depth", "without conv4"].without == ("conv4",)
    assert networks["depth", "with conv6"].conv6
    assert not networks["lrn", "without any"].lrn
    assert not networks["overlap", "2x2 windows, stride 2"].overlapping
    assert networks["dropout", "no dropout"].dropout == 0.0
    assert networks["width", "width x 0.5"].width == 0.5
    base = find_study("dropout").variants[0].network
    assert build_architecture(variation=Variation(**base)) == build_architecture()
    assert find_study("activation").variants[0].network == {"activation": "relu"}


@pytest.mark.parametrize(
    ("name", "arch", "expected"),
    [
        (
            "dropout",
            "four-layer",
            "study dropout: 'dropout 0.5' and 'no dropout' are the same run with --arch four-layer",
        ),
        ("lrn", "owt", "study lrn: 'with normalisation' and 'without any' are the same run with --arch owt"),
    ],
)
def test_a_network_is_not_compared_with_itself(prepared, tmp_path, monkeypatch, name, arch, expected):
    monkeypatch.chdir(tmp_path)
    asked = replace(options(prepared), network=NetworkOptions(arch=arch, width=0.0625))
    with pytest.raises(ConfigurationError, match=expected):
        plan(find_study(name), asked, seeds=1, folder=tmp_path / "study")


def test_the_base_of_augmentation_has_all_of_it_with_any_recipe(prepared, tmp_path):
    members = plan(find_study("augmentation"), options(prepared, recipe="digits"), seeds=1, folder=tmp_path)
    recipes = [member.config.recipe for member in members]
    assert [(recipe.crops, recipe.flip, recipe.color_noise) for recipe in recipes] == [
        (True, True, 0.1),
        (True, True, 0.0),
        (False, False, 0.0),
    ]


def test_widths_multiply(prepared, tmp_path):
    members = plan(find_study("width"), options(prepared), seeds=1, folder=tmp_path)
    assert [member.config.network.variation.width for member in members] == [0.0625, 0.046875, 0.03125, 0.015625]


def test_smaller_sets_make_the_same_number_of_updates(prepared, tmp_path):
    chosen = find_study("dataset-size")
    chosen = replace(chosen, variants=(chosen.variants[0], replace(chosen.variants[1], training={"fraction": 0.5})))
    whole, part = plan(chosen, options(prepared, epochs=4), seeds=1, folder=tmp_path)
    assert (whole.config.fraction, whole.config.recipe.epochs) == (1.0, 4)
    assert (part.config.fraction, part.config.recipe.epochs) == (0.5, 8)  # 2 updates an epoch instead of 4
    whole, part = plan(chosen, options(prepared, recipe="paper", warmup_epochs=0.5), seeds=1, folder=tmp_path)
    assert [run.config.recipe.warmup_epochs for run in (whole, part)] == [0.5, 1.0]
    assert [run.config.recipe.plateau.patience for run in (whole, part)] == [5, 10]


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory) -> Path:
    """A small study, never interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    code, out, err = command(
        folder, *study_of("dropout", prepared), "--epochs", "4", "--seeds", "2", "--output", "study"
    )
    assert code == 0, err
    assert "2 x 4 epochs" in out
    assert "none" in out
    assert "±" in out
    return folder / "study"


def test_a_study_writes_its_figures(straight):
    written = json.loads((straight / "study.json").read_text())
    assert (straight / "study.png").stat().st_size > 0
    assert [row["variant"] for row in written["rows"]] == ["dropout 0.5", "no dropout"]
    for row in written["rows"]:
        folder = straight / row["variant"].replace(" ", "-")
        last = [read_metrics(folder / f"seed-{seed}")[-1] for seed in (0, 1)]
        assert row["top1_error"]["mean"] == pytest.approx(sum(line["top1_error"] for line in last) / 2, abs=1e-3)
        assert row["parameters"] == written["rows"][0]["parameters"]
        assert all(run["seconds"] > 0 for run in row["runs"])
    difference = written["rows"][1]["top1_difference"]["value"]
    means = [row["top1_error"]["mean"] for row in written["rows"]]
    assert difference == pytest.approx(means[1] - means[0], abs=1e-3)
    assert written["data"]["train"] == 32


@pytest.mark.parametrize(("how", "devices", "seeds"), [(signal.SIGINT, "cpu,cpu", 1), (signal.SIGKILL, "cpu", 2)])
def test_a_study_interrupted_in_its_second_run_ends_the_same(straight, prepared, tmp_path, how, devices, seeds):
    arguments = [*study_of("dropout", prepared, devices), "--epochs", "4", "--seeds", str(seeds), "--output", "study"]
    process = start(tmp_path, *arguments)
    second = tmp_path / "study" / "no-dropout" / "seed-0"
    wait_for_steps(second, 6)
    process.send_signal(how)
    _, err = process.communicate(timeout=30)
    if how == signal.SIGINT:
        assert process.returncode == 130, err
        assert err.splitlines() == [f"stopped in run 2 of {2 * seeds}; the same command goes on from there"]
    finished = tmp_path / "study" / "dropout-0.5" / "seed-0" / "last.safetensors"
    made = finished.stat().st_mtime_ns
    settled = RunConfig.load(second)
    code, out, err = command(tmp_path, *arguments)
    assert code == 0, err
    assert "run 1 of" not in out
    assert "resumed" in out or how == signal.SIGKILL
    assert finished.stat().st_mtime_ns == made
    if devices != "cpu":  # sums in another order, and one cut for the whole run
        assert RunConfig.load(second) == settled
        assert "measured milliseconds" not in out
        ours, theirs = (read_metrics(folder / "no-dropout" / "seed-0") for folder in (tmp_path / "study", straight))
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-3)
        study.run(given("dropout", prepared, tmp_path / "study", seeds=seeds, devices=devices))  # only shown
        return
    for variant in ("dropout-0.5", "no-dropout"):
        for seed in range(seeds):
            ours, theirs = (folder / variant / f"seed-{seed}" for folder in (tmp_path / "study", straight))
            assert curve(read_metrics(ours)) == curve(read_metrics(theirs))
            assert_same_state(ours, theirs)


def given(study: str, prepared: Path, folder: Path, **more) -> StudyOptions:
    """What the command lines of this file ask for."""
    network, training = {"width": 0.0625, "lrn": False}, {"recipe": "small", "batch_size": 8, "epochs": 4}
    seeds, devices = more.pop("seeds", 2), more.pop("devices", "cpu")
    network |= {name: more.pop(name) for name in list(more) if name in ("dropout",)}
    return StudyOptions(
        study,
        prepared,
        seeds,
        NetworkOptions(**network),
        RecipeOptions(**training | more),
        ParallelOptions(devices=devices),
        output=folder,
    )


def test_a_finished_study_is_only_shown(straight, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")}
    study.run(given("dropout", prepared, straight))
    out = capsys.readouterr().out
    assert "epoch 1/4" not in out
    assert "2 x 4 epochs" in out
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("deep", {}, "unknown study 'deep'; choose one of depth, width"),
        (
            "dropout",
            {"epochs": 5},
            "seed-0 was made with recipe.epochs 4, asked for 5; give the same options, or another",
        ),
        ("dropout", {"dropout": 0.1}, "study dropout compares values of --dropout itself; leave it out"),
        ("dropout", {"seeds": 0}, "--seeds is 0"),
        ("dataset-size", {}, "has 3 training images in a fraction of 0.1 of its 32, fewer than one batch of 8"),
        ("dataset-size", {"edits": ("epoch=2:lr=1e-4",)}, "make more epochs of fewer images, so --set epoch=2:lr=1e-4"),
        ("dataset-size", {"fraction": 0.5}, "compares values of --fraction itself"),
    ],
)
def test_what_a_study_refuses(straight, prepared, name, more, expected):
    before = {path: path.stat().st_mtime_ns for path in straight.rglob("*")}
    with pytest.raises(ConfigurationError) as error:
        study.run(given(name, prepared, straight, **more))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in straight.rglob("*")} == before


def test_a_second_command_is_kept_out_while_one_is_at_work(straight, prepared):
    before = (straight / "study.json").stat().st_mtime_ns
    with (
        alone_in(straight),
        pytest.raises(ConfigurationError, match=r"another command is carrying out the study in .*; wait for it, or"),
    ):
        study.run(given("dropout", prepared, straight))
    assert (straight / "study.json").stat().st_mtime_ns == before


def test_restarts_are_passed_on(prepared, tmp_path, monkeypatch):
    member = plan(find_study("dropout"), options(prepared), seeds=1, folder=tmp_path)[0]
    called = []
    monkeypatch.setattr(runs, "run_workers", lambda *arguments: called.append(arguments[1:]))
    run_to_completion(member, restarts=2)
    assert called == [(member.config, parse_devices("cpu"), 2)]


def test_a_log_without_its_end_is_named(straight, prepared):
    asked = given("dropout", prepared, straight)
    trained = TrainOptions(prepared, asked.network, asked.training, asked.machine)
    member = plan(find_study("dropout"), trained, seeds=1, folder=straight)[0]
    log = member.folder / "metrics.jsonl"
    whole = log.read_text()
    try:
        log.write_text("".join(line for line in whole.splitlines(keepends=True) if '"epoch": 3' not in line))
        with pytest.raises(ConfigurationError, match=r"ends before the errors of epoch 4, .* \(rm -r .*seed-0\)"):
            outcome(member)
    finally:
        log.write_text(whole)


def test_a_study_under_torchrun_is_refused(straight, prepared, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="a study starts its workers itself"):
        study.run(given("dropout", prepared, straight))


def test_bad_input_is_one_line(prepared, tmp_path):
    message = refused(tmp_path, "fastalex.study", "deep", prepared)
    assert message.startswith("error: unknown study 'deep'; choose one of depth, width, ")


def test_a_run_that_diverges_is_a_result(prepared, tmp_path):
    chosen = find_study("dropout")
    members = plan(chosen, options(prepared, lr=1e6, epochs=3), seeds=1, folder=tmp_path)
    for member in members:
        run_to_completion(member)
        assert is_finished(member)
    table = rows(chosen, members)
    assert [row.diverged for row in table] == [1, 1]
    assert table[1].top1 is None
    assert table[1].top1_difference is None


def test_epochs_to_the_goal_are_read_from_the_training_error(prepared, tmp_path):
    chosen = find_study("activation")
    chosen = replace(chosen, variants=(chosen.variants[0], chosen.variants[4]), network={}, training={})
    members = plan(chosen, options(prepared, lr=None), seeds=2, folder=tmp_path)
    first_epoch_within = {"relu": (3, 5), "tanh": (8, 8)}
    for member in members:
        family = member.variant.name.split()[0]
        within = first_epoch_within[family][member.config.seed]
        member = replace(member, config=replace(member.config))
        write_history(member, within)
    table = rows(chosen, [*members])
    best = fastest(chosen, table)
    assert (best["relu"].epochs_to_goal, best["tanh"].epochs_to_goal) == (Figure(4.0, 2**0.5), Figure(8.0, 0.0))


def write_history(member, within: int) -> None:
    """Make the run, then put another training history in its place."""
    run_to_completion(member)
    lines = [line for line in read_metrics(member.folder) if line["kind"] == "val"][-1:]
    for epoch in range(9):
        good = epoch + 1 >= within
        for error, images in ((20.0, 24) if good else (40.0, 24)), (40.0, 8):  # in windows of unequal size
            lines.insert(-1, {**lines[-1], "kind": "train", "epoch": epoch, "top1_error": error, "images": images})
    (member.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def row(variant: Variant, *epochs: int | None, diverged: int = 0) -> Row:
    """A variant whose runs reached the training error in these epochs."""
    outcomes = tuple(RunResult(seed, 10.0 + seed, 5.0, 1.0, epoch) for seed, epoch in enumerate(epochs))
    error = Figure.of([outcome.top1_error for outcome in outcomes])
    return Row(variant, 1, 9, outcomes, diverged, error, error, None, None)


def test_what_was_not_reached_is_said_and_not_drawn(tmp_path, monkeypatch, capsys):
    chosen = find_study("activation")
    table = [row(v, *e) for v, e in zip(chosen.variants, [(4, 5), (None, 6), (), (8, 9), (7, None)], strict=False)]
    table[2] = replace(table[2], diverged=2)
    drawn: list[Picture] = []
    monkeypatch.setattr(Picture, "savefig", lambda picture, *_, **__: drawn.append(picture))
    draw(chosen, table, tmp_path / "study.png")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [4.5, 8.5]
    assert [(text.get_position()[1], text.get_text()) for text in axes.texts] == [
        (1, "not reached"),
        (2, "diverged"),
        (4, "not reached"),
    ]
    draw(find_study("dropout"), table[1:3], tmp_path / "study.png")
    for axes in drawn[1].axes:
        assert len(axes.patches) == 1
        assert [text.get_text() for text in axes.texts] == ["diverged"]
    Console(width=200).print(shown(chosen, table))
    out = capsys.readouterr().out
    assert "difference" not in out
    assert out.count("not reached") == 2


def test_a_ratio_within_the_spread_is_called_so():
    chosen = find_study("activation")
    relu, tanh = chosen.variants[0], chosen.variants[4]
    for epochs, expected in (
        (((4, 4), (8, 9)), r"Ratio 2\.1 \(paper: 6\)\.$"),
        (((4, 4), (3, 9)), r"Ratio 1\.5 .* smaller than the spread over seeds, so perhaps chance"),
        (((4,), (8,)), r"Ratio 2\.0 .* One run says nothing about the spread"),
    ):
        assert re.search(expected, ratio(chosen, [row(relu, *epochs[0]), row(tanh, *epochs[1])]))


def test_both_kinds_of_chance_are_explained():
    base, small, alone = (row(variant) for variant in find_study("depth").variants[:3])
    small = replace(small, top1_difference=Difference(0.1, False))
    alone = replace(alone, top1_difference=Difference(3.0, None))
    assert [line[:2] for line in verdicts([base, small, alone])] == ["~:", "?:"]


def test_differences_within_the_spread_are_called_so():
    base = Figure.of([50.0, 52.0, 54.0])
    assert base == Figure(52.0, 2.0)
    assert str(Difference.between(Figure(53.9, 0.1), base)) == "+1.90~"
    assert str(Difference.between(Figure(54.1, 0.1), base)) == "+2.10"
    assert str(Difference.between(Figure(49.0, 4.0), base)) == "-3.00~"
    assert str(Difference.between(Figure.of([60.0]), base)) == "+8.00?"
    assert Difference.between(None, base) is None
