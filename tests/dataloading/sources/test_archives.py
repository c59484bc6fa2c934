"""Tar files read in place; damaged ones are tested with the sources that read them."""

import tracemalloc

from dataloading.sources.archives import members
from tests.dataloading.small_sources import tar_of


def test_listing_an_archive_takes_no_memory(tmp_path):
    blocks = tar_of([("n01440764_0.JPEG", b"x" * 100)])[:1024]
    (tmp_path / "large.tar").write_bytes(blocks * 20_000 + bytes(1024))
    tracemalloc.start()
    assert sum(1 for _ in members(tmp_path / "large.tar")) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500_000
