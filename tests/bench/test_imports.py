"""Operator benchmarks run on machines that have only what the kernels need."""

import subprocess
import sys

from tests.bench.conftest import BENCH

OPERATORS = ("lrn", "max_pool", "dropout", "fusions", "conv_relu", "cross_entropy", "sgd")
PROGRAM = """
import sys
sys.modules |= dict.fromkeys(("tyro", "nvidia.dali"))  # importing them fails
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
assert not {"dataloading", "fastalex"} & set(sys.modules)
"""


def test_operator_benchmarks_import_neither_fastalex_nor_dali_nor_tyro() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(BENCH), *OPERATORS], check=True)
