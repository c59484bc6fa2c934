"""Another process that owns a folder, and disks that are small."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OWN = """
import sys, time
from pathlib import Path
from dataloading.locks import owned
with owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def another_owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that owns the folder until it is killed, at the latest at the end of the ``with`` block."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWN, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "owned\n", process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system in memory of this size, such as "600k"."""
    place.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes of a disk free; returns the file that takes the others."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(disk).free - left))
    return ballast
