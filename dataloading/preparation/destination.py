"""Check the destination of a preparation before the work begins."""

import os
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.preparation.shard_plan import PLAN
from dataloading.shards import DESCRIPTION


def resolve_destination(dest: Path) -> Path:
    """Return the folder to create, with links followed.

    Raises:
        DatasetError: it exists, or could not be created when the work is done.
    """
    try:
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            if (dest / DESCRIPTION).is_file():
                (dest / PLAN).unlink(missing_ok=True)  # a preparation was killed just before this
            raise DatasetError(f"{dest} exists already; remove it or choose another destination")
        place = dest if dest.name not in ("", "..") and not dest.is_symlink() else Path(os.path.realpath(dest))
        if place.is_symlink():
            raise DatasetError(f"{dest} is a link that leads to itself; remove it or choose another destination")
        if place.exists() and os.path.samefile(place, os.getcwd()):
            raise DatasetError(f"{dest} is the working directory; choose a folder in it, such as ./prepared")
        if os.path.ismount(place):
            raise DatasetError(
                f"{dest} is a mount point, which cannot be replaced; choose a folder in it: {dest / 'data'}"
            )
    except OSError as error:
        raise DatasetError(f"cannot write to {dest}: {error.strerror}; choose another destination") from None
    return place
