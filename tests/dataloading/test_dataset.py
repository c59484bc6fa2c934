import contextlib
import io
import pickle
import subprocess
import sys
import tarfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from dataloading import Dataset, DatasetError, Loader, is_prepared, prepare_dataset
from dataloading.images import Treatment, treat
from dataloading.order import subset
from dataloading.shards import INDEX_DTYPE, ShardWriter, file_sha256
from tests.dataloading.damage import copied, flip_bit, overwritten, rewritten, undecodable
from tests.dataloading.small_sources import command


def test_importing_brings_neither_dali_nor_pytorch():
    script = (
        "import dataloading, sys; print([m for m in ('torch', 'nvidia.dali', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_exported_name_is_there():
    import dataloading

    assert all(getattr(dataloading, name) for name in dataloading.__all__)
    with pytest.raises(AttributeError, match=r"no attribute 'Lodaer'"):
        _ = dataloading.Lodaer


# --- other readers ----------------------------------------------------------------------------------------------------


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


@given(sizes=st.lists(st.integers(0, 3000), max_size=12), labels=st.randoms(use_true_random=False))
def test_a_shard_holds_what_was_put_in(tmp_path_factory, sizes, labels):
    path = tmp_path_factory.mktemp("shard") / "train-000000.tar"
    put = [(f"{i:09d}-x", labels.randbytes(size), labels.randrange(22_000)) for i, size in enumerate(sizes)]
    with ShardWriter(path, 0) as writer:
        for key, data, label in put:
            writer.add(key, data, label, height=1, width=1)
        file = writer.finish()
    whole = path.read_bytes()
    assert (file.bytes, file.sha256, file.samples) == (len(whole), file_sha256(path), len(put))
    assert len(whole) % tarfile.RECORDSIZE == 0
    with tarfile.open(path) as archive:
        read = [(info.name, archive.extractfile(info).read()) for info in archive]
    assert read == [pair for key, data, label in put for pair in ((f"{key}.jpg", data), (f"{key}.cls", b"%d" % label))]
    for (_, data, label), (shard, length, offset, found, crc32, _, _) in zip(put, writer.rows, strict=True):
        assert (shard, found, crc32) == (0, label, zlib.crc32(data))
        assert whole[offset : offset + length] == data


def test_a_shard_that_was_not_finished_leaves_nothing(tmp_path):
    def interrupted() -> None:
        with ShardWriter(tmp_path / "train-000000.tar", 0) as writer:
            writer.add("key", b"data", 0, height=1, width=1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_data_set_says_what_it_is(small):
    assert is_prepared(small.root)
    assert not is_prepared(small.root.parent)
    assert "3 classes, 24 train, 12 val" in repr(small)
    assert small.splits == ("train", "val")
    assert small.index("train").dtype == INDEX_DTYPE
    assert len(small.fingerprint) == 64
    assert (small.color_deviations.shape, small.color_vectors.shape) == ((3,), (3, 3))


def test_a_data_set_travels_to_other_processes(small):
    assert bytes(pickle.loads(pickle.dumps(small)).read("val", 3)) == bytes(small.read("val", 3))


def test_a_subset_is_a_data_set_of_some_of_the_samples(small):
    chosen = subset(small.labels("train"), 0.5, seed=3)
    half = small.subset("train", 0.5, seed=3)
    for dataset in (half, pickle.loads(pickle.dumps(half))):
        assert (dataset.count("train"), dataset.count("val")) == (12, small.count("val"))
        assert np.bincount(dataset.labels("train")).tolist() == [4, 4, 4]
        for i, sample in enumerate(chosen):
            assert dataset.read("train", i) == small.read("train", int(sample))
    assert small.count("train") == 24
    batches = Loader(half, "train", 5, crop_size=24, shuffle=True, augment=None, drop_last=False).epoch(0)
    assert sorted(sample for batch in batches for sample in batch.samples) == list(range(12))


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, "fraction is 0.0; more than 0 and at most 1"),
        (1.5, "fraction is 1.5"),
        (float("nan"), "fraction is nan"),
        (0.05, r"0.05 of .* leaves no image of class .*, which has 8 in train; take a fraction of 0.12 or more"),
    ],
)
def test_a_subset_that_cannot_be_taken(small, fraction, message):
    with pytest.raises(DatasetError, match=message):
        small.subset("train", fraction, seed=0)


def test_the_fingerprint_is_that_of_the_content(small, tmp_path):
    assert Dataset(copied(small.root, tmp_path / "other name")).fingerprint == small.fingerprint


def test_what_is_no_prepared_data_set_is_named(tmp_path, folders):
    with pytest.raises(
        DatasetError, match=r"no such folder: .*nowhere; prepare it with: python -m dataloading.prepare"
    ):
        Dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"is not a prepared data set: it has no dataset.json; prepare it with"):
        Dataset(folders)


def test_a_split_that_is_not_there_is_named(small):
    with pytest.raises(DatasetError, match=r"has no split 'test'; it has train, val"):
        small.count("test")


@pytest.mark.parametrize("name", ["train-000000.tar", "val-000001.tar", "train-index.npy", "mean-image.npy"])
def test_a_missing_or_shortened_file_is_named_on_opening(small, tmp_path, name):
    path = copied(small.root, tmp_path / "copy") / name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DatasetError, match=name):
        Dataset(path.parent)
    path.unlink()
    with pytest.raises(DatasetError, match=name):
        Dataset(path.parent)


@given(
    place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from(["train-index", "mean-image"])
)
def test_no_bit_of_index_or_mean_image_flips_unnoticed(small, tmp_path_factory, place, bit, name):
    root = copied(small.root, tmp_path_factory.mktemp("flip") / "copy")
    flip_bit(root / f"{name}.npy", place, bit)
    with pytest.raises(DatasetError, match=rf"{name}.npy"):
        Dataset(root)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_of_the_description_flips_unnoticed(small, tmp_path_factory, place, bit):
    root = copied(small.root, tmp_path_factory.mktemp("flip") / "copy")
    flip_bit(root / "dataset.json", place, bit)
    with contextlib.suppress(DatasetError):
        assert Dataset(root)._description == small._description  # 1E-5 for 1e-5


def test_the_index_of_another_data_set_is_refused(small, full_size, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    (root / "train-index.npy").write_bytes((full_size.root / "train-index.npy").read_bytes())
    with pytest.raises(DatasetError, match=r"train-index.npy does not belong to these shards: its SHA-256 is"):
        Dataset(root)


def test_a_sample_knows_the_file_it_was_made_from(small, folders, tmp_path):
    assert small.source("val", 0) == min(str(p.relative_to(folders)) for p in folders.glob("val/*/*"))
    chosen = small.subset("train", 0.5, seed=1)
    for sample in range(chosen.count("train")):
        made = treat((folders / chosen.source("train", sample)).read_bytes(), Treatment(size=chosen.size))
        assert chosen.read("train", sample) == made.jpeg
    root = copied(small.root, tmp_path / "copy")
    flip_bit(root / "train-sources.csv", 0.5, 3)
    dataset = Dataset(root)
    assert dataset.source("val", 0) == small.source("val", 0)
    with pytest.raises(DatasetError, match=r"train-sources.csv is damaged: its SHA-256 is not the one in dataset.json"):
        dataset.source("train", 0)
    (root / "train-sources.csv").unlink()
    with pytest.raises(DatasetError, match=r"cannot read .*train-sources.csv: No such file"):
        dataset.source("train", 0)


def test_shards_in_another_order_are_refused_although_their_sizes_agree(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    first, second = root / "train-000000.tar", root / "train-000001.tar"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b.ljust(len(a), b"\0")[: len(a)])
    second.write_bytes(a.ljust(len(b), b"\0")[: len(b)])
    with pytest.raises(DatasetError, match=r"sample 0 of train .* is damaged: its CRC-32 is"):
        Dataset(root)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: about.update(version=99), "has format version 99; this program reads 3"),
        (lambda about: about.update(format="parquet"), "does not describe a data set of this program"),
        (lambda about: about.pop("classes"), "dataset.json is damaged: no usable entry 'classes'"),
        (lambda about: about.update(classes=["one", "two"]), "labels from 0 to 2; with 2 classes they must be 0 to 1"),
        (lambda about: about["splits"]["train"]["shards"].pop(), "the shards of train hold 20 samples, its index 24"),
        (lambda about: about["splits"]["train"].update(count=23), "has .*24.* records"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(small, tmp_path, change, message):
    root = copied(small.root, tmp_path / "copy")
    rewritten(root, change)
    with pytest.raises(DatasetError, match=message):
        Dataset(root)


def test_a_description_that_is_no_json_is_refused(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    (root / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset.json is damaged"):
        Dataset(root)


def test_an_index_with_labels_out_of_range_is_refused(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    index = np.load(root / "train-index.npy")
    index["label"][5] = -1
    np.save(root / "train-index.npy", index)
    rewritten(root, lambda about: about["splits"]["train"].update(index_sha256=file_sha256(root / "train-index.npy")))
    with pytest.raises(DatasetError, match=r"labels from -1 to 2; with 3 classes they must be 0 to 2"):
        Dataset(root)


def test_a_flipped_bit_in_a_sample_is_named_when_it_is_read(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    overwritten(root, "train", 13, b"?")
    dataset = Dataset(root)
    assert dataset.read("train", 12) == small.read("train", 12)
    with pytest.raises(
        DatasetError, match=r"sample 13 of train \(000000013-0005.jpg in .*train-000001.tar, offset \d+\) is"
    ):
        dataset.read("train", 13)


READ_ALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
from dataloading import Dataset, DatasetError
dataset = Dataset(sys.argv[1])
kept = [dataset.read(split, i) for split in dataset.splits for i in range(dataset.count(split))]
again = [dataset.read(split, i) for split in dataset.splits for i in range(dataset.count(split))]
print(len(kept), kept == again)
files = []
try:
    while True:
        files.append(open(sys.executable))
except OSError:
    pass
try:
    Dataset(sys.argv[1])
except DatasetError as error:
    print(error)
"""


@pytest.mark.parametrize(("soft", "hard"), [(28, 28), (28, 200)])
def test_more_shards_than_files_may_be_open(folders, tmp_path, soft, hard):
    dataset = prepare_dataset(folders, tmp_path / "many", size=16, shard_images=1, workers=0, progress=False)
    assert sum(len(dataset.shards(split)) for split in dataset.splits) == 36
    script = [sys.executable, "-c", READ_ALL, dataset.root, str(soft), str(hard)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    read, refused = done.stdout.splitlines()
    assert read == "36 True"
    assert refused.endswith(f"Too many open files; this process may have {hard} files open; allow more (ulimit -n)")


# --- the check --------------------------------------------------------------------------------------------------------


def test_the_check_finds_nothing_in_a_good_data_set(small):
    done = command("dataloading.check", small.root)
    assert done.returncode == 0, done.stderr
    assert "everything is as it was prepared" in done.stdout
    assert small.fingerprint in done.stdout


def test_the_check_finds_any_flipped_bit(small, tmp_path):
    from dataloading.check import problems

    for step in range(12):
        root = copied(small.root, tmp_path / f"copy{step}")
        path = root / f"train-00000{step % 3}.tar"
        flip_bit(path, 0.08 + 0.9 * step / 12, step % 8)
        found = []
        try:
            found = problems(Dataset(root), progress=False)
        except DatasetError as error:
            found = [str(error)]
        assert any(path.name in str(problem) for problem in found), step


def test_the_check_knows_every_file_of_the_folder(small, tmp_path):
    from dataloading.check import problems

    root = copied(small.root, tmp_path / "copy")
    dataset = Dataset(root)
    (root / "rejected.csv").write_text("split,file,reason\ntrain,innocent.jpg,no reason\n")
    (root / "train-000001.tar").unlink()
    (root / "train-000099.tar").write_bytes((root / "train-000000.tar").read_bytes())
    (root / "plan.json").touch()
    flip_bit(root / "mean-image.npy", 0.5, 3)
    assert [f"{problem.file.name}: {problem.text}" for problem in problems(dataset, progress=False)] == [
        "mean-image.npy: its SHA-256 is not the one in dataset.json",
        "rejected.csv: its SHA-256 is not the one in dataset.json",
        "train-000001.tar: it is missing",
        "plan.json: it does not belong to the data set",
        "train-000099.tar: it does not belong to the data set",
    ]


def test_the_check_names_the_sample_and_ends_with_2(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    overwritten(root, "val", 11, b"?" * 20)
    done = command("dataloading.check", root)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert any("val-000001.tar: sample 11: its CRC-32 is" in line for line in lines)
    assert lines[-1].startswith(f"error: {root} is damaged: 2 problems; copy the data set again")
    assert "Traceback" not in done.stderr


def test_the_check_decodes_every_image(small, tmp_path):
    from dataloading.check import problems

    root = copied(small.root, tmp_path / "copy")
    undecodable(root, "train", 3)
    found = [str(problem) for problem in problems(Dataset(root), progress=False)]
    assert len(found) == 1
    assert "sample 3: does not decode" in found[0]
    assert problems(Dataset(root), decode=False, progress=False) == []
