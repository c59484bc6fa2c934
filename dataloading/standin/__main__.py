"""Make a small stand-in for ImageNet: ``python -m dataloading.standin DEST``."""

from pathlib import Path
from typing import Annotated

import tyro

from dataloading.command_line import run
from dataloading.process import command
from dataloading.sources.names import destination_for
from dataloading.standin.archives import write_standin


def main(
    dest: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")],
    classes: int = 20,
    images: int = 2000,
    validation: int = 400,
    seed: int = 0,
    workers: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None,
    progress: bool = True,
) -> None:
    """Draw scenes of patterns and shapes, and write them as the archives of ILSVRC2012: a stand-in for experiments.

    Args:
        dest: The folder to create. It appears when all files are complete.
        classes: Number of classes, 2 to 24.
        images: Training images of all classes together.
        validation: Validation images of all classes together.
        seed: Seed of all that is random. The same seed gives the same files.
        workers: Number of worker processes. Default: one per processor. 0 works in the main process.
        progress: Report progress.
    """
    write_standin(
        dest,
        classes=classes,
        images=images,
        validation=validation,
        seed=seed,
        workers=workers,
        progress=progress,
    )
    print(f"{dest}: {classes} classes, {images:,} train, {validation:,} val images, in the archives of ILSVRC2012")
    print(f"prepare them with: {command('dataloading.prepare', dest, destination_for(dest))}")


if __name__ == "__main__":
    run(main, module="dataloading.standin", interrupted="interrupted; nothing was written")
