"""Whole runs in this process, or over worker processes: the same curve everywhere, and again after every resume."""

import json
import re
import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastalex.datasets import open_prepared
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.metrics import Metrics
from fastalex.parallel.launch import run_workers
from fastalex.parallel.layout import Layout, ParallelPlan, ScheduleName
from fastalex.parallel.partition import parse_split
from fastalex.parallel.world import World
from fastalex.recipes.schedule import Plateau
from fastalex.training import trainer
from fastalex.training.checkpoint import latest_checkpoint, load_state
from fastalex.training.config import RunConfig
from fastalex.training.counters import Counters
from fastalex.training.metrics_log import Rate, read_metrics
from fastalex.training.readback import DelayedReadback
from fastalex.training.trainer import Trainer, find_checkpoint, open_loaders, restore_model, train
from kernels.philox import derive_seed

CPU = torch.device("cpu")


def run_here(config: RunConfig) -> list[dict]:
    """Train in this process and return the lines of ``metrics.jsonl``."""
    train(World(0, 1, CPU), config)
    return read_metrics(Path(config.output))


def moved(config: RunConfig, name: str, **changes) -> RunConfig:
    """The same run in another folder."""
    output = Path(config.output).with_name(name)
    output.mkdir()
    config = replace(config, output=str(output), **changes)
    config.save()
    return config


def with_plan(config: RunConfig, **changes) -> RunConfig:
    """The same run with another parallel plan."""
    return replace(config, parallel=replace(config.parallel, **changes))


def two_stages(config: RunConfig, schedule: ScheduleName = "eager-1f1b", split: str = "conv3") -> ParallelPlan:
    """Two workers on the CPU, with one stage or more each."""
    names = config.network.build_architecture().block_names
    stages = split.count(",") + 2
    return replace(
        config.parallel,
        devices=(CPU, CPU),
        layout=Layout(1, 2, stages),
        split=parse_split(split, names, stages),
        schedule=schedule,
    )


def curve(lines: list[dict]) -> list[tuple]:
    """What must not depend on time."""
    return [(line["kind"], line["step"], line["loss"], line["top1_error"], line["top5_error"]) for line in lines]


def state(run: str | Path) -> dict[str, torch.Tensor]:
    """Everything that the latest checkpoint holds."""
    checkpoint = latest_checkpoint(Path(run))
    velocities = load_file(checkpoint / "trainer.safetensors")
    return load_file(checkpoint / "model.safetensors") | {f"v.{name}": v for name, v in velocities.items()}


def assert_same_state(first: str | Path, second: str | Path) -> None:
    a, b = state(first), state(second)
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_writes_what_it_promises(config):
    config = moved(config, "warm", recipe=replace(config.recipe, warmup_epochs=0.75, warmup_start=0.25))
    lines = run_here(config)
    assert [line["kind"] for line in lines] == (["train"] * 4 + ["val"]) * 2
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    assert [line["epoch"] for line in lines] == [1] * 5 + [2] * 5
    for line in lines:
        assert {"loss", "top1_error", "top5_error", "images_per_second"} <= set(line)
        assert 0 <= line["top5_error"] <= line["top1_error"] <= 100
        assert line["images_per_second"] > 0
    assert [line["images"] for line in lines if line["kind"] == "val"] == [7, 7]
    # The warm-up ends with the third of four steps; each step has the rate of the epochs at its end.
    assert [line["learning_rate"] for line in lines if line["kind"] == "train"] == pytest.approx(
        [1e-3, 1.5e-3, 2e-3, 2e-3] + [2e-4] * 4
    )
    run = Path(config.output)
    for name in ("config.json", "last.safetensors", "best.safetensors", "curve.png", "conv1.png"):
        assert (run / name).stat().st_size > 0
    assert RunConfig.load(run) == config


def test_tensorboard_events_hold_the_same_figures(config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = run_here(config)
    events = EventAccumulator(config.output)
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    expected = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    assert [step for step, _ in losses] == [step for step, _ in expected]
    assert [value for _, value in losses] == pytest.approx([value for _, value in expected])


def test_micro_batches_leave_the_curve_alone(config):
    one = curve(run_here(with_plan(moved(config, "one"), micro_batches=1)))
    four = curve(run_here(with_plan(moved(config, "four"), micro_batches=4)))
    for (kind, step, *figures), (other_kind, other_step, *others) in zip(one, four, strict=True):
        assert (kind, step) == (other_kind, other_step)
        assert figures == pytest.approx(others, rel=1e-4)


def one_thread(config: RunConfig) -> list[dict]:
    """Train in this process on one thread, as each worker of two on this machine does."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return run_here(config)
    finally:
        torch.set_num_threads(threads)


def train_each(world: World, configs: list[RunConfig]) -> None:
    """One run after the other; worker processes call this."""
    for config in configs:
        train(world, config)


def test_two_devices_make_the_same_run_as_one(config, monkeypatch):
    """Two runs by the same workers: starting them takes longer than training."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = replace(config.recipe, rescale_velocity=True, order="fixed", crops_shared_by=4)
    ones = [moved(config, "one"), moved(config, "rescaled-one", recipe=recipe)]
    plans = two_stages(config), two_stages(config, "interleaved", "conv2,conv4,fc6")
    twos = [
        moved(one, one.folder.name.replace("one", "two"), parallel=plan) for one, plan in zip(ones, plans, strict=True)
    ]
    run_workers(train_each, twos, [CPU, CPU])
    for one, two, rate_count in zip(ones, twos, (0, 16), strict=True):
        assert curve(read_metrics(two.folder)) == curve(one_thread(one))
        assert_same_state(two.output, one.output)
        rates = [load_state(latest_checkpoint(run.folder)).velocity_rates for run in (two, one)]
        assert rates[0] == rates[1]
        assert len(rates[0]) == rate_count


def test_a_measured_split_is_kept(config, monkeypatch, capsys):
    names = config.parallel.split[0]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    def balance(world, model, plan, batch_size):
        assert not torch.backends.cudnn.allow_tf32  # measured in the precision of the run
        assert (plan, batch_size, next(model.blocks()).weight.device) == (two.parallel, 8, CPU)
        return names[:3], names[3:]

    monkeypatch.setattr(trainer, "balance_split", balance)
    two = replace(config, parallel=replace(two_stages(config), layout=Layout(1, 1, 2)), measure_split=True)
    two = with_plan(two, schedule="interleaved", devices=(CPU,))
    run_here(replace(two, recipe=replace(config.recipe, epochs=1)))
    saved = RunConfig.load(two.folder)
    assert (saved.parallel.split, saved.measure_split) == ((names[:3], names[3:]), False)
    assert capsys.readouterr().out.startswith(
        "timing every block on the devices, to balance the split\n"
        "split by measured block times: later stages begin with conv4\n"
    )


def test_building_writes_nothing(config, capsys):
    before = sorted(path.name for path in config.folder.iterdir())
    build(config).close()
    assert sorted(path.name for path in config.folder.iterdir()) == before
    assert capsys.readouterr() == ("", "")


def test_a_small_run_prints_few_lines(config, capsys):
    run_here(config)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 6 + 3 + config.recipe.epochs + 9  # what is trained, three notes, the epochs, the results
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]
    assert lines[-1].startswith("trained and evaluated: top-1 error ")
    assert " % on 7 validation images" in lines[-1]
    (memory,) = (line for line in lines if line.startswith("peak memory"))
    peak = re.fullmatch(r"peak memory +(\d+\.\d\d) GB", memory)
    assert peak is not None
    assert float(peak[1]) > 0


def test_machines_that_do_not_share_the_run_folder_are_refused(config):
    stop_after(config, 1)

    class Apart(World):
        def gather_objects(self, value):
            return [value, "none"]

    message = r"the latest checkpoint in .*run is 0000-00000001 for worker 0 and none for worker 1; choose a run folder"
    with pytest.raises(ConfigurationError, match=message):
        find_checkpoint(Apart(0, 1, CPU), config.folder)


def build(config: RunConfig, kind: type[Trainer] = Trainer) -> Trainer:
    """What :func:`train` builds before it runs."""
    world = World(0, 1, CPU)
    checkpoint = find_checkpoint(world, config.folder)
    return kind(world, config, restore_model(config, checkpoint), checkpoint)


class _StopAfter(Trainer):
    """Is told to stop when it has made so many steps."""

    steps: int

    def train_step(self, batch):
        counts = super().train_step(batch)
        if self.state.step == self.steps:
            self.world.signal_number = signal.SIGTERM
        return counts


def stop_after(config: RunConfig, steps: int) -> None:
    stopping = build(config, _StopAfter)
    assert isinstance(stopping, _StopAfter)
    stopping.steps = steps
    with closing(stopping), pytest.raises(Interrupted, match=f"stopped and saved at step {steps}, .* --resume") as end:
        stopping.run()
    assert end.value.signal_number == signal.SIGTERM


@pytest.mark.parametrize("stops", [[1, 3], [4], [5, 6, 7], [8]])
def test_a_run_stopped_anywhere_any_number_of_times_ends_the_same(config, undisturbed, stops):
    for steps in stops:
        stop_after(config, steps)
    lines = run_here(config)
    assert curve(lines) == curve(read_metrics(undisturbed.folder))
    assert_same_state(config.output, undisturbed.output)


def test_a_stopped_run_in_a_fixed_order_with_rescaled_velocities_ends_the_same(config):
    recipe = replace(
        config.recipe, order="fixed", crops_shared_by=4, rescale_velocity=True, warmup_epochs=1.5, resized_crops=True
    )
    straight = moved(config, "straight", recipe=recipe)
    expected = curve(run_here(straight))
    stopped = replace(config, recipe=recipe)
    for steps in (2, 4, 5):  # within the warm-up, where the rate drops, and within the second epoch
        stop_after(stopped, steps)
    assert curve(run_here(stopped)) == expected
    assert_same_state(stopped.output, straight.output)


def test_a_lower_rate_on_resuming_slows_the_velocity_at_once(config):
    stopped = replace(config, recipe=replace(config.recipe, rescale_velocity=True, weight_decay=0.0))
    stop_after(stopped, 3)
    slower = build(replace(stopped, recipe=replace(stopped.recipe, lr=stopped.recipe.lr / 100)))
    with closing(slower):
        before = {name: slower.optimizer.velocity(p).clone() for name, p in slower.engine.stage.named_parameters()}
        slower.optimizer.set_epoch(1)
        slower.optimizer.set_warmup(1.0)
        for name, parameter in slower.engine.stage.named_parameters():
            torch.testing.assert_close(slower.optimizer.velocity(parameter), before[name] / 100)


def test_images_lose_the_mean_colour_where_the_network_says_so(config):
    by_channel = replace(config, network=replace(config.network, channel_means=True))
    with closing(build(config)) as plain, closing(build(by_channel)) as flat:
        pixels, colour = plain.dataset.mean_image, flat.dataset.mean_image
        assert np.abs(pixels - pixels.mean((0, 1))).max() > 1  # the images differ from place to place
        assert np.allclose(colour, pixels.mean((0, 1)), atol=1e-3)


def test_a_resumed_run_may_change_its_batch_size_within_an_epoch(config):
    stop_after(config, 1)  # 8 of 32 images
    larger = replace(config, recipe=replace(config.recipe, batch_size=14, epochs=1))
    lines = run_here(larger)
    assert [line["images"] for line in lines if line["kind"] == "train"] == [8, 14]


def test_another_seed_is_another_run(config, undisturbed):
    assert curve(run_here(replace(config, seed=4))) != curve(read_metrics(undisturbed.folder))


def test_a_resumed_run_tells_no_step_twice(config):
    stop_after(config, 3)
    metrics = Path(config.output) / "metrics.jsonl"
    later = json.dumps({**json.loads(metrics.read_text().splitlines()[-1]), "step": 4})
    metrics.write_text(f'{metrics.read_text()}{later}\n{{"kind": "tra')  # killed here
    lines = run_here(config)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]


def test_a_run_of_more_epochs_goes_on(config):
    run_here(config)
    longer = replace(config, recipe=replace(config.recipe, epochs=3))
    assert [line["step"] for line in run_here(longer)][-2:] == [12, 12]


def test_counts_read_late_make_the_same_curve(config, undisturbed, monkeypatch):
    expected = curve(read_metrics(undisturbed.folder))
    build_counters = Counters.__init__

    def late(self, *arguments, **more):
        build_counters(self, *arguments, **more)
        self.readback = DelayedReadback(2)

    monkeypatch.setattr(Counters, "__init__", late)
    assert curve(run_here(moved(config, "late"))) == expected
    stopped = moved(config, "stopped")
    stopping = build(stopped, _StopAfter)
    assert isinstance(stopping, _StopAfter)
    stopping.steps = 1
    # The request to stop is shared with the counts.
    with closing(stopping), pytest.raises(Interrupted, match="stopped and saved at step 3"):
        stopping.run()
    assert curve(read_metrics(Path(stopped.output))) == expected[:3]
    assert curve(run_here(stopped)) == expected


def test_an_epoch_ends_with_an_exchange_however_rare_they_are(config, monkeypatch):
    """On a GPU workers exchange their counts every ten steps."""
    build_counters = Counters.__init__

    def rare(self, *arguments, **more):
        build_counters(self, *arguments, **more)
        self.exchange_every = 3

    monkeypatch.setattr(Counters, "__init__", rare)
    lines = run_here(replace(config, recipe=replace(config.recipe, epochs=1)))
    assert [(line["step"], line["images"]) for line in lines] == [(3, 24), (4, 8), (4, 7)]


def test_images_go_to_the_first_stage_and_labels_to_the_last_one(config):
    recipe = replace(config.recipe, crops_shared_by=4, order="fixed", resized_crops=True)
    config = replace(config, recipe=recipe)
    dataset, model = open_prepared(config.data), config.network.build(seed=0)
    stage = model.stage(model.architecture.block_names)
    for first, last in ((True, False), (False, False), (False, True)):
        engine = SimpleNamespace(is_first=first, is_last=last, stage=stage, batch_size=8)
        training, validation = open_loaders(World(0, 1, CPU), config, dataset, engine)  # type: ignore[arg-type]
        with closing(training), closing(validation):
            for loader in (training, validation):
                batch = next(loader.epoch(0))
                assert (batch.images is not None, batch.labels is not None) == (first, last)
            augment = training.augment
            assert augment is not None
            assert (augment.flip, augment.random_crop, augment.crops_shared_by) == (True, True, 4)
            assert augment.resized_crop
            # The recipe counts epochs from 1, the loader from 0.
            assert [augment.color_noise_at(epoch) for epoch in (0, 1)] == [0.1, 0.0]
            assert next(training.epoch(1)).samples.tolist() == next(training.epoch(0)).samples.tolist()
            assert validation.augment is None
            assert (training.split, validation.split) == ("train", "val")
    centred = replace(config, recipe=replace(recipe, crops=False, resized_crops=False))
    training, validation = open_loaders(World(0, 1, CPU), centred, dataset, engine)  # type: ignore[arg-type]
    with closing(training), closing(validation):
        assert training.augment is not None
        assert not training.augment.random_crop


def test_dropout_masks_depend_on_the_runs_seed_and_the_step(config):
    keys: dict[tuple[int, int], int] = {}
    for seed in (3, 4):
        trainer = build(replace(config, seed=seed))
        with closing(trainer):
            state = trainer.state
            trainer.step = lambda *given, seed=seed, state=state: keys.update({(seed, state.step): given[2]})
            for step in range(6):
                trainer.train_step(SimpleNamespace(images=None, labels=None))  # type: ignore[arg-type]
                assert state.step == step + 1
    assert keys == {(seed, step): derive_seed(seed, step) for seed in (3, 4) for step in range(6)}
    assert len(set(keys.values())) == 12


def test_a_run_asked_to_stop_while_it_validates_validates_again(config):
    class StopInValidation(Trainer):
        def _validate(self):
            self.world.signal_number = signal.SIGTERM
            return super()._validate()

    config = moved(config, "short", recipe=replace(config.recipe, epochs=1))
    stopping = build(config, StopInValidation)
    with closing(stopping), pytest.raises(Interrupted, match="stopped and saved at step 4, in epoch 1 of 1"):
        stopping.run()
    assert load_state(latest_checkpoint(config.folder)).errors == []
    assert [line["kind"] for line in run_here(config)] == ["train"] * 4 + ["val"]
    assert len(load_state(latest_checkpoint(config.folder)).errors) == 1


def decree(monkeypatch: pytest.MonkeyPatch, *errors: tuple[float, float]) -> None:
    """Let the validations of a run find these top-1 and top-5 errors, one after the other."""
    left = iter(errors)
    monkeypatch.setattr(Trainer, "_validate", lambda self: (Metrics(1.0, *next(left), 7), Rate(7, 1.0, 0.0)))


def test_a_plateau_of_the_top_1_error_lowers_the_rate_and_survives_resuming(config, monkeypatch):
    decree(monkeypatch, (50.0, 20.0), (50.0, 10.0), (40.0, 15.0), (45.0, 5.0))  # the other one stalls a bit later
    plateau = Plateau(factor=0.1, patience=1, times=2)
    stalled = replace(config, recipe=replace(config.recipe, epochs=4, changes=(), plateau=plateau))
    run_here(replace(stalled, recipe=replace(stalled.recipe, epochs=3)))
    lines = run_here(stalled)
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"][::4]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-4, 2e-4])


def test_bf16_follows_fp32(config, undisturbed):
    exact = [line["loss"] for line in read_metrics(undisturbed.folder)]
    rounded = [line["loss"] for line in run_here(replace(config, precision="bf16"))]
    assert rounded == pytest.approx(exact, rel=0.02)
    assert rounded != exact


def test_the_best_weights_are_those_of_the_lowest_top_1_error(config, monkeypatch):
    decree(monkeypatch, (30.0, 20.0), (60.0, 10.0))
    stop_after_first = replace(config, recipe=replace(config.recipe, epochs=1))
    run_here(stop_after_first)
    best = load_file(Path(config.output) / "best.safetensors")
    run_here(config)
    after = load_file(Path(config.output) / "best.safetensors")
    last = load_file(Path(config.output) / "last.safetensors")
    assert all(torch.equal(best[name], after[name]) for name in best)
    assert any(not torch.equal(best[name], last[name]) for name in best)
