"""What the processor computes fast, and the setting that follows from it."""

from __future__ import annotations

import functools
import os

# AVX-512 BF16, AMX and Arm's extension. AVX-NE-CONVERT converts bf16, but does not multiply it.
_MULTIPLIES_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}
_CONVOLUTIONS = ("minimal", "direct")


@functools.cache
def _flags() -> frozenset[str] | None:
    """The processor's features as Linux names them; None where there is no such list."""
    try:
        with open("/proc/cpuinfo") as file:
            return frozenset(file.read().split())
    except OSError:
        return None


def multiplies_bf16() -> bool | None:
    """Whether the processor has instructions that multiply bf16; None if unknown."""
    flags = _flags()
    return None if flags is None else bool(flags & _MULTIPLIES_BF16)


def filters_bf16() -> bool:
    """Whether convolutions in bf16 use minimal filtering where it is faster.

    They do with AVX-512 BF16, unless there is AMX, whose products are so fast that transforms take longer. Arm has not
    been measured. `FASTALEX_BF16_CONV` decides otherwise: `direct` for sums of exact products by
    oneDNN, `minimal` for minimal filtering.

    Raises:
        ValueError: another value of FASTALEX_BF16_CONV.
    """
    chosen = os.environ.get("FASTALEX_BF16_CONV")
    if chosen:
        if chosen not in _CONVOLUTIONS:
            raise ValueError(f"FASTALEX_BF16_CONV must be one of {', '.join(_CONVOLUTIONS)}, got {chosen!r}")
        return chosen == "minimal"
    flags = _flags() or frozenset()
    return "avx512_bf16" in flags and "amx_bf16" not in flags
