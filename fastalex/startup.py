"""What has to happen before anything else of fastalex is imported; importing this module does it.

Ctrl-C ends a command that is still importing, packages that hide ours are named, and workers can print anything.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VERSION = "0.2.0"
"""Of fastalex. pyproject.toml reads it here."""

# While a command or one of its workers spends seconds on imports, Ctrl-C ends it without a traceback; cli.main or the
# launcher installs its own handler later. (sys.argv[0] is "-m" only until Python has found the module; the script is
# called fastalex. A process that ignores Ctrl-C keeps ignoring it.)
_is_command = bool(sys.argv) and (sys.argv[0] == "-m" or Path(sys.argv[0]).name == "fastalex")
_is_worker = "--multiprocessing-fork" in sys.orig_argv
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and (_is_command or _is_worker):
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def attributes_on_demand(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a package whose public names are imported when they are first used.

    Args:
        package: its name.
        modules: by public name, the module that has it.
    """

    def find(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(modules[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


def _hidden(package: str) -> str | None:
    """Why a package of this project cannot be imported: Python finds another one of its name first. None if it can."""
    spec = importlib.util.find_spec(package)
    found = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    if not found:
        return f"fastalex's package {package!r} is missing; install fastalex again"
    place = Path(found).parent if Path(found).name == "__init__.py" else Path(found)
    if place.resolve() == Path(__file__).resolve().parents[1] / package:
        return None
    if place.resolve().parent == Path.cwd():
        remedy = "rename it, or start Python in another folder or with the option -P"
    else:
        remedy = "install fastalex in an environment of its own"
    return f"the package {package!r} found at {place} is another project's, not fastalex's; {remedy}"


for _package in ("kernels", "dataloading"):
    if _problem := _hidden(_package):
        if not _is_command:
            raise ImportError(_problem)
        if os.environ.get("LOCAL_RANK", "0") == "0":  # under torchrun, all workers find the same
            print(f"error: {_problem}", file=sys.stderr)
        sys.exit(2)


def is_worker() -> bool:
    """Whether torchrun, or another launcher that sets RANK and WORLD_SIZE, has started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


if _is_worker:  # commands do this when they parse their options
    from dataloading.process import print_anything

    print_anything()
