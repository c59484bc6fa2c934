"""Packages of other formats, which are installed by extras and imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

from dataloading.process import command
from fastalex.errors import ConfigurationError


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
        raise ConfigurationError(
            f"{package} is not installed; install it with: {command('pip', 'install', f'fastalex[{extra}]')}"
        ) from None
