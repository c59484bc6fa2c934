"""``python -m dataloading.prepare``."""

import pytest

from tests.dataloading.small_sources import command


def test_the_command_prepares_and_says_so(folders, tmp_path):
    done = command("dataloading.prepare", folders, tmp_path / "out", "--size", 32, "--workers", 1)
    assert done.returncode == 0
    assert "3 classes, 24 train, 12 val images; 0 rejected" in done.stdout
    assert "36 of 36 images" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["/no/where"], "no such folder: /no/where"), (["digits", "--verify"], "no MD5 sums are published for digits")],
)
def test_the_command_ends_with_one_line_and_2(tmp_path, arguments, message):
    source, *options = arguments
    done = command("dataloading.prepare", source, tmp_path / "out", *options)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_is_complete():
    done = command("dataloading.prepare", "--help")
    assert done.returncode == 0
    options = (
        "size quality keep-aspect label-order validation-every allow-empty-classes verify workers shard-images "
        "max-pixels background exif progress"
    )
    for option in options.split():
        assert f"--{option}" in done.stdout
