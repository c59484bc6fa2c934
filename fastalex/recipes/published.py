"""The named recipes: schedules of the 2012 and 2013 runs, the paper's text, other networks, and small data sets.

The schedules of the runs are taken from their saved options and notes, with the epochs as they stand there: the 2012
source counts from 1, and so do recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fastalex.errors import ConfigurationError
from fastalex.recipes.schedule import Change, Plateau, Recipe

_SHARED_IN_2012 = 32  # images per crop offset and flip in the released source; the paper does not mention it

# The recipes for small data. They are ours, so these constants may be tuned.
SMALL_BATCH, SMALL_LR = 32, 0.002
SMALL_EPOCHS, SMALL_LEAST_STEPS = 14, 1300  # 14 epochs, but at least 1300 updates: more epochs below 3,000 images
SMALL_DROPS = (0.7, 0.9)  # fractions of the run after which the rate drops to a tenth and to a hundredth
LEAST_STEPS_PER_RATE = 20  # drops before or after which a rate would hold for fewer updates are left out


def krizhevsky() -> Recipe:
    """Configuration 145, from its saved options: biases keep their rate, conv1 slows at 67 and freezes at 72."""
    return _by_hand("krizhevsky", 91, (25, 51, 67, 72, 79))


def source_145_2010() -> Recipe:
    """The same network on ILSVRC-2010 (37.5 % top-1 error).

    In its saved options the biases end at a tenth of their initial rate. The epoch of that drop is not recorded; it is
    placed at the last change here.
    """
    recipe = _by_hand("source-145-2010", 93, (23, 51, 68, 72, 78))
    return replace(recipe, changes=(*recipe.changes[:-1], Change(78, 1e-1, parameters="biases"), recipe.changes[-1]))


def _by_hand(name: str, epochs: int, events: tuple[int, int, int, int, int]) -> Recipe:
    """The schedule of 2012. Its events: two drops; conv1 slows and colour noise ends; conv1 freezes; a last drop."""
    first, second, quiet, frozen, last = events
    return Recipe(
        name=name,
        epochs=epochs,
        batch_size=128,
        lr=0.01,
        order="fixed",
        crops_shared_by=_SHARED_IN_2012,
        changes=(
            Change(first, 1e-1, parameters="weights"),
            Change(second, 1e-2, parameters="weights"),
            Change(quiet, 1e-3, layers=("conv1",), parameters="weights", color_noise=0.0),
            Change(frozen, 0.0, layers=("conv1",)),
            Change(last, 1e-3, parameters="weights"),
            Change(last, 0.0, layers=("conv1",)),
        ),
    )


def source_170() -> Recipe:
    """Configuration 170 of 2013: four equal quarters with weights from 0.01 to 4e-5, two equal halves for the biases.

    Colour noise ended between epochs 61 and 68, and conv1 was frozen between 73 and 78; the recipe takes the middle.
    """
    second, third, last = 25, 49, 73  # the first epochs that begin in each quarter of 95
    return Recipe(
        name="source-170",
        epochs=95,
        batch_size=128,
        lr=0.01,
        order="fixed",
        crops_shared_by=_SHARED_IN_2012,
        changes=(
            Change(second, 250 ** (-1 / 3), parameters="weights"),
            Change(third, 250 ** (-2 / 3), parameters="weights"),
            Change(third, 1e-1, parameters="biases"),
            Change(64, color_noise=0.0),
            Change(last, 1 / 250, parameters="weights"),
            Change(75, 0.0, layers=("conv1",)),
        ),
    )


def paper() -> Recipe:
    """The paper's text: equal rates for all layers, divided by 10 when the validation error stalls, three times.

    The colour noise is the 2012 source's: 0.1 times the standard deviations of the colours. The text's eigenvalues
    would be their squares, which on the scale 0-255 leave no picture.
    """
    return Recipe(
        name="paper", epochs=90, batch_size=128, lr=0.01, bias_lr_multiplier=1.0, plateau=Plateau(patience=5, times=3)
    )


def caffe() -> Recipe:
    """BVLC Caffe's ``bvlc_alexnet``: a tenth of the rate every 100,000 iterations of 256 images, 450,000 in all.

    100,000 iterations are 20.0 epochs of ImageNet's 1,281,167 images. The images were shuffled once, when the database
    was written. The rate stands inside the velocity, as in 2012. Source: ``models/bvlc_alexnet`` in BVLC/caffe.
    """
    return Recipe(
        name="caffe",
        epochs=90,
        batch_size=256,
        lr=0.01,
        order="fixed",
        color_noise=0.0,
        changes=tuple(Change(1 + 20 * drops, 10.0**-drops) for drops in (1, 2, 3, 4)),
    )


def owt() -> Recipe:
    """The reference recipe of torchvision's AlexNet: a tenth of the rate every 30 epochs, random resized crops.

    The batch is that of 8 GPUs with 32 images each. Weight decay applies to biases, too, and the rate stands outside
    the velocity, as in PyTorch. Source: ``references/classification`` in pytorch/vision.
    """
    return Recipe(
        name="owt",
        epochs=90,
        batch_size=256,
        lr=0.01,
        weight_decay=1e-4,
        bias_lr_multiplier=1.0,
        decay_biases=True,
        rescale_velocity=True,
        resized_crops=True,
        channel_means=True,
        color_noise=0.0,
        changes=(Change(31, 1e-1), Change(61, 1e-2)),
    )


def small() -> Recipe:
    """For hundreds to tens of thousands of images: small batches, a lower rate, two drops near the end."""
    first, second = (1 + round(fraction * SMALL_EPOCHS) for fraction in SMALL_DROPS)
    return Recipe(
        name="small",
        epochs=SMALL_EPOCHS,
        batch_size=SMALL_BATCH,
        lr=SMALL_LR,
        rescale_velocity=True,
        least_steps=SMALL_LEAST_STEPS,
        least_steps_per_rate=LEAST_STEPS_PER_RATE,
        changes=(Change(first, 1e-1), Change(second, 1e-2, color_noise=0.0)),
    )


def digits() -> Recipe:
    """A few minutes on the bundled digits. No flips: a mirrored 2 is not a 2."""
    return Recipe(
        name="digits",
        epochs=5,
        batch_size=32,
        lr=0.002,
        flip=False,
        rescale_velocity=True,
        least_steps_per_rate=LEAST_STEPS_PER_RATE,
        changes=(Change(5, 1e-1),),
    )


def four_layer() -> Recipe:
    """For the network of the same name, as in the paper's figure 1: constant rates, no regularisation."""
    return Recipe(
        name="four-layer",
        epochs=40,
        batch_size=128,
        lr=0.001,
        weight_decay=0.0,
        crops=False,
        flip=False,
        color_noise=0.0,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    f.__name__.replace("_", "-"): f
    for f in (krizhevsky, source_145_2010, source_170, paper, caffe, owt, small, digits, four_layer)
}
"""Functions that build the named recipes."""

ALIASES = {"source-145": "krizhevsky"}
"""Other names of recipes."""


def build_recipe(name: str) -> Recipe:
    """The named recipe.

    Raises:
        ConfigurationError: an unknown name.
    """
    name = ALIASES.get(name, name)
    if name not in RECIPES:
        raise ConfigurationError(f"unknown recipe {name!r}; choose one of {', '.join([*RECIPES, *ALIASES])}")
    return RECIPES[name]()


def drops_to_add(recipe: Recipe, images: int, finished: int) -> list[str]:
    """The drops of the learning rate that a new run has and a longer one lacks, as texts of edits.

    A longer run keeps the changes of its schedule at their epochs, so it may have none ahead, or never have had any.

    Args:
        recipe: of the longer run.
        images: training images.
        finished: number of epochs that the run has finished.

    Returns:
        No texts if the run still has a change of the learning rate ahead, or ends with a rate as low as a new run.
    """
    if recipe.name not in RECIPES or any(
        finished < change.from_epoch <= recipe.epochs and change.lr_scale is not None for change in recipe.changes
    ):
        return []
    published = build_recipe(recipe.name)
    new = replace(recipe, epochs=published.epochs, changes=published.changes).for_data(images, recipe.epochs)
    scale = recipe.lr_scale_at(recipe.epochs, "", "weights")
    texts = []
    for change in new.changes:
        if change.from_epoch <= finished or change.lr_scale is None or change.layers or change.parameters == "biases":
            continue
        if change.lr_scale < scale:
            kind = "weight." if change.parameters == "weights" else ""
            texts.append(f"epoch={change.from_epoch}:{kind}lr={recipe.lr * change.lr_scale:.3g}")
    return texts
