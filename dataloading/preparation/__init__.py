"""Preparation of a data set: decode every image once, check it, resize it, and write shards.

`prepare_dataset` lists the images of a source (`shard_plan`), checks that the disk has enough space (`disk_space`) and
makes the shards in worker processes (`worker_pool`), one image at a time (`images`). Then it writes the files that
describe the shards (`descriptions`), among them the statistics of the training images (`statistics`).
"""

from dataloading.preparation.preparation import prepare_dataset

__all__ = ["prepare_dataset"]
