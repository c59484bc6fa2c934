"""``python -m dataloading.standin``."""

from dataloading.standin.classes import CLASSES
from tests.dataloading.small_sources import command


def test_the_command_makes_the_archives_and_says_how_to_prepare_them(tmp_path):
    options = ("--classes", 2, "--images", 4, "--validation", 2, "--workers", 0, "--no-progress")
    done = command("dataloading.standin", "made", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == "made: 2 classes, 4 train, 2 val images, in the archives of ILSVRC2012"
    assert second.endswith("-m dataloading.prepare made prepared/made")
    assert len(list((tmp_path / "made").iterdir())) == 3
    done = command("dataloading.standin", "made", *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: made exists already; choose another destination\n"


def test_mistakes_are_one_line_and_the_help_knows_how_many_classes_there_are(tmp_path):
    done = command("dataloading.standin", tmp_path / "x", "--classes", 99)
    assert (done.returncode, done.stderr) == (2, f"error: --classes must be from 2 to {len(CLASSES)}, got 99\n")
    assert f"2 to {len(CLASSES)}." in command("dataloading.standin", "--help").stdout
