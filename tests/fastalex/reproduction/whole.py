"""Reproduce the whole paper on a small stand-in, end to end: ``python -m tests.fastalex.reproduction.whole [FOLDER]``.

Draws two data sets of 20 and 24 classes, prepares them, starts ``fastalex.reproduce all`` at a sixteenth of the width,
kills it in the middle, continues it, and checks the results: every file is there, no process is left, the tables'
errors are those counted from predictions here, all links lead to files, and nothing is said to be ImageNet. Started
once more, it repeats nothing. It takes minutes, so it is not part of the test suite.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

from fastalex.network.weights_record import load_record
from fastalex.studies.claims import STUDIES
from tests.fastalex.commands import assert_all_end, children, environment

FILES = (
    "index.html", "report.html", "table1.md", "table1.json", "table2.md", "table2.json", "figure1.png", "figure1.svg",
    "figure1.json", "figure1.md", "figure2.svg", "figure2.json", "figure3.png", "figure3.svg", "figure4.png",
    "figure4.svg", "figure4.json", "claims.md", "claims.json", "dataset-size.png", "dataset-size.svg",
)  # fmt: skip
SECONDS_TO_BEGIN = 600


def main() -> None:
    """Run it in a folder, which is kept, or in a temporary one."""
    if len(sys.argv) > 1:
        reproduce(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        reproduce(Path(folder))


def reproduce(folder: Path) -> None:
    """Draw, prepare, reproduce and check."""
    folder.mkdir(exist_ok=True)
    for name, classes, seed in (("small", 20, 0), ("more", 24, 1)):
        size = ("--images", "240", "--validation", "60", "--classes", classes, "--seed", seed)
        run(folder, "dataloading.standin", f"{name}-archives", *size)
        run(folder, "dataloading.prepare", f"{name}-archives", name)
    words = ("all", "small", "more", "--width", "0.0625", "--epochs", "1", "--seeds", "1", "-b", "16")
    words += ("--devices", "cpu", "--output", "out")
    kill_in_the_middle(folder, "fastalex.reproduce", *words)
    run(folder, "fastalex.reproduce", *words)
    check(folder)
    check_links(folder / "out" / "index.html")
    made = times_of_files(folder / "out" / "runs")
    again = run(folder, "fastalex.reproduce", *words)
    assert "---" not in again, "finished steps were repeated"
    assert times_of_files(folder / "out" / "runs") == made
    print(f"everything is there: {folder / 'out' / 'index.html'}")


def run(folder: Path, *words: object) -> str:
    """Run a command, which must succeed, and return its output."""
    command, lines = [sys.executable, "-m", *map(str, words)], []
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    assert process.returncode == 0, f"{' '.join(command)} ended with code {process.returncode}"
    return "".join(lines)


def times_of_files(folder: Path) -> dict[Path, int]:
    """When each file below a folder was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def check_links(page: Path) -> None:
    """Check that a page names only files that exist, and holds its pictures itself."""
    found = re.findall(r"""(?:href|src)=["']([^"']*)["']""", page.read_text())
    links = [unquote(link) for link in found if not link.startswith(("data:", "#"))]
    assert {"table2.json", "figure2.svg", "figure3.svg", "figure4.json", "report.html"} <= {*links}, links
    missing = [link for link in links if not (page.parent / link).is_file()]
    assert not missing, f"dead links: {', '.join(missing)}"


def kill_in_the_middle(folder: Path, *words: str) -> None:
    """Start a command and kill it when its first study has a finished run; none of its workers may be left."""
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=environment())
    begun, deadline = (
        folder / "out" / "studies" / "small-activation" / "study.json",
        time.monotonic() + SECONDS_TO_BEGIN,
    )
    while not begun.exists():
        assert process.poll() is None, "the reproduction ended too early"
        assert time.monotonic() < deadline, f"{begun} did not come"
        time.sleep(0.2)
    workers = children(process.pid)
    assert workers, "no step was running"
    process.kill()
    process.wait()
    assert_all_end(workers)


def check(folder: Path) -> None:
    """Check the results."""
    out = folder / "out"
    missing = [name for name in FILES if not (out / name).is_file()]
    assert not missing, f"missing: {', '.join(missing)}"
    page = (out / "index.html").read_text()
    assert "small: 20 classes, 240 train, 60 val images; not ILSVRC-2012" in page
    assert all(study.claim in page for study in STUDIES.values())
    # WordNet ids have their words, on the page and in the weights.
    labels = [image["class"] for image in json.loads((out / "figure4.json").read_text())["images"]]
    words = load_record(out / "runs" / "small-network-0" / "last.safetensors").words
    assert len(words) == 20
    assert set(labels) <= {text.split(",")[0] for text in words}, labels
    record = json.loads((out / "table2.json").read_text())
    assert record["is_imagenet"] is False
    rows = {row["model"]: row for row in record["rows"]}
    for model, name in (("1 CNN", "network"), ("1 CNN*", "finetuned")):
        predictions = folder / f"{name}.csv"
        options = ("--crops", "10", "--weights", "last", "--device", "cpu", "--predictions", predictions)
        run(folder, "fastalex.evaluate", f"out/runs/small-{name}-0", *options)
        assert rows[model]["values"] == [list(errors(predictions))], model


def errors(path: Path) -> tuple[float, float]:
    """Top-1 and top-5 error rates in percent, counted from a file of predictions."""
    rows = list(csv.DictReader(path.open()))
    wrong1 = sum(row["class"] != row["class_1"] for row in rows)
    wrong5 = sum(row["class"] not in [row[f"class_{rank}"] for rank in range(1, 6)] for row in rows)
    return 100 * wrong1 / len(rows), 100 * wrong5 / len(rows)


if __name__ == "__main__":
    main()
