"""Whether DALI works, asked before anything takes long."""

import importlib
import importlib.util
import os
from pathlib import Path

from dataloading.errors import DatasetError
from dataloading.process import install_command

_EXTRAS = "(or fastalex[cuda12]; both run without a GPU)"


def check_dali(data: str | os.PathLike[str] | None = None) -> None:
    """Import DALI, unless `data` is the word "synthetic": such images need no decoder.

    Raises:
        DatasetError: DALI is not installed, does not work, or another package or folder hides it.
    """
    if str(data) == "synthetic":
        return
    try:
        # By name, because importing it is slow and most users of this package need no loader.
        importlib.import_module("dataloading.loading.dali_graph")
    except Exception as error:  # a broken or foreign package may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DatasetError(f"NVIDIA DALI, which decodes the images, {_state(reason)}") from None


def _state(reason: str) -> str:
    """What is wrong with the installed DALI, and the remedy."""
    hiding = _place("nvidia")
    if hiding is not None and hiding.is_relative_to(Path.cwd()) and "site-packages" not in hiding.parts:
        return f"is hidden by {hiding}, which has its name; rename that, or start from another folder"
    place, install = _place("nvidia.dali"), f"{install_command('cuda13')} {_EXTRAS}"
    if place is None:
        return f"is not installed: {install}"
    return f"cannot be imported from {place} ({reason}); install it again: {install}"


def _place(name: str) -> Path | None:
    """Where Python finds a module or package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    found = spec.origin if spec.has_location else next(iter(spec.submodule_search_locations or ()), None)
    if not found:
        return None
    path = Path(found)
    return path.parent if path.name == "__init__.py" else path
