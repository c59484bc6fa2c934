"""The writer of shards, and other readers of what it writes."""

import io
import resource
import signal
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from dataloading.shards import ShardWriter, file_sha256, read_sources, write_sources
from tests.dataloading.recording import Call, disk_calls


def test_shards_are_plain_tar_files_with_pairs_of_members(small):
    place = 0
    for shard in small.shards("train"):
        with tarfile.open(small.root / shard.file) as archive:
            members = archive.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                assert image.name == label.name.removesuffix(".cls") + ".jpg"
                assert image.name.count(".") == 1
                assert (image.mtime, image.uid, image.mode) == (0, 0, 0o644)
                assert archive.extractfile(image).read() == small.read("train", place)
                assert int(archive.extractfile(label).read()) == small.labels("train")[place]
                place += 1
    assert place == small.count("train")


def test_dalis_own_webdataset_reader_reads_the_shards(small):
    pipeline = Pipeline(batch_size=small.count("train"), num_threads=1, device_id=None)
    with pipeline:
        paths = [str(small.root / shard.file) for shard in small.shards("train")]
        encoded, label = fn.readers.webdataset(
            paths=paths, ext=["jpg", "cls"], missing_component_behavior="error", name="reader"
        )
        pipeline.set_outputs(encoded, fn.decoders.image(encoded, output_type=types.DALIImageType.RGB), label)
    pipeline.build()
    assert pipeline.reader_meta("reader")["epoch_size"] == small.count("train")
    encoded, images, labels = pipeline.run()
    for i in range(small.count("train")):
        assert encoded.at(i).tobytes() == small.read("train", i)
        assert np.array_equal(images.at(i), np.asarray(Image.open(io.BytesIO(small.read("train", i)))))
        assert int(labels.at(i).tobytes()) == small.labels("train")[i]


@settings(max_examples=50)  # each syncs a file and a folder
@given(sizes=st.lists(st.integers(0, 3000), max_size=12), labels=st.randoms(use_true_random=False))
def test_a_shard_holds_what_was_put_in(tmp_path_factory, sizes, labels):
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    put = [(f"{i:09d}-x", labels.randbytes(size), labels.randrange(22_000)) for i, size in enumerate(sizes)]
    with ShardWriter(path, 5) as writer:
        for key, data, label in put:
            writer.add(key, data, label, height=3, width=4)
        file = writer.finish()
    whole = path.read_bytes()
    assert (file.bytes, file.sha256, file.samples) == (len(whole), file_sha256(path), len(put))
    assert len(whole) % tarfile.RECORDSIZE == 0
    assert not any(whole[-2 * tarfile.BLOCKSIZE :])  # the end mark of a tar file
    with tarfile.open(path) as archive:
        read = [(info.name, archive.extractfile(info).read()) for info in archive]
    assert read == [pair for key, data, label in put for pair in ((f"{key}.jpg", data), (f"{key}.cls", b"%d" % label))]
    for (_, data, label), (shard, length, offset, found, crc32, *size) in zip(put, writer.rows, strict=True):
        assert (shard, found, crc32, size) == (5, label, zlib.crc32(data), [3, 4])
        assert whole[offset : offset + length] == data


def test_a_shard_is_on_disk_before_it_has_its_name_and_its_name_before_anybody_is_told(tmp_path, monkeypatch):
    path = tmp_path / "train-000000.tar"
    calls = disk_calls(monkeypatch)
    with ShardWriter(path, 0) as writer:
        writer.add("key", bytes(7000), 0, height=1, width=1)  # the last bytes are so few that they wait in a buffer
        size = writer.finish().bytes
    assert calls == [
        Call("sync", tmp_path / "train-000000.tar.part", size),
        Call("rename", path),
        Call("sync", tmp_path),
    ]


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with ShardWriter(tmp_path / "train-000000.tar", 0) as writer:
            writer.add("key", b"data", 0, height=1, width=1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_part_of_a_shard(tmp_path):
    """The last bytes are written when the file is closed, and that fails again."""

    def write_too_much() -> None:
        with ShardWriter(tmp_path / "train-000000.tar", 0) as writer:
            for key in "abc":
                writer.add(key, bytes(30_000), 0, height=1, width=1)
            writer.finish()

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limit[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_too_much()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(tmp_path.iterdir())


def test_names_of_source_files_are_read_as_they_were_written(tmp_path):
    rows = [("0-a", "train/a.jpg"), ("1-b", 'a "b", \udcff\n.jpg'), ("2-c", "")]
    write_sources(tmp_path / "sources.csv", rows)
    assert read_sources(tmp_path / "sources.csv") == dict(rows)
