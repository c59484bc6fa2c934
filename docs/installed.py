"""How large is what gets installed? Counts the files of every package that this environment has.

    python docs/installed.py

writes the record bench/results/static/installed.json and the table of docs/install.md.
"""

import datetime
import importlib.metadata
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "bench" / "results" / "static" / "installed.json"
PAGE = ROOT / "docs" / "install.md"
PURPOSE = {
    "core": "networks, operators, `predict`, `show`",
    "cuda13": "DALI for CUDA 13, which training reads images with; also without a GPU",
    "cuda12": "the same for CUDA 12; never both",
    "imagenet": "ILSVRC's archives: their development kit is a MATLAB file",
    "report": "curves and pictures of runs and studies, and `fastalex report`",
    "tensorboard": "TensorBoard events of training runs",
    "baseline": "`fastalex baseline`: SIFT, Fisher vectors, linear SVMs",
    "export": "ONNX: `export`, and `convert` from ONNX",
    "hub": "networks on the Hugging Face hub",
    "hdf5": "features in HDF5 files",
    "docs": "this documentation: `make docs`",
    "dev": "tests and linters",
}
"""What each extra of pyproject.toml is for."""


def closure(requirements: list[str]) -> set[str]:
    """The installed packages that these requirements need, theirs included."""
    found, waiting = set[str](), [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        extras = {"extra": ""} if not requirement.extras else {"extra": next(iter(requirement.extras))}
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # what this environment does not have is not counted
        found.add(name)
        for text in needs:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(extras):
                needed.marker = None
                waiting.append(needed)
    return found


def size(package: str) -> int:
    """Bytes of a package's files."""
    files = importlib.metadata.files(package) or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file())


def measure() -> dict[str, Any]:
    """The record: bytes of the core, and what each extra adds to it."""
    core = closure(project()["dependencies"])
    extras = project()["optional-dependencies"]
    rows = [{"extra": "core", "packages": len(core), "bytes": sum(map(size, core))}]
    for extra, requirements in extras.items():
        needed = [text for text in requirements if not text.startswith("fastalex[")]
        for text in requirements:
            for inner in Requirement(text).extras if text.startswith("fastalex[") else ():
                needed += extras[inner]
        names = {re.split(r"[^\w.-]", text)[0] for text in needed}
        if all(is_installed(name) for name in names):
            added = closure(needed) - core
            rows.append({"extra": extra, "packages": len(added), "bytes": sum(map(size, added))})
    versions = {name: importlib.metadata.version(name) for name in ("torch", "triton")}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"device": "static", "versions": versions, "date": date, "settings": {"build": "CPU"}, "rows": rows}


def project() -> dict[str, Any]:
    """What pyproject.toml says about the project."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def is_installed(name: str) -> bool:
    """Whether this environment has a package."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def table(record: dict[str, Any]) -> str:
    """Every extra, its purpose and its size."""
    sizes = {row["extra"]: f"{row['bytes'] / 1e6:,.0f} MB" for row in record["rows"]}
    lines = ["| extra | what it is for | size |", "|---|---|---:|"]
    for extra in ("core", *project()["optional-dependencies"]):
        purpose = PURPOSE[extra]
        name = "(none)" if extra == "core" else f"`{extra}`"
        lines.append(f"| {name} | {purpose} | {sizes.get(extra, 'not measured')} |")
    return "\n".join(lines)


def with_table(page: str, record: dict[str, Any]) -> str:
    """The page with its table replaced."""
    marked = re.compile(r"(<!-- table: installed -->\n).*?(<!-- end of table -->)", re.DOTALL)
    (match,) = marked.finditer(page)
    return page[: match.start()] + f"{match[1]}\n{table(record)}\n\n{match[2]}" + page[match.end() :]


def read() -> dict[str, Any]:
    """The committed record."""
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


if __name__ == "__main__":
    RECORD.write_text(json.dumps(measure(), indent=1) + "\n")
    PAGE.write_text(with_table(PAGE.read_text(), read()))
