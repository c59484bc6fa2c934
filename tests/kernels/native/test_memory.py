"""Memory of large CPU tensors that is kept. It holds for the rest of a process, so every test has one of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kernels.native.memory import _library

ROOT = Path(__file__).parents[3]
START = """
import torch
from kernels.native.memory import keep_tensor_memory, tensor_memory
assert keep_tensor_memory()
MB = 2**20
def block(megabytes):
    return torch.empty(int(megabytes * MB), dtype=torch.uint8)
"""

pytestmark = pytest.mark.skipif(_library() is None, reason="needs a C++ compiler")


def run(code: str, **environment: str) -> str:
    """Run code in a process of its own, after the start above, and return what it prints."""
    completed = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


def test_freed_memory_is_used_again_and_bounded():
    run("""
        # The same memory serves a tensor of the same size, and one that is up to a quarter smaller.
        x = block(64).fill_(1)
        place = x.data_ptr()
        del x
        assert tensor_memory() == (0, 64 * MB, 64 * MB)
        x = block(60)
        assert x.data_ptr() == place and tensor_memory().in_use == 64 * MB
        # A much smaller one gets its own, and what waits is returned before 1.1 times the most is exceeded.
        del x
        small = block(8)
        assert small.data_ptr() != place
        assert tensor_memory() == (8 * MB, 0, 64 * MB)
        kept = [block(8) for _ in range(7)]
        del small, kept
        assert tensor_memory() == (0, 64 * MB, 64 * MB)
        # Sizes are rounded up by an eighth at most.
        for bytes in (MB, MB + 1, 9 * MB + 1, 100 * MB - 1):
            x = torch.empty(bytes, dtype=torch.uint8)
            assert bytes <= tensor_memory().in_use <= 1.125 * bytes + 4096, bytes
            del x
        # Smaller tensors are left to the C library.
        before = tensor_memory()
        y = torch.ones(MB - 1, dtype=torch.uint8)
        assert tensor_memory() == before and int(y.sum()) == MB - 1
    """)


def test_tensors_behave_as_before():
    run("""
        import numpy as np
        old = torch.arange(10 * MB // 8)  # before another call, which changes nothing
        keep_tensor_memory()
        del old
        x = torch.arange(3 * MB, dtype=torch.int32)
        y, view = x.clone(), x[MB:]
        del x
        assert torch.equal(view, y[MB:])
        y.resize_(5 * MB)
        assert int(y[3 * MB - 1]) == 3 * MB - 1
        assert y.data_ptr() % 64 == 0 and torch.empty(0).numel() == 0
        array = y.numpy()
        del y
        assert array[7] == 7
        x = torch.zeros(2 * MB)
        assert not x.any()  # also where another tensor was
        # The message is PyTorch's, and a failure counts for nothing.
        most = tensor_memory().most_in_use
        for count in (2**50, 2**60, 2**62):
            try:
                torch.empty(count, dtype=torch.uint8)
                raise SystemExit("allocated")
            except RuntimeError as error:
                assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate" in str(error), error
        assert tensor_memory().most_in_use == most
    """)


def test_threads_share_it():
    run("""
        import random, threading
        faults = []
        def work(seed):
            numbers, mine = random.Random(seed), {}
            for turn in range(400):
                x = block(numbers.choice((1, 1.3, 2, 3.7, 5))).fill_(seed)
                mine[turn] = x
                if len(mine) > 3:
                    y = mine.pop(numbers.choice(list(mine)))
                    if int(y[0]) != seed or int(y[-1]) != seed:
                        faults.append(seed)
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        memory = tensor_memory()
        assert not faults and memory.in_use == 0, (faults, memory)
        assert memory.waiting <= 1.1 * memory.most_in_use
    """)


def test_without_a_compiler_nothing_is_kept_here():
    for environment in ({"CXX": "none", "CC": "cc"}, {"CC": "none"}):
        code = "assert not keep_tensor_memory() and tensor_memory() == (0, 0, 0)"
        start = START.replace("assert keep_tensor_memory()", "")
        subprocess.run(
            [sys.executable, "-c", start + code],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            check=True,
            timeout=60,
        )
