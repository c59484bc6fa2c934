"""Packages that only some commands need: extras of fastalex install them, and they are imported on first use."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from dataloading.process import install_command
from fastalex.errors import ConfigurationError

_NAMES = {"cv2": "OpenCV", "sklearn": "scikit-learn", "scipy": "SciPy"}


def require(package: str, extra: str) -> Any:
    """The module of an optional package.

    Args:
        package: such as ``onnx``.
        extra: of fastalex, which installs it, such as ``export``.

    Raises:
        ConfigurationError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigurationError(missing(package, extra)) from None


def is_installed(package: str) -> bool:
    """Whether Python finds a package, without importing it."""
    return importlib.util.find_spec(package) is not None


def missing(package: str, extra: str) -> str:
    """One line: that a package is not installed, and the command that installs it."""
    top = package.partition(".")[0]
    return f"{_NAMES.get(top, top)} is not installed; install it with: {install_command(extra)}"
