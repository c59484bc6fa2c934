"""Files that other programs read: what they repeat from the code has to stay true."""

import re
import tomllib
from pathlib import Path

import pytest

import fastalex
from dataloading.command_line import _parser
from dataloading.help_text import flags
from fastalex.options.training import TrainOptions

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version():
    assert f"\nversion: {fastalex.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_image_copies_what_there_is_and_installs_extras_that_there_are():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", "\n".join(lines))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(copied)


@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "examples").glob("*.sbatch")), ids=lambda path: path.name)
def test_the_jobs_options_are_those_of_train(script):
    text = script.read_text()
    given = re.findall(r"(?<=[ (])--?[a-z][a-z-]*", "".join(re.findall(r"options=\(.*\)", text)))
    known = [name for item in _parser(TrainOptions).get_args_including_children() for name in flags(item.arg)]
    assert given
    assert set(given) <= set(known)


def test_the_workflow_makes_targets_that_there_are():
    made = re.findall(r"run: make (\S+)$", (ROOT / ".github" / "workflows" / "tests.yml").read_text(), re.MULTILINE)
    assert {"lint", "test", "docs"} <= set(made)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(made) <= set(targets)
