"""The tables of ``docs/claims.md``, from ``fastalex/studies/claims.toml`` and the committed records of the benchmarks.

``python -m tests.fastalex.studies.claims_page`` writes them into the page again after one of these has changed.
"""

import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastalex.handcrafted.options import METHODS
from fastalex.metrics import did_not_learn
from fastalex.studies.claims import OTHER_CLAIMS, PUBLISHED_ERRORS, STUDIES, OtherClaim, Study, Variant, find_study
from fastalex.studies.comparison import learned_text

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "claims.md"


def claims_table() -> str:
    """Every claim: its command, the published figures, and whether there is a record."""
    rows = [("claim", "command", "published, top-1 / top-5", "measured here")]
    measured = {find_study(record["settings"]["study"]).name for record in _records("study-*.json")}
    for study in STUDIES.values():
        here = "[below](#measured)" if study.name in measured else "-"
        rows.append((study.claim, f"`study {study.name}`", _published_differences(study), here))
    reproduced = {finding["claim"] for finding in _findings()}
    for claim in OTHER_CLAIMS:
        has_record = claim.claim in reproduced
        commands = ", then ".join(f"`{command}`" for command in claim.commands)
        rows.append((claim.claim, commands, _published_errors(claim), "[below](#measured)" if has_record else "-"))
    return _markdown(rows)


def studies_table() -> str:
    """The results of all recorded studies."""
    rows = [("study", "variant", "top-1 error %", "top-5 error %", "difference", "published")]
    records = {find_study(record["settings"]["study"]).name: record for record in _records("study-*.json")}
    for study in STUDIES.values():
        if study.measure == "epochs":
            continue
        for index, row in enumerate(records.get(study.name, {"rows": []})["rows"]):
            (variant,) = (v for v in study.variants if row["variant"] in (v.name, v.formerly))
            difference, published = "base", "base"
            if index:
                difference = " / ".join(_difference(row[f"{kind}_difference"]) for kind in ("top1", "top5"))
                published = str(variant.published or "none")
            errors = [_figure(row[name]) for name in ("top1_error", "top5_error")]
            name = variant.name
            if failed := failures(row, records[study.name]["settings"]["data"]):
                name += f" ({failed})"
            rows.append((f"`{study.name}`", name, *errors, difference, published))
    return _markdown(rows)


def activation_table() -> str:
    """The recorded epochs of figure 1's study."""
    rows = [("variant", "epochs to 25 % training error", "top-1 error at the end, %")]
    for record in _records("study-activation.json"):
        for row in record["rows"]:
            reached = row["epochs_to_goal"]
            epochs = "not reached" if reached is None else _figure(reached, digits=0)
            rows.append((row["variant"], "diverged" if row["diverged"] else epochs, _figure(row["top1_error"])))
    return _markdown(rows)


def others_table() -> str:
    """The claims that are no studies, from the record of a reproduction."""
    rows = [("claim", "compared", "published", "measured")]
    others = {claim.claim for claim in OTHER_CLAIMS}
    for found in _findings():
        if found["claim"] in others:
            rows.append((found["claim"], found["variant"], found["published"], found["measured"]))
    return _markdown(rows)


def _findings() -> list[dict[str, Any]]:
    return [found for record in _records("reproduction.json") for found in record["rows"]]


def _figure(figure: dict[str, Any] | None, digits: int = 1) -> str:
    """Mean and spread; a single run has no spread."""
    if figure is None:
        return "-"
    spread = "" if figure["spread"] is None else f" ± {figure['spread']:.{digits}f}"
    return f"{figure['mean']:.{digits}f}{spread}"


def failures(row: dict[str, Any], data: dict[str, Any]) -> str:
    """How many runs of a recorded row did not learn, as the study itself says it; empty if all did."""
    failed = sum(did_not_learn(run["top1_error"], data["classes"], data["val"]) for run in row["runs"])
    return learned_text(failed, len(row["runs"]))


def baseline_table() -> str:
    """The recorded errors of hand-crafted features."""
    rows = [("features", "top-1 error %", "top-5 error %", "published, ILSVRC-2010 test")]
    for record in _records("baseline.json"):
        for row in record["rows"]:
            name = METHODS[row["features"]]
            published = "none"
            if row["features"] == "sift":
                name += f", {row['gaussians']} Gaussians"
                published = str(PUBLISHED_ERRORS["sift-fisher-vectors-2010"])
            rows.append((name, f"{row['top1_error']:.1f}", f"{row['top5_error']:.1f}", published))
    return _markdown(rows)


def sizes_table() -> str:
    """The recorded top-1 errors over the number of training images, of the network and of hand-crafted features."""
    rows = [("training images", "the network, top-1 error %", f"{METHODS['sift']}, top-1 error %")]
    for record in _records("dataset-size.json"):
        for images in sorted({row["training_images"] for row in record["rows"]}):
            found = {
                features: [
                    row["top1_error"]
                    for row in record["rows"]
                    if (row["training_images"], row["features"]) == (images, features)
                ]
                for features in ("network", "sift")
            }
            rows.append((f"{images:,}", *map(_over_seeds, found.values())))
    return _markdown(rows)


def _over_seeds(errors: list[float]) -> str:
    """Mean and standard deviation, with the number of seeds."""
    if len(errors) == 1:
        return f"{errors[0]:.1f} (1 seed)"
    return f"{statistics.fmean(errors):.1f} ± {statistics.stdev(errors):.1f} ({len(errors)} seeds)"


TABLES = {
    "claims": claims_table,
    "studies": studies_table,
    "activation": activation_table,
    "others": others_table,
    "sizes": sizes_table,
    "baseline": baseline_table,
}


def with_tables(page: str) -> str:
    """The page with every table between its markers replaced."""
    for name, table in TABLES.items():
        marked = re.compile(rf"(<!-- table: {name} -->\n).*?(\n<!-- end of table -->)", re.DOTALL)
        (match,) = marked.finditer(page)
        page = page[: match.start()] + f"{match[1]}\n{table()}\n{match[2]}" + page[match.end() :]
    return page


def _records(pattern: str) -> Iterator[dict[str, Any]]:
    for path in sorted(RECORDS.glob(f"*/{pattern}")):
        yield json.loads(path.read_text())


def _published_differences(study: Study) -> str:
    if study.measure == "epochs":
        return f"{study.published_ratio:g} times ({study.source})"
    names: dict[str, list[str]] = {}
    for variant in study.variants[1:]:
        names.setdefault(_published_difference(variant), []).append(variant.name)
    if list(names) == ["none"]:
        return "none"
    return "; ".join(f"{', '.join(f'*{name}*' for name in variants)}: {text}" for text, variants in names.items())


def _published_difference(variant: Variant) -> str:
    published = variant.published
    if published is None:
        return "none"
    source = published.source if published.error is None else f"{published.source}; {published.error.source}"
    return f"{published} ({source})"


def _published_errors(claim: OtherClaim) -> str:
    pairs = [
        f"{worse} ({worse.method}) to {better} ({better.method}), {better.source}"
        for worse, better in claim.comparisons
    ]
    return "; ".join(pairs) or claim.published


def _difference(difference: dict[str, Any]) -> str:
    return f"{difference['value']:+.1f}{ {True: '', False: '~', None: '?'}[difference['is_larger']] }"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
