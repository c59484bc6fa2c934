"""Run tests with the oldest or the newest versions of all packages that pyproject.toml allows.

    .venv/bin/python tests/versions.py oldest                             # the whole suite
    .venv/bin/python tests/versions.py newest tests/kernels -n 2          # arguments of pytest

Each of the two has an environment of its own, .venv-oldest and .venv-newest (several gigabytes), which is made anew if
pyproject.toml has changed. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu installs torch's smaller CPU build
where pip can reach it. DALI comes in the version of constraints.txt: NVIDIA's index has no old ones for long.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]


def requirements(which: str, pyproject: Path = ROOT / "pyproject.toml") -> list[str]:
    """What pip is told to install: the lowest version allowed of each package, or any allowed one.

    ``torch>=2.11,<2.14`` becomes ``torch==2.11.*`` for the oldest, and stays for the newest. Extras are all those that
    ``dev`` names.
    """
    everything = tomllib.loads(pyproject.read_text())
    project = everything["project"]
    extras = project["optional-dependencies"]
    (own,) = (text for text in extras["dev"] if text.startswith("fastalex["))
    texts = [
        *everything["build-system"]["requires"],
        *project["dependencies"],
        *(text for text in extras["dev"] if text != own),
    ]
    texts += [text for extra in re.findall(r"\w+", own.partition("[")[2]) for text in extras[extra]]
    texts = list(dict.fromkeys(texts))
    if which == "newest":
        return texts
    return [re.sub(r">=([\w.]+)[^;]*", r"==\1.*", text, count=1) for text in texts]


def environment(which: str) -> Path:
    """The Python of an environment with those versions, made if it is missing or out of date."""
    folder, wanted = ROOT / f".venv-{which}", requirements(which)
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != "\n".join(wanted):
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        (dali,) = re.findall(r"nvidia-dali-cuda130==.*", (ROOT / "constraints.txt").read_text())
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted, dali], check=True)
        stamp.write_text("\n".join(wanted))
    return python


def main() -> None:
    """Install and test; the exit code is that of pytest."""
    which, *arguments = sys.argv[1:] or [""]
    if which not in ("oldest", "newest"):
        sys.exit("error: the first argument must be oldest or newest")
    python = environment(which)
    subprocess.run([python, "-m", "pip", "freeze", "--quiet"], check=True)
    command = [python, "-m", "pytest", *(arguments or ["-n", str(os.cpu_count()), "--dist", "loadfile"])]
    sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode)


if __name__ == "__main__":
    main()
