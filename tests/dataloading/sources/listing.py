"""Open and list small sources."""

from pathlib import Path

from dataloading.preparation.images import read_entry
from dataloading.sources.detection import open_source
from dataloading.sources.entries import Entry, Source


def opened(source: Path | str, **options: object) -> Source:
    return open_source(source, scratch=Path("/nonexistent"), **options)


def listed(source: Path | str, split: str, **options: object) -> list[Entry]:
    return list(opened(source, **options).entries(split))


def data(entry: Entry) -> bytes:
    return read_entry(entry, 10**9)
