"""A training process stays at its size, beside a loader of real JPEG files."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[3]

STEPS = """
    import os, sys
    import torch
    from dataloading import Dataset, Loader
    from fastalex.training.memory import keep_freed_memory
    MB = 2**20
    def block(megabytes):
        new = torch.empty(int(megabytes * MB), dtype=torch.uint8)
        new[::4096] = 1  # every page
        return new
    def resident():
        with open("/proc/self/status") as status:
            return int(status.read().split("RssAnon:")[1].split()[0]) / 1024
    keep_freed_memory()
    # What a training step of a network allocates, beside the loader of real JPEG files.
    loader = Loader(Dataset(sys.argv[1]), "train", 16, shuffle=True, augment=None, drop_last=True, threads=1)
    sizes = [9.3, 9.3, 4.6, 2.3, 4.6, 4.6, 11.4, 11.4, 2.8, 2.8, 1.9, 1.9, 1.3, 1.1]
    step, found, epoch = 0, {}, 0
    while step < 300:
        for batch in loader.epoch(epoch):
            kept = []
            for number, size in enumerate(sizes):
                work = block(4 * sizes[number * 5 % 14])
                del work
                kept.append(block(4 * size))
            while kept:
                gradient = block(len(kept[-1]) / MB)
                work = block(4 * sizes[len(kept) * 3 % 14])
                del work, gradient
                kept.pop()
            step += 1
            found[step] = resident()
        epoch += 1
    print(found[30], found[300])
    sys.stdout.flush()
    os._exit(0)
"""


def test_a_process_does_not_grow_beside_the_loader(prepared):
    code = STEPS.replace("sys.argv[1]", repr(str(prepared)))
    early, late = map(float, in_new_process(code).split())
    # DALI may begin to use another buffer of its own. Memory that is kept in a heap grew by a fifth here.
    assert late < 1.1 * early


def in_new_process(code: str) -> str:
    """What code prints in a process of its own: how memory is allocated holds for the rest of a process."""
    completed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout
