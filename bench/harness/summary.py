"""What a benchmark found, in plain words: one line per operator and shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.rows import OURS

# How an operator is called in a sentence.
NAMES = {
    "local_response_norm": "LRN",
    "same_map_norm": "same-map norm",
    "max_pool2d": "max-pool",
    "lrn_max_pool2d": "LRN and max-pool",
    "same_map_norm_max_pool2d": "same-map norm and max-pool",
    "conv2d_relu": "convolution, bias, ReLU",
    "bias_relu_dropout": "bias, ReLU, dropout",
    "cross_entropy": "cross-entropy",
    "sgd_update_": "SGD update",
}


def summary_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each operator and shape that has a row of ours: its speed forward and backward."""
    return list(_lines([row for row in rows if row["provider"] == OURS]))


def _lines(ours: Sequence[dict[str, Any]]) -> Iterator[str]:
    cases: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in ours:
        cases.setdefault((row["op"], tuple(row["shape"]), row["dtype"]), {})[row["direction"]] = row
    batches = {(op, shape[0]) for op, shape, _ in cases}
    dtypes = {dtype for _, _, dtype in cases}
    for (op, shape, dtype), directions in cases.items():
        words = [" ".join([NAMES.get(op, op), *filter(None, ["x".join(map(str, shape[1:]))])])]
        if sum(name == op for name, _ in batches) > 1:
            words.append(f"batch {shape[0]}")
        if len(dtypes) > 1:
            words.append(dtype)
        if "both" in directions:
            words.append("forward and backward")
        yield f"{', '.join(words)}: {_verdict(directions.get('both') or directions['forward'])}"


def _verdict(row: dict[str, Any]) -> str:
    """How fast a row of ours is."""
    if row["ms_p50"] is None:
        return f"no time, {row.get('wrong', 'it was not measured')}"
    bases = {"eager": "PyTorch", "compiled": "the best compiled formula"}
    known = {name: row.get(f"speed_to_{kind}") for kind, name in bases.items()}
    speeds = ", ".join(f"{times(speed)} {name}" for name, speed in known.items() if speed is not None)
    share = f"{100 * row['fraction_of_limit']:.0f} % of {'a copy' if 'gb_per_s' in row else 'a large product'}"
    return f"{speeds}; {share}" if speeds else share


def times(speed: float) -> str:
    """A relative speed in words. Two decimals near 1, so that a slower operator never looks as fast."""
    return f"{speed:.2f} times" if speed < 2 else f"{speed:.1f} times" if speed < 100 else f"{speed:.0f} times"
