"""Makes the benchmarks importable: they are scripts, which import each other from their own folder."""

import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))  # at the end, so that scripts shadow no package
