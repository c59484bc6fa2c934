"""Atomic and durable writes, for every package of fastalex."""

from dataloading.files import sync, write_atomically

__all__ = ["sync", "write_atomically"]
