"""Times recorded on an H100 for what the launches of a case compute together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# Record, operator and provider of each case; the shape is that of the case.
_RECORDS = {
    "max_pool": ("max_pool", "max_pool2d", "ours"),
    "lrn": ("lrn", "local_response_norm", "ours"),
    "same_map_norm": ("lrn", "same_map_norm", "ours"),
    "lrn_max_pool source": ("fusions", "bias, LRN, pool, ReLU after", "ours"),
    "lrn_max_pool": ("fusions", "bias, LRN, pool, ReLU before", "ours"),
    "dropout": ("dropout", "dropout", "ours"),
    "bias_relu_dropout": ("dropout", "bias_relu_dropout", "ours"),
    "update": ("sgd", "sgd_update_", "ours, with bf16 copies"),
    **{f"conv{layer}": ("conv_relu", f"conv{layer}", "ours, Triton alone") for layer in range(1, 6)},
}


class Recorded:
    """The records of one GPU.

    Attributes:
        gb_per_s: bandwidth of a copy: the median of those that the records of operators state.
    """

    def __init__(self, folder: Path) -> None:
        names = dict.fromkeys(name for name, _, _ in _RECORDS.values())
        records = [json.loads((folder / f"{name}.json").read_text()) for name in names]
        self._rows = {name: record["rows"] for name, record in zip(names, records, strict=True)}
        self.gb_per_s: float = statistics.median(record["settings"]["copy_gb_per_s"] for record in records)

    def microseconds(self, case: str, direction: str, shape: Sequence[int]) -> float | None:
        """The recorded time in bf16 (of the update: in fp32); None without one."""
        wanted = _RECORDS.get(case) or _RECORDS.get(case.split()[0])
        if wanted is None:
            return None
        name, *columns = wanted
        sought = [*columns, direction, list(shape), "float32" if name == "sgd" else "bfloat16"]
        for row in self._rows[name]:
            found = [row[column] for column in ("op", "provider", "direction", "shape", "dtype")]
            if found == sought and row["ms_p50"] is not None:
                return round(1e3 * row["ms_p50"], 2)
        return None


def with_times(rows: Sequence[dict[str, Any]], recorded: Recorded, tuned: dict[tuple[str, str], float]) -> None:
    """Add to each row the time of its case and direction, all launches together: `recorded_us`, or None.

    Args:
        tuned: microseconds by case and direction, from the table of tuned convolutions.
    """
    for row in rows:
        known = tuned.get((row["case"], row["direction"]))
        found = recorded.microseconds(row["case"], row["direction"], row["shape"])
        row["recorded_us"] = found if known is None else known


def groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of each case and direction."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["case"], row["direction"]), []).append(row)
    yield from found.values()
