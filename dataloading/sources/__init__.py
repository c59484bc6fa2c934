"""Where images come from: each source lists its images as `Entry` records, in an order that never changes.

`open_source` detects what is at a path: class folders, the archives of ILSVRC2012 or ILSVRC2010, WebDataset shards, or
the bundled digits. Nothing is unpacked: an entry is a range of bytes in some file, so an image in a class folder, a
member of a tar file and a member of a tar file inside a tar file are read the same way, by any process.
`SyntheticDataset` stands for a data set where only speed matters.
"""

from dataloading.sources.detection import open_source
from dataloading.sources.entries import Entry, Source
from dataloading.sources.synthetic import SyntheticDataset

__all__ = ["Entry", "Source", "SyntheticDataset", "open_source"]
