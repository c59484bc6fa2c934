"""What the engines' tests run in worker processes; a spawned process imports it by name."""

from collections.abc import Callable

import torch

from fastalex.network.model import AlexNet
from fastalex.parallel.layout import Layout, ParallelPlan
from fastalex.parallel.partition import partition
from fastalex.parallel.pipeline import Pipeline, build_engine
from fastalex.parallel.world import World
from fastalex.recipes.optimizer import KrizhevskySGD
from fastalex.recipes.schedule import Recipe
from fastalex.training.graphed_step import build_step
from kernels.native import winograd

BATCH = 8
CLASSES = 4


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same images and labels in every process."""
    generator = torch.Generator().manual_seed(seed)
    return 50 * torch.randn(BATCH, 3, 224, 224, generator=generator), torch.arange(BATCH) % CLASSES


def network(precision: str = "fp32") -> AlexNet:
    """A narrow network whose signal is large enough to learn from noise."""
    model = AlexNet("krizhevsky", CLASSES, seed=4, width=1 / 16, lrn=False)
    with torch.no_grad():
        for block in model.blocks():
            block.weight.mul_(3)
    model.set_precision(precision)  # type: ignore[arg-type]
    return model


def filter_everything() -> None:
    """From now on fp32 convolutions are computed by minimal filtering, although they are too small for it to pay."""
    winograd.MIN_CHANNELS = winograd.MIN_TILES = 1


class RunAgain:
    """Records where there are no CUDA graphs: a replay runs the same once more. Both are counted."""

    recorded = replays = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.recorded += 1

        def replay() -> None:
            self.replays += 1
            run()

        return replay


def pipelines_gradients(world: World, arguments: list[dict]) -> None:
    """`pipeline_gradients` of one case after the other: starting workers takes longer than a case."""
    limits = winograd.MIN_CHANNELS, winograd.MIN_TILES
    for argument in arguments:
        if argument["filtered"]:
            filter_everything()
        pipeline_gradients(world, argument)
        winograd.MIN_CHANNELS, winograd.MIN_TILES = limits


def pipeline_gradients(world: World, argument: dict) -> None:
    """Gradients, losses and logits of a few steps; the first worker saves them."""
    model = network(argument["precision"])
    plan: ParallelPlan = argument["plan"]
    layout, rows = plan.layout, plan.rows(BATCH)
    world.arrange(layout)
    engine = build_engine(model, world, plan, BATCH)
    mine = slice(world.replica * rows, (world.replica + 1) * rows)
    saved: dict[str, torch.Tensor] = {}
    record = RunAgain()
    for step in range(argument["steps"]):
        if step == 1 and argument["recorded"]:
            engine.capture(record)
        images, labels = batch(step)
        engine.stage.zero_grad()
        images, labels = images[mine], labels[mine]
        counts = engine.train_step(images if engine.is_first else None, labels if engine.is_last else None, seed=step)
        gradients = world.gather({name: p.grad.clone() for name, p in engine.stage.named_parameters()})
        logits = engine.logits(images if engine.is_first else None)
        shared = torch.zeros(BATCH + 1, max(4, CLASSES), dtype=torch.float64)
        assert logits is None or not logits.requires_grad
        if counts is not None and logits is not None:
            shared[-1, :4], shared[mine, :CLASSES] = counts, logits.double()
        shared = world.sum(shared)
        saved |= {f"{step}.{name}": gradient for name, gradient in gradients.items()}
        saved[f"{step}.counts"], saved[f"{step}.logits"] = shared[-1, :4], shared[:-1, :CLASSES]
    if argument["recorded"]:  # every pass, and all of it replayed in each later step
        assert record.recorded >= 2 * plan.micro_batches * len(layout.local_stages(world.pipeline_rank))
        assert record.replays == (argument["steps"] - 1) * record.recorded
    if world.is_first:
        torch.save(saved, argument["path"])


def graphed_steps(world: World, argument: dict) -> None:
    """Steps of both stages in one worker, without CUDA graphs and with them: counts, weights, and what was said."""
    world.arrange(Layout(1, 1, 2))
    saved = []
    for graphs in (False, True):
        model = network(argument["precision"])
        stages = partition(model.architecture, 2)
        engine = Pipeline(model, stages, 0, world.device, BATCH, argument["micro_batches"], "interleaved", ranks=1)
        recipe = Recipe("test", epochs=1, batch_size=BATCH, lr=1e-3)
        optimizer = KrizhevskySGD(engine.stage, recipe, engine.stage.compute_copies())
        said: list[str] = []
        step = build_step(engine, optimizer, graphs=graphs, say=said.append)
        counts = []
        for number in range(8):
            images, labels = (tensor.to(world.device) for tensor in batch(number))
            made = step(images, labels, number)
            assert made is not None
            counts.append(made.cpu())
            if number == 5:
                engine.logits(images)  # between replays, as validation is
        weights = {name: parameter.detach().cpu() for name, parameter in engine.stage.named_parameters()}
        saved.append({"kind": type(step).__name__, "counts": torch.stack(counts), "weights": weights, "said": said})
    torch.save(saved, argument["path"])
