"""The rows of ``fastalex/planning/speeds.json``, from the committed records of the benchmarks.

``python -m tests.fastalex.planning.recorded_speeds`` writes the file again after a record has changed.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "bench" / "results"
SPEEDS = ROOT / "fastalex" / "planning" / "speeds.json"


def recorded_speeds() -> list[dict[str, Any]]:
    """Our training speeds with default settings: single steps on resident data, and whole training runs.

    Of several batch sizes the fastest. Names of devices are shortened to what a table of 80 columns has room for.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted([*RECORDS.glob("*/train_step.json"), *RECORDS.glob("*/training.json")]):
        record = json.loads(path.read_text())
        for row in record["rows"]:
            is_step = path.stem == "train_step"
            ours = row.get("ours") is True if is_step else row.get("provider") == "fastalex"
            is_default = "," not in row.get("variant", "")  # not "ours bf16, no graphs"
            if ours and is_default and row.get("images_per_second"):
                rows.append(
                    {
                        "device": _short(record["device"]),
                        "devices": record["settings"]["device"] if is_step else row["devices"],
                        "setting": "steps" if is_step else "training",
                        "architecture": row["architecture"],
                        "precision": row["precision"],
                        "batch_size": row["batch" if is_step else "batch_size"],
                        "images_per_second": row["images_per_second"],
                        "versions": {name: record["versions"][name] for name in ("torch", "triton")},
                    }
                )
    fastest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        what = tuple(row[name] for name in ("device", "devices", "setting", "architecture", "precision"))
        if what not in fastest or row["images_per_second"] > fastest[what]["images_per_second"]:
            fastest[what] = row
    return list(fastest.values())


def _short(device: str) -> str:
    for long, short in (
        ("(R)", ""),
        (" Processor", ""),
        ("Intel Xeon with AMX", "Xeon AMX"),
        (" with AVX-512 BF16", ""),
    ):
        device = device.replace(long, short)
    return device


def text() -> str:
    """The contents of the file: one row per line."""
    return "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in recorded_speeds()) + "\n]\n"


if __name__ == "__main__":
    SPEEDS.write_text(text())
