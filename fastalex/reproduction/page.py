"""The page of a reproduction: tables and figures with the paper's beside them, as HTML, Markdown and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import fastalex.reports
from dataloading.process import command
from fastalex.files import write_atomically
from fastalex.reports.page import hardware, software
from fastalex.reports.runs import link
from fastalex.reports.thumbnails import data_uri
from fastalex.reproduction import claims, figures, tables
from fastalex.reproduction.job import TARGETS
from fastalex.reproduction.steps import Step, kernels
from fastalex.reproduction.targets import Targets
from fastalex.studies.claims import STUDIES

PAGE = "index.html"

_MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class TextTable:
    """A table as text; ``wraps`` if its cells are sentences."""

    caption: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    wraps: bool = False


@dataclass
class Part:
    """A section of the page: a table, a figure, or the claims."""

    name: str
    heading: str
    tables: list[TextTable] = field(default_factory=list)
    pictures: list[tuple[Path, str]] = field(default_factory=list)  # and their captions
    steps: Sequence[Step] = field(default_factory=list)
    record: dict[str, Any] | None = None


def write_results(targets: Targets) -> list[Path]:
    """Write every table, figure and claim as files, and the page of all of them; return what was written.

    Raises:
        OSError: a file cannot be written.
    """
    job, written = targets.job, list[Path]()
    parts = [_PARTS[name](targets) for name in job.targets]
    files: dict[str, list[Path]] = {}
    for part in parts:
        # Pictures were drawn as PNG and as SVG, some with a JSON file of what they show.
        files[part.name] = [
            path
            for picture, _ in part.pictures
            for path in (picture.with_suffix(suffix) for suffix in (".png", ".svg", ".json"))
            if path.is_file()
        ]
        if part.record is not None:
            path = job.output / f"{part.name}.json"
            write_atomically(path, json.dumps(part.record | _about(targets), indent=1) + "\n")
            files[part.name] = [*dict.fromkeys([*files[part.name], path])]
        if part.tables:
            path = job.output / f"{part.name}.md"
            write_atomically(path, _markdown(targets, part))
            files[part.name].append(path)
        written += files[part.name]
    page = job.output / PAGE
    write_atomically(page, _page(targets, parts, files).encode("utf-8", "backslashreplace"))
    return [*written, page]


def _page(targets: Targets, parts: list[Part], files: dict[str, list[Path]]) -> str:
    job = targets.job
    page = job.output / PAGE
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    shown = [
        {
            "name": part.name,
            "heading": part.heading,
            "tables": part.tables,
            "pictures": [
                {"uri": data_uri(path.read_bytes(), _MEDIA[path.suffix]), "caption": caption}
                for path, caption in part.pictures
            ],
            "files": [
                {"name": os.path.relpath(path, page.parent), "link": link(path, page)}
                for path in [*files[part.name], *_of_report(targets, part)]
            ],
            "commands": [command(*step.words) for step in part.steps],
        }
        for part in parts
    ]
    text = environment.get_template("page.html.jinja").render(
        title=f"AlexNet (2012), reproduced on {job.main.name}",
        introduction=_introduction(targets),
        notes=_notes(targets),
        style=(Path(fastalex.reports.__file__).parent / "report.css").read_text(encoding="utf-8"),
        parts=shown,
        software=software(),
        hardware=hardware(torch.device(json.loads(targets.plan.result.read_bytes())["stages"][0]["device"])),
        today=date.today().isoformat(),
    )
    return text.strip() + "\n"


def _of_report(targets: Targets, part: Part) -> list[Path]:
    """The report of the runs, which figures 3 and 4 and the tables come from."""
    has_runs = targets.report is not None and part.name not in ("figure1", "figure2")
    return [targets.report.result] if has_runs and targets.report else []


def _introduction(targets: Targets) -> str:
    """What was trained, on what."""
    settings = targets.job.settings
    options = {name: value for name, value in asdict(settings).items() if value is not None and name != "width"}
    if settings.width != 1:
        options["width"] = f"{settings.width:g} of the paper's"
    text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items())
    return f"Every training has {text}." if text else "Every training has the options of its recipe."


def _notes(targets: Targets) -> list[str]:
    return [source.description + "." for source in targets.job.sources]


def _about(targets: Targets) -> dict[str, Any]:
    """What every record says of itself."""
    return {"options": asdict(targets.job.settings), "software": software(), "made": date.today().isoformat()}


def _markdown(targets: Targets, part: Part) -> str:
    lines = [f"# {part.heading}"]
    for table in part.tables:
        rows = [table.header, tuple("---" for _ in table.header), *table.rows]
        cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        lines += ["", table.caption, "", *(f"| {' | '.join(row)} |" for row in cells)]
    lines += ["", *(f"![{caption}]({link(path, targets.job.output / PAGE)})" for path, caption in part.pictures)]
    return "\n".join([*lines, "", *_notes(targets), software() + ".", ""])


# --- the parts --------------------------------------------------------------------------------------------------------


def _table(targets: Targets, name: str, steps: list[Step]) -> Part:
    table = tables.table1(targets) if name == "table1" else tables.table2(targets)
    text = TextTable(table.caption, table.header, table.cells)
    return Part(name, TARGETS[name], [text], steps=steps, record=table.record())


def _table1(targets: Targets) -> Part:
    evaluations = [targets.first_evaluation(views) for views in (1, 10)]
    return _table(targets, "table1", [*targets.first_networks, *evaluations, *targets.first_baselines])


def _table2(targets: Targets) -> Part:
    more = [targets.pretrained_evaluation] if targets.pretrained_evaluation else []
    trained = [*targets.networks, *targets.pretrained, *targets.finetuned]
    return _table(targets, "table2", [*trained, targets.evaluation(1), targets.evaluation(10), *more])


def _figure1(targets: Targets) -> Part:
    record = figures.figure1(targets)
    step = targets.study("activation")
    ratio = record["ratio"]
    reached = f"The fastest ReLUs need {ratio:.1f} times fewer epochs" if ratio else "Not both of them reached it"
    caption = (
        "Training error of a four-layer network of ReLUs (solid) and of tanh units (dashed), at the best learning "
        f"rate of each, on {targets.job.main.name}; the line is {record['goal']:g} %. {reached}; in the paper, on "
        f"CIFAR-10, it is {record['published_ratio']:g} times."
    )
    rows = [
        (family, curve["variant"], str(curve["epochs_to_goal"] or "not reached"), f"{curve['training_errors'][-1]:.1f}")
        for family, curve in record["curves"].items()
    ]
    header = ("units", "best variant", f"epochs to {record['goal']:g} %", "training error at the end, %")
    table = TextTable(caption, header, rows)
    pictures = [(targets.job.output / "figure1.png", "Training error by epoch.")]
    return Part("figure1", TARGETS["figure1"], [table], pictures, [step], record)


def _figure2(targets: Targets) -> Part:
    drawing = targets.plan.result.with_suffix(".svg")
    target = targets.job.output / "figure2.svg"
    write_atomically(target, drawing.read_bytes())
    plan = json.loads(targets.plan.result.read_bytes())
    caption = (
        "The network over the stages: tensors, parameters, what crosses between towers and stages, and the time of "
        f"each block in a training step of {plan['batch_size']} images."
    )
    return Part("figure2", TARGETS["figure2"], [], [(target, caption)], [targets.plan], plan)


def _figure3(targets: Targets) -> Part:
    run, picture = targets.networks[0], targets.job.output / "figure3.png"
    write_atomically(picture.with_suffix(".svg"), figures.as_svg(picture, "kernels of the first convolution"))
    caption = (
        f"Kernels of the first convolution of {run.result.name}. Each tower has rows of its own. In the paper, after "
        "training on ImageNet, those of the first tower are largely without colour, and those of the second with it."
    )
    return Part("figure3", TARGETS["figure3"], [], [(picture, caption)], [run, kernels(targets.job, run)])


def _figure4(targets: Targets) -> Part:
    caption = (
        "Left: images with their true class and the five most probable ones; the bar of the true class is red. "
        "Right: images, and the training images nearest to them in the last hidden layer by Euclidean distance. All "
        "are chosen at random."
    )
    steps = [step for step in (targets.networks[0], targets.report) if step]
    return Part("figure4", TARGETS["figure4"], [], [(targets.job.output / "figure4.png", caption)], steps)


def _claims(targets: Targets) -> Part:
    found = claims.findings(targets)
    # A claim stands in the first row of its findings only.
    rows = [
        ("" if before and before.claim == finding.claim else finding.claim, *finding.cells[1:])
        for before, finding in zip([None, *found], found, strict=False)
    ]
    table = TextTable(claims.explanation(), claims.HEADER, rows, wraps=True)
    measured = [*targets.networks, targets.evaluation(1), targets.evaluation(10)]
    baselines = [step for group in targets.baselines.values() for step in group]
    part = Part("claims", TARGETS["claims"], [table])
    part.steps = [*measured, *baselines, *(targets.study(name) for name in STUDIES)]
    part.record = {"findings": [asdict(finding) for finding in found]}
    if sizes := figures.data_set_size(targets):
        part.record["dataset_size"] = sizes
        part.pictures.append((targets.job.output / "dataset-size.png", STUDIES["dataset-size"].claim))
    for study in STUDIES.values():
        step = targets.study(study.name)
        if (step.result / "study.png").is_file():
            part.pictures.append((step.result / "study.png", study.claim))
    return part


_PARTS = {
    "table1": _table1,
    "table2": _table2,
    "figure1": _figure1,
    "figure2": _figure2,
    "figure3": _figure3,
    "figure4": _figure4,
    "claims": _claims,
}
