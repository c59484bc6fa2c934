"""Prepare a data set for training: ``python -m dataloading.prepare SOURCE DEST``."""

from typing import Annotated, Literal

import tyro

from dataloading.command_line import parse_color, run
from dataloading.dataset import Dataset
from dataloading.preparation.preparation import SHARD_IMAGES, prepare_dataset

COMMON = (
    "size",
    "quality",
    "keep_aspect",
    "label_order",
    "validation_every",
    "allow_empty_classes",
    "verify",
    "workers",
    "background",
    "exif",
)
"""What ``--help`` shows of the options; ``--help-all`` shows all."""


def main(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")],
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
    size: int = 256,
    quality: int = 95,
    keep_aspect: bool = False,
    label_order: Literal["sorted", "devkit"] = "sorted",
    validation_every: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    allow_empty_classes: bool = False,
    verify: bool = False,
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    shard_images: int = SHARD_IMAGES,
    max_pixels: int = 89_000_000,
    background: Annotated[str | None, tyro.conf.arg(metavar="R,G,B", help_behavior_hint="")] = None,
    exif: bool = False,
    progress: bool = True,
) -> None:
    """Decode, check and resize every image once, and write the shards that training reads.

    Files that do not decode, or that crash the decoder, are left out and listed with the reason in DEST/rejected.csv.
    A file that cannot be read stops the work. After an interruption, the same command continues from there.

    Args:
        source: A folder with train/<class>/*.jpg and val/<class>/*.jpg (or training, valid, validation, testing, in
            any case); a folder with the archives and the development kit of ILSVRC2012 or ILSVRC2010; a folder or tar
            file of WebDataset shards; or the word "digits".
        dest: The folder to create.
        size: Length of the shorter side after resizing, in pixels.
        quality: JPEG quality, 1 to 95.
        keep_aspect: Store whole images instead of their centre squares.
        label_order: Numbering of ILSVRC's classes: by sorted WordNet id (torchvision, Caffe), or as in the development
            kit (Krizhevsky).
        validation_every: If there is no validation set, hold out every n-th training image of each class; 0: none.
        allow_empty_classes: Accept classes without images in some splits. Without this option they are refused.
        verify: First compare the archives with their published MD5 sums.
        workers: Number of worker processes. Default: one per processor. 0 works in the main process.
        shard_images: Source images per shard.
        max_pixels: Leave out images with more pixels.
        background: Lay transparent images on this colour. Default: store the colours under the transparency.
        exif: Turn images upright by their EXIF orientation, which was ignored in 2012.
        progress: Report progress.
    """
    dataset = prepare_dataset(
        source,
        dest,
        size=size,
        quality=quality,
        keep_aspect=keep_aspect,
        label_order=label_order,
        validation_every=validation_every,
        allow_empty_classes=allow_empty_classes,
        verify=verify,
        workers=workers,
        shard_images=shard_images,
        max_pixels=max_pixels,
        background=parse_color("--background", background),
        exif=exif,
        progress=progress,
    )
    print(f"{dest}: {_summary(dataset)}")


def _summary(dataset: Dataset) -> str:
    counts = ", ".join(f"{dataset.count(split):,} {split}" for split in dataset.splits)
    classes = "1 class" if len(dataset.classes) == 1 else f"{len(dataset.classes):,} classes"
    return f"{classes}, {counts} images; {dataset.made['rejected']:,} rejected"


if __name__ == "__main__":
    run(
        main,
        module="dataloading.prepare",
        common=COMMON,
        interrupted="interrupted; the same command continues from the finished shards",
    )
