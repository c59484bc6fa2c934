"""Compares rows with those of the committed record: has the code of a kernel become worse?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from static_analysis.launches import Key
from static_analysis.rows import key_of

# Allowed growth of the issue slots per result, and loss of resident warps: with the compilers of the record what nobody
# notices, with another Triton or ptxas what they may cost. The code of Triton 3.6.0 and 3.7.1, with the same ptxas,
# differs by up to 18 % in slots and 17 % in warps.
SAME_COMPILERS, OTHER_COMPILERS = 0.02, 0.2
RENEW = "if this is meant, renew the record by bench/static.py and say why in the commit"


@dataclass(frozen=True)
class Budget:
    """A record's rows, and the tolerance that applies here.

    Attributes:
        rows: by `key_of`.
        tolerance: as a fraction.
    """

    rows: dict[Key, dict[str, Any]]
    tolerance: float

    @classmethod
    def of(cls, record: dict[str, Any], versions: dict[str, str | None]) -> Budget:
        """The budget of a record for the compilers in use: `versions` of triton and ptxas."""
        same = all(record["versions"][name] == version for name, version in versions.items())
        return cls({key_of(row): row for row in record["rows"]}, SAME_COMPILERS if same else OTHER_COMPILERS)

    def problems(self, rows: Sequence[dict[str, Any]]) -> Iterator[str]:
        """What is worse than recorded, one line each. Rows that are not in the record are named, too."""
        for row in rows:
            name = "{} ({}), {} {}".format(*key_of(row))
            recorded = self.rows.get(key_of(row))
            if recorded is None:
                yield f"{name}: is not in the record: renew it by bench/static.py"
                continue
            for what, found, wanted in self._limits(row, recorded):
                yield f"{name}: {what} {found:,}, recorded {wanted:,}: {RENEW}"

    def _limits(self, row: dict[str, Any], recorded: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
        slots, wanted = row["per_result"]["slots"], recorded["per_result"]["slots"]
        if slots > wanted * (1 + self.tolerance):
            yield "issue slots per result", slots, wanted
        # Fewer registers than a step of occupancy make no difference.
        if row["resident_warps"] < recorded["resident_warps"] * (1 - self.tolerance):
            what = f"warps per multiprocessor ({row['registers']} registers, {row['shared_bytes']} bytes shared)"
            yield what, row["resident_warps"], recorded["resident_warps"]
        for what in ("spilled_bytes", "moved_bytes"):
            if row[what] > recorded[what]:
                yield what.replace("_", " "), row[what], recorded[what]
        if recorded["loops_known"] and not row["loops_known"]:
            yield "a loop has an unknown number of iterations, known loops", 0, 1
