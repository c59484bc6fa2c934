"""``python -m dataloading.check``."""

import errno
import os
from pathlib import Path

import pytest

from dataloading import Dataset, DatasetError, check
from dataloading.check import problems
from tests.dataloading.damage import copied, flip_bit, overwritten, undecodable
from tests.dataloading.small_sources import command


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


def test_a_disk_that_fails_is_not_called_damage(small, tmp_path, monkeypatch, capsys):
    dataset = Dataset(copied(small.root, tmp_path / "copy"))
    real = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "train-000001.tar":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", failing)
    with pytest.raises(
        DatasetError, match=r"was not checked: 1 files cannot be read; check the disk or its connection"
    ):
        check.main(str(dataset.root), progress=False)
    assert capsys.readouterr().err == f"{dataset.root}/train-000001.tar: it cannot be read: Input/output error\n"
    flip_bit(dataset.root / "train-000000.tar", 0.5, 1)
    with pytest.raises(DatasetError, match=r"is damaged: \d problems; copy the data set again"):
        check.main(str(dataset.root), progress=False)
