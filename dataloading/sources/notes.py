"""What a source tells the person at the terminal beside errors: what it left out."""

import logging
from collections.abc import Sequence

_log = logging.getLogger(__name__)


def note(text: str) -> None:
    """Log a warning; unless a program says otherwise, it is one line on stderr."""
    _log.warning("note: %s", text)


def first_few(names: Sequence[str], most: int = 8) -> str:
    """Return the first names in one line, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
