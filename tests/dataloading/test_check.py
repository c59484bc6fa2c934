"""``python -m dataloading.check``."""

import errno
import os
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dataloading import Dataset, DatasetError, check
from dataloading.check import problems
from dataloading.command_line import parse
from tests.dataloading.damage import changed_index, changed_shard, copied, flip_bit, overwritten, undecodable
from tests.dataloading.preparation.preparing import quietly
from tests.dataloading.small_sources import class_folders, command


def test_the_check_finds_nothing_in_a_good_data_set(small):
    done = command("dataloading.check", small.root)
    assert done.returncode == 0, done.stderr
    assert "no damage found" in done.stdout
    assert small.fingerprint in done.stdout


def test_the_check_finds_any_flipped_bit(small, tmp_path):
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
    root = copied(small.root, tmp_path / "copy")
    dataset = Dataset(root)
    (root / "rejected.csv").write_text("split,file,reason\ntrain,innocent.jpg,no reason\n")
    (root / "train-000001.tar").unlink()
    (root / "train-000099.tar").write_bytes((root / "train-000000.tar").read_bytes())
    (root / "plan.json").touch()
    (root / ".DS_Store").touch()
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
    root = copied(small.root, tmp_path / "copy")
    undecodable(root, "train", 3)
    found = [str(problem) for problem in problems(Dataset(root), progress=False)]
    assert len(found) == 1
    assert "sample 3: does not decode" in found[0]
    assert problems(Dataset(root), decode=False, progress=False) == []


def renamed(data: bytes, old: str, new: str) -> bytes:
    """The archive, with another name for a member."""
    start = data.index(old.encode()) // 512 * 512
    info = tarfile.TarInfo.frombuf(data[start : start + 512], "ascii", "strict")
    info.name = new
    return data[:start] + info.tobuf(tarfile.USTAR_FORMAT) + data[start + 512 :]


# What the checksums cannot show: a data set that was prepared wrongly.
WRONG = {
    "another label": (
        lambda root: changed_index(root, "train", lambda index: index["label"].put(3, 2)),
        ["sample 3: the label in 000000003-0003.cls is not 2 as in the index"],
    ),
    "another size": (
        lambda root: changed_index(root, "train", lambda index: index["height"].put(3, 31)),
        ["sample 3: its image is a JPEG of (32, 32), the index says JPEG of (32, 31)"],
    ),
    "another checksum": (
        lambda root: changed_index(root, "train", lambda index: index["crc32"].put(3, 0xAB)),
        [r"sample 3: its CRC-32 is [0-9a-f]{8}, the index says 000000ab"],
    ),
    "another length": (
        lambda root: changed_index(root, "train", lambda index: index["length"].put(3, 100)),
        ["sample 3: no JPEG member of 100 bytes at offset", "sample 3: its CRC-32", "sample 4: no JPEG member of"],
    ),
    "a part of the image": (
        lambda root: changed_index(root, "train", lambda index: index["offset"].__iadd__(np.arange(24) == 3)),
        ["sample 3: no JPEG member of", "sample 3: its CRC-32", "sample 4: no JPEG member of"],
    ),
    "shards of other sizes": (
        lambda root: changed_index(root, "train", lambda index: index["shard"].put(9, 1)),
        [
            "the index lists 9 samples for it, dataset.json 10",
            "unexpected data after its last sample, at offset",
            "the index lists 11 samples for it, dataset.json 10",
            "sample 9: ",
        ],
    ),
    "more data": (
        lambda root: changed_shard(root, "train", 0, lambda data: data + b"x"),
        ["unexpected data after its last sample, at offset"],
    ),
    "no image": (
        lambda root: changed_shard(root, "train", 0, lambda data: renamed(data, "000000003-0003.jpg", "x.png")),
        ["sample 3: no JPEG member of"],
    ),
    "the label of another": (
        lambda root: changed_shard(root, "train", 0, lambda data: renamed(data, "000000003-0003.cls", "x.cls")),
        ["sample 3: 000000003-0003.jpg is not followed by its label"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_check_finds_what_was_prepared_wrongly(small, tmp_path, what):
    root = copied(small.root, tmp_path / "copy")
    change, texts = WRONG[what]
    change(root)
    found = [problem.text for problem in problems(Dataset(root), progress=False)]
    for text, problem in zip(texts, found, strict=False):
        assert problem.startswith(text) or re.match(text, problem)
    assert len(found) == len(texts) or (texts[-1] == "sample 9: " and all("sample " in text for text in found[3:]))


def test_the_check_knows_files_from_folders_and_what_nobody_put_there(small, tmp_path):
    root = copied(small.root, tmp_path / "copy")
    dataset = Dataset(root)
    for name in ("rejected.csv", "train-000001.tar"):
        (root / name).unlink()
        (root / name).mkdir()
    (root / "desktop.ini").touch()
    assert [str(problem) for problem in problems(dataset, progress=False)] == [
        f"{root}/rejected.csv: it is not a file",
        f"{root}/train-000001.tar: it is not a file",
    ]


@pytest.mark.parametrize(("count", "more"), [(20, ""), (23, "\n... and 3 more")])
def test_many_problems_are_counted(small, tmp_path, capsys, count, more):
    root = copied(small.root, tmp_path / "copy")
    for number in range(count):
        (root / f"{number:02d}").touch()
    with pytest.raises(DatasetError, match=rf"copy is damaged: {count} problems; copy the data set again"):
        check.main(str(root), progress=False)
    lines = [f"{root}/{number:02d}: it does not belong to the data set" for number in range(20)]
    assert capsys.readouterr().err == "\n".join(lines) + more + "\n"


def test_the_summary_counts_images_per_class(tmp_path, capsys):
    source = class_folders(tmp_path / "in", classes=3, train=9, val=4)
    (source / "val/class1/0000.jpg").write_bytes(b"no image")
    dataset = quietly(source, tmp_path / "out", shard_images=8)
    check.main(str(dataset.root), progress=False, threads=1)
    table, numbers, last = capsys.readouterr().out.rpartition("3 classes")
    cells = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table.splitlines() if "│" in line]
    sizes = [f"{sum(shard.bytes for shard in dataset.shards(split)) / 1e6:.1f} MB" for split in dataset.splits]
    assert cells == [["train", "27", "4", sizes[0], "9 to 9"], ["val", "11", "2", sizes[1], "3 to 4"]]
    assert f"{numbers}{last}" == (
        f"3 classes, 1 rejected, fingerprint {dataset.fingerprint}\n{dataset.root}: no damage found\n"
    )


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", {"decode": True, "threads": None, "progress": True}),
        ("--no-decode --threads 3 --no-progress", {"decode": False, "threads": 3, "progress": False}),
    ],
)
def test_the_options_of_the_command_have_their_effect(small, monkeypatch, words, options):
    found = []
    monkeypatch.setattr(check, "problems", lambda dataset, **given: found.append((dataset.root, given)) or [])
    monkeypatch.setattr(sys, "argv", ["check", str(small.root), *words.split()])
    parse(check.main)
    assert found == [(small.root, options)]


def test_the_check_reports_its_progress(small, capsys):
    assert problems(small) == []
    assert "checking" in (line := capsys.readouterr().err)
    assert "36 of 36 images" in line.replace("\n", " ")


def test_a_disk_that_fails_is_not_called_damage(small, tmp_path, monkeypatch, capsys):
    dataset = Dataset(copied(small.root, tmp_path / "copy"))
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "train-000001.tar":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    stat = Path.stat

    def failing_too(path: Path, **more: bool) -> os.stat_result:
        if path.name in ("val-000000.tar", "val-sources.csv"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return stat(path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", failing_too)
        assert [(problem.file.name, problem.is_damage) for problem in problems(dataset, progress=False)] == [
            ("val-sources.csv", False),
            ("train-000001.tar", False),
            ("val-000000.tar", False),
        ]
    with pytest.raises(
        DatasetError, match=r"was not checked: 1 files cannot be read; check the disk or its connection"
    ):
        check.main(str(dataset.root), progress=False)
    assert capsys.readouterr().err == f"{dataset.root}/train-000001.tar: it cannot be read: Input/output error\n"
    flip_bit(dataset.root / "train-000000.tar", 0.5, 1)
    with pytest.raises(DatasetError, match=r"is damaged: \d problems; copy the data set again"):
        check.main(str(dataset.root), progress=False)
