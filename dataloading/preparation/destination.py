"""Check the destination of a preparation before the work begins."""

import json
import os
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.preparation.shard_plan import PLAN
from dataloading.shards import DESCRIPTION, FORMAT
from dataloading.sources.names import destination_for


def resolve_destination(dest: Path, source: Path | None = None) -> Path:
    """Return the folder to create, with links followed.

    Args:
        dest: the destination.
        source: what is prepared, if that is a path.

    Raises:
        DatasetError: it exists, is the source, or could not be created when the work is done.
    """
    try:
        if source is not None and os.path.isdir(source) and dest.is_dir() and dest.samefile(source):
            raise DatasetError(
                f"source and destination are the same folder, {dest}; name a new folder as the destination, such as "
                f"{destination_for(dest)}"
            )
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            if not _is_data_set(dest):  # it may be the user's, so nothing advises to remove it
                raise DatasetError(f"{dest} exists already; choose another destination")
            (dest / PLAN).unlink(missing_ok=True)  # a preparation was killed just before this
            raise DatasetError(f"{dest} exists already, a prepared data set; remove it or choose another destination")
        place = dest if dest.name not in ("", "..") and not dest.is_symlink() else Path(os.path.realpath(dest))
        if place.is_symlink():
            raise DatasetError(f"{dest} is a link that leads to itself; choose another destination")
        if place.exists() and os.path.samefile(place, os.getcwd()):
            raise DatasetError(f"{dest} is the working directory; choose a folder in it, such as ./prepared")
        if os.path.ismount(place):
            raise DatasetError(
                f"{dest} is a mount point, which cannot be replaced; choose a folder in it: {dest / 'data'}"
            )
    except OSError as error:
        raise DatasetError(f"cannot write to {dest}: {error.strerror}; choose another destination") from None
    return place


def _is_data_set(folder: Path) -> bool:
    """Return whether a folder says that it is a prepared data set."""
    try:
        about = json.loads((folder / DESCRIPTION).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT
