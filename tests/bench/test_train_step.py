"""The processes of bench/train_step.py end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import multiprocessing, os, threading, time
import train_step

def busy():
    threading.Thread(target=train_step.end_with_parent, daemon=True).start()
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=busy, daemon=True)
    process.start()
    process.join()
"""


def test_a_busy_process_ends_with_the_benchmark(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root / "bench"), str(root)])}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        # Killed, a parent cannot end its children itself.
        parent.send_signal(signal.SIGKILL)
        end = time.monotonic() + 60
        while Path(f"/proc/{process}/cmdline").exists() and Path(f"/proc/{process}/cmdline").read_bytes():
            assert time.monotonic() < end, f"process {process} outlives its parent"
            time.sleep(0.05)
