"""The tables of the documentation that come from records: those of docs/benchmarks.md and docs/status.md.

`make figures` writes them between their markers again. A test compares the pages with the records.
"""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from figures import (
    CASES,
    COMPILED,
    CONV1,
    CONV2,
    CPU,
    DOCS,
    EAGER,
    GPU,
    RESULTS,
    STEP_CPU,
    best,
    milliseconds,
    read,
    times,
)


def operators_table(device: str) -> str:
    """Milliseconds of every case."""
    rows = [("", "fastalex", "PyTorch, channels_last", "PyTorch, NCHW", "best of `torch.compile`")]
    for case in CASES:
        found = times(case, device)
        eager = found.get("torch eager channels_last") or found.get("torch eager") or best(found, EAGER)
        cells = (found["ours"], eager, found.get("torch eager NCHW"), best(found, COMPILED))
        shown = [None if row is None else milliseconds(row["ms_p50"]) for row in cells]
        numbers = {text: row["ms_p50"] for text, row in zip(shown, cells, strict=True) if row is not None}
        fastest = min(numbers, key=numbers.__getitem__)
        rows.append((case.label, *("-" if t is None else f"**{t}**" if t == fastest else t for t in shown)))
        if "ours, Triton alone" in found:
            rows.append(
                (f"{case.label}, Triton alone", milliseconds(found["ours, Triton alone"]["ms_p50"]), *["-"] * 3)
            )
    return markdown(rows)


def steps_table(device: str) -> str:
    """Training steps: every variant that was measured; times only where there is a single batch size."""
    measured = [row for row in read(device, "train_step")["rows"] if row["architecture"] == "krizhevsky"]
    batches = sorted({row["batch"] for row in measured})
    if len(batches) > 1:
        columns = [*(f"images/s, batch {batch}" for batch in batches), f"memory at {batches[-1]}, MiB"]
    else:
        columns = ["images/s", "ms", "memory, MiB"]
    rows = [("", *columns)]
    for variant in dict.fromkeys(row["variant"] for row in measured):
        of_variant = {row["batch"]: row for row in measured if row["variant"] == variant}
        missing = [row["skipped"] or row["wrong"] for row in of_variant.values() if row["ms_p50"] is None]
        if missing:
            rows.append((variant, f"none: {missing[0]}", *["-"] * (len(columns) - 1)))
            continue
        speeds = [f"{of_variant[batch]['images_per_second']:,.0f}" for batch in batches]
        cells = [f"**{speed}**" if of_variant[batches[0]]["ours"] else speed for speed in speeds]
        cells += [milliseconds(of_variant[batches[0]]["ms_p50"])] if len(batches) == 1 else []
        rows.append((variant, *cells, f"{of_variant[batches[-1]]['peak_mib']:,.0f}"))
    return markdown(rows)


def loader_table() -> str:
    """Readers of the same images."""
    rows = [("reader", "threads or workers", "images/s")]
    for row in read(STEP_CPU, "loader")["rows"]:
        rows.append((row["reader"], row["setting"], f"{row['images_per_second']:,.0f}"))
    return markdown(rows)


PREDICTED = {
    "lrn conv1": f"LRN, {CONV1}",
    "max_pool conv1": f"max-pool, {CONV1}",
    "lrn_max_pool source": f"fused block, {CONV1}",
    "same_map_norm": f"same-map norm, {CONV2}",
    "same_map_norm_max_pool": f"same-map norm and pooling, {CONV2}",
    "update": "update of 61 million weights, with bf16 copies",
}
"""Cases of the record of compiled code, and what the tables call them."""


def predictions_table() -> str:
    """Predicted microseconds, the sum over an operator's launches, beside the recorded ones."""
    rows = [("", "bound by", "predicted", "recorded")]
    launches = read("static", "kernels")["rows"]
    for case, label in PREDICTED.items():
        for direction in ("forward", "backward"):
            chosen = [row for row in launches if (row["case"], row["direction"]) == (case, direction)]
            if chosen:
                bound = max(chosen, key=lambda row: row["predicted_us"])["bound_by"].replace("issue", "issue slots")
                predicted = sum(row["predicted_us"] for row in chosen)
                recorded = "-" if chosen[0]["recorded_us"] is None else f"{chosen[0]['recorded_us']:.0f}"
                rows.append((f"{label}, {direction}", bound, f"{predicted:.0f}", recorded))
    return markdown(rows)


def records_table() -> str:
    """What has been measured on which hardware, with which versions."""
    rows = [("hardware", "records", "torch", "Triton", "Python", "DALI", "last record")]
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir() and path.name != "static"):
        found = {path.stem: read(folder.name, path.stem) for path in sorted(folder.glob("*.json"))}
        device = next(iter(found.values()))["device"]
        versions = [
            ", ".join(
                sorted({str(record["versions"][name]) for record in found.values() if name in record["versions"]})
            )
            for name in ("torch", "triton", "python", "dali")
        ]
        date = max(record["date"][:10] for record in found.values())
        names = ", ".join(f"`{name}`" for name in found)
        rows.append((device, names, *(text or "-" for text in versions), date))
    return markdown(rows, numbers=False)


def markdown(rows: Sequence[tuple[str, ...]], *, numbers: bool = True) -> str:
    """A table; numbers are on the right."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---|" + ("---:|" if numbers else "---|") * (len(rows[0]) - 1), *lines[1:]])


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "benchmarks.md": {
        "operators-gpu": lambda: operators_table(GPU),
        "operators-cpu": lambda: operators_table(CPU),
        "step-gpu": lambda: steps_table(GPU),
        "step-cpu": lambda: steps_table(STEP_CPU),
        "step-avx": lambda: steps_table(CPU),
        "loader": loader_table,
        "predictions": predictions_table,
    },
    "status.md": {"records": records_table},
}
"""The tables of each page by the name in their markers."""


def with_tables(page: str) -> str:
    """The text of a page with every table between its markers replaced."""
    text = (DOCS / page).read_text()
    for name, table in TABLES[page].items():
        marked = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end of table -->)", re.DOTALL)
        (match,) = marked.finditer(text)
        text = text[: match.start()] + f"{match[1]}\n{table()}\n\n{match[2]}" + text[match.end() :]
    return text


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(with_tables(page))
