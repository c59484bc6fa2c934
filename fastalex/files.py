"""Atomic writes, for every package of fastalex."""

from dataloading.files import write_atomically

__all__ = ["write_atomically"]
