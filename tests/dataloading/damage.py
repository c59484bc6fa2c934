"""Ways to damage a copy of a prepared data set."""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dataloading.shards import file_sha256, fingerprint


def copied(root: Path, dest: Path) -> Path:
    return Path(shutil.copytree(root, dest))


def flip_bit(path: Path, place: float, bit: int) -> None:
    """Flip one bit of a file, at the relative position `place`, 0 to 1."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)


def rewritten(root: Path, change: Callable[[dict], object]) -> None:
    """Change dataset.json and its fingerprint, as if the data set had been prepared like this."""
    about = json.loads((root / "dataset.json").read_bytes())
    change(about)
    about["fingerprint"] = fingerprint(about)
    (root / "dataset.json").write_text(json.dumps(about))


def overwritten(root: Path, split: str, sample: int, data: bytes, *, at: int = 100) -> None:
    """Overwrite the bytes of a sample from byte `at` on."""
    row = np.load(root / f"{split}-index.npy")[sample]
    with (root / f"{split}-{row['shard']:06d}.tar").open("r+b") as file:
        file.seek(int(row["offset"]) + at)
        file.write(data)


def changed_index(root: Path, split: str, change: Callable[[np.ndarray], object]) -> None:
    """Change the index of a split and its checksum, as if the data set had been prepared like this."""
    path = root / f"{split}-index.npy"
    index = np.load(path)
    change(index)
    np.save(path, index)
    rewritten(root, lambda about: about["splits"][split].update(index_sha256=file_sha256(path)))


def changed_shard(root: Path, split: str, shard: int, change: Callable[[bytes], bytes]) -> None:
    """Change a shard, its checksum and its length, as if the data set had been prepared like this."""
    path = root / f"{split}-{shard:06d}.tar"
    path.write_bytes(change(path.read_bytes()))
    entry = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    rewritten(root, lambda about: about["splits"][split]["shards"][shard].update(entry))


def undecodable(root: Path, split: str, sample: int) -> None:
    """Zero the second half of a sample and update all checksums, as if the data set had been prepared like this."""
    index = np.load(root / f"{split}-index.npy")
    shard, length, offset = (int(index[sample][name]) for name in ("shard", "length", "offset"))
    overwritten(root, split, sample, bytes(length - length // 2), at=length // 2)
    changed_shard(root, split, shard, lambda data: data)
    data = (root / f"{split}-{shard:06d}.tar").read_bytes()[offset : offset + length]
    changed_index(root, split, lambda index: index["crc32"].put(sample, zlib.crc32(data)))
