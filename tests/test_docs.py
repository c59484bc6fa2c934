"""The documentation is true: links lead somewhere, commands parse, examples run, messages exist, charts are current.

`make docs` builds the site; what Sphinx checks by itself is not checked here.
"""

import ast
import functools
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from dataloading.process import SCRIPT
from docs import figures, installed, sketches, tables
from fastalex import __main__
from fastalex.network.variation import Variation
from tests.fastalex.commands import command_here
from tests.fastalex.conftest import class_folders, prepared, save_run, write_images  # noqa: F401

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "bench/README.md"]
    + [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

# --- reading pages ----------------------------------------------------------------------------------------------------


@cache
def tokens(page: Path) -> list[Token]:
    """The tokens of a page, those within paragraphs and tables included."""
    found = []
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        found += [token, *(token.children or [])]
    return found


def code_blocks(page: Path, language: str) -> list[str]:
    """The code of a page in one language."""
    return [token.content for token in tokens(page) if token.type == "fence" and token.info.strip() == language]


def inline_code(page: Path) -> list[str]:
    """What stands in backticks within paragraphs and tables."""
    return [token.content for token in tokens(page) if token.type == "code_inline"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = tokens(page)
    headings = [found[index + 1].content for index, token in enumerate(found) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).replace(" ", "-") for heading in headings}


def command_lines(page: Path) -> Iterator[list[str]]:
    """Commands of this project in a page's blocks, and those in its text that have options."""
    for block in code_blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            yield from commands_in(shlex.split(line, comments=True))
    for text in inline_code(page):
        if " --" in text and "..." not in text:
            yield from commands_in(shlex.split(text))


def commands_in(words: list[str]) -> list[list[str]]:
    """The command in a line, also behind srun or torchrun, as `fastalex COMMAND ...`."""
    for index, word in enumerate(words[:-1]):
        if word == "fastalex":
            return [words[index:]]
        if word == "-m" and re.match(r"(fastalex|dataloading)\.", words[index + 1]):
            return [["fastalex", words[index + 1].split(".")[-1], *words[index + 2 :]]]
    return []


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_links_and_pictures_lead_to_files_and_headings(name):
    page = ROOT / name
    targets = [token.attrs.get("href") or token.attrs.get("src") for token in tokens(page)]
    targets += re.findall(r'<img src="([^"]+)"', page.read_text())
    lost = []
    for target in filter(None, map(str, filter(None, targets))):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            lost.append(target)
    assert lost == []


# --- commands ---------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """The command line was accepted."""


def parse_only(command: Callable[..., Any], **options: Any) -> None:
    """In place of `tyro.cli`: parse, and do nothing else."""
    if isinstance(command, type):
        _cli(command, **options)
    else:
        _cli(functools.wraps(command)(lambda *_args, **_kwargs: None), **options)
    raise Parsed


_cli = tyro.cli


@pytest.mark.parametrize("name", NAMES)
def test_commands_parse(name, monkeypatch, capsys):
    """By the parsers of the commands themselves; nothing is run."""
    monkeypatch.setattr(tyro, "cli", parse_only)
    monkeypatch.setenv(SCRIPT, "")  # what main() sets does not outlive this test
    wrong = []
    for words in command_lines(ROOT / name):
        monkeypatch.setattr(sys, "argv", words)
        try:
            __main__.main()
        except Parsed:
            continue
        except SystemExit:
            wrong.append(f"{shlex.join(words)}: {capsys.readouterr().err}")
        else:
            wrong.append(f"{shlex.join(words)}: it was not parsed")
    assert wrong == []


def test_every_command_and_every_extra_is_documented():
    text = "".join(page.read_text() for page in PAGES if page.parent.name == "docs")
    assert [name for name in __main__._COMMANDS if f"fastalex {name} " not in text] == []
    assert set(installed.PURPOSE) >= {"core", *installed.project()["optional-dependencies"]}


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_and_scripts_exist(name):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join([*code_blocks(ROOT / name, "bash"), *inline_code(ROOT / name)])
    assert set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= set(targets)
    for script in re.findall(r"python ((?:bench|docs|tests)/[\w/]+\.py)", code):
        assert (ROOT / script).is_file(), script


@cache
def words_of_the_code() -> str:
    """All source text in which options are defined."""
    folders = ("dataloading", "fastalex", "bench", "tests")
    return "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))


FOREIGN_OPTIONS = {
    *("--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port", "--rdzv-conf"),
    *("--signals-to-handle", "--local-addr", "--signal", "--index-url"),  # torchrun, SLURM, pip
}


@pytest.mark.parametrize("name", NAMES)
def test_options_exist(name):
    """Options in the text: a field or a parameter is defined under that name, or the code names the option itself."""
    code, unknown = words_of_the_code(), []
    for option in set(re.findall(r"(?<![\w-])--[a-z][\w-]*", "\n".join(inline_code(ROOT / name)))):
        field = re.sub("^--(no-)?", "", option).replace("-", "_")
        if option not in FOREIGN_OPTIONS and option not in code and not re.search(rf"\b{field}: ", code):
            unknown.append(option)
    assert unknown == []


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A folder with what the examples name: two runs, photographs, stimuli."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "runs").mkdir()
    for number, name in enumerate(("a", "b")):
        save_run(folder / "runs" / name, prepared, seed=number, with_record=True, variation=Variation(width=1 / 16))
    write_images(folder / "photos", train=8, val=2)
    for target in ("photo.jpg", "stimuli/1.jpg", "stimuli/2.jpg"):
        (folder / target).parent.mkdir(exist_ok=True)
        Image.open(folder / "photos/train/red/000.jpg").resize((300, 260)).save(folder / target)
    (folder / "stimuli.txt").write_text("stimuli/2.jpg\nstimuli/1.jpg\n")
    return folder


# What makes the commands of README.md short, without changing what they do.
SHORT = {
    "train --output runs/digits": "--arch four-layer -b 64 --fraction 0.05 --epochs 1 --devices cpu",
    "train photos": "--width 0.0625 -b 8 --recipe small --epochs 1 --devices cpu",
}


def test_the_commands_of_the_front_page_work(workspace):
    """All of them, in order, on small images and narrow networks."""
    done = []
    for block in code_blocks(ROOT / "README.md", "bash"):
        for line in block.splitlines():
            name, *arguments = shlex.split(line, comments=True)
            if name != "fastalex":
                assert re.match(r"git clone|make install && \. \.venv/bin/activate$", line), line
                continue
            more = next((text for start, text in SHORT.items() if " ".join(arguments).startswith(start)), "")
            code, out, err = command_here(workspace, f"fastalex.{arguments[0]}", *arguments[1:], *more.split())
            assert code == 0, f"{line}\n{out}\n{err}"
            done.append(arguments[0])
    assert {"train", "evaluate", "predict", "features", "report"} <= set(done)
    assert (workspace / "report.html").is_file()
    assert {path.name for path in (workspace / "features").iterdir()} >= {"conv5.npy", "fc7.npy", "samples.csv"}


@pytest.mark.parametrize("name", [name for name in NAMES if code_blocks(ROOT / name, "python")])
def test_examples_run(name, workspace, monkeypatch):
    """The Python blocks of a page, one after the other, after the commands that they need."""
    monkeypatch.chdir(workspace)
    if name == "README.md":
        run = workspace / "runs" / "photos"
        if not run.exists():
            run.symlink_to("a")
    if name == "docs/features.md" and not (workspace / "features").exists():
        arguments = ["runs/a", "stimuli", "conv5", "fc7", "-o", "features"]
        code, _, err = command_here(workspace, "fastalex.features", *arguments)
        assert code == 0, err
    if name == "docs/weights.md":
        code, _, err = command_here(
            workspace, "fastalex.export", "runs/a", "--to", "onnx", "-o", "best.onnx", "--force"
        )
        assert code == 0, err
    names: dict[str, Any] = {}
    for block in code_blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), names)


# --- messages ---------------------------------------------------------------------------------------------------------


@cache
def texts_of_the_code() -> str:
    """All texts in the code but docstrings, one a line; what is computed stands as \\0."""
    found = []
    for package in ("kernels", "dataloading", "fastalex"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text())
            docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if node in docstrings:
                    continue
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(text.replace("\n", " ") for text in found)


MESSAGES = [
    (str(page.relative_to(ROOT)), match)
    for page in PAGES
    for match in re.findall(r"^\| `([^|]+)` \|", page.read_text(), re.MULTILINE)
    if "| message |" in page.read_text()
]


@pytest.mark.parametrize("name", sorted({name for name, _ in MESSAGES}))
def test_messages_are_those_of_the_code(name):
    """In tables of messages, `...` stands for anything within a text of the code."""
    code = texts_of_the_code()
    unknown = []
    for message in (message for page, message in MESSAGES if page == name):
        parts = [part for part in message.split("...") if part.strip()]
        if not re.search("[^\n]*?".join(re.escape(part) for part in parts), code):
            unknown.append(message)
    assert unknown == []


# --- charts, pictures and tables --------------------------------------------------------------------------------------

RENEW = "make figures draws and writes them again"


def test_charts_are_those_of_the_records():
    for name, chart in figures.charts():
        assert (figures.IMAGES / name).read_text() == chart, f"{name} is not that of the records: {RENEW}"


def test_pictures_show_what_the_operators_compute():
    for name, picture in sketches.sketches():
        drawn, computed = ((sketches.IMAGES / f"sketch-{name}.svg").read_text(), picture)
        for old, new in zip(drawn.split('"'), computed.split('"'), strict=True):
            if old != new:  # lengths in pixels, which another machine may round differently
                assert float(old) == pytest.approx(float(new), abs=0.11), f"{name}: {RENEW}"


@pytest.mark.parametrize("page", tables.TABLES)
def test_tables_are_those_of_the_records(page):
    assert (figures.DOCS / page).read_text() == tables.with_tables(page), f"{page} differs: {RENEW}"


def test_the_table_of_sizes_is_that_of_its_record():
    page = installed.PAGE.read_text()
    assert page == installed.with_table(page, installed.read()), "python docs/installed.py writes it again"


@pytest.mark.parametrize(
    ("drawing", "options"), [("network", ["cpu"]), ("two-stages", ["0,1", "--device-memory", "3"])]
)
def test_drawings_are_those_of_the_network(drawing, options, tmp_path):
    code, _, err = command_here(tmp_path, "fastalex.plan", "--devices", *options, "--draw", "new.svg")
    assert code == 0, err
    drawn = (figures.IMAGES / f"{drawing}.svg").read_text()
    assert drawn == (tmp_path / "new.svg").read_text(), f"fastalex plan --devices {' '.join(options)} --draw differs"


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
