"""Record one of the paper's claims, tested with `python -m fastalex.study`.

    python bench/study.py dropout photos --epochs 12 --devices cpu   # the study's own options
    python bench/study.py dropout photos --record                    # records a finished study

Runs the study in the current folder, resuming an interrupted one, and writes `study-<name>.json` and its chart.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import harness
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a study and record its table.")
    parser.add_argument("name", help="name of the study: dropout, depth, ...")
    parser.add_argument("data", help="data set, as for fastalex.study")
    parser.add_argument("--output", type=Path, default=harness.RESULTS, help="folder of the records (bench/results)")
    parser.add_argument("--record", action="store_true", help="record a finished study")
    arguments, options = parser.parse_known_args()
    folder = Path("studies") / f"{Path(arguments.data).resolve().name}-{arguments.name}"
    asked = folder / "options.json"
    if arguments.record:
        options = json.loads(asked.read_text())
    else:
        command = [sys.executable, "-m", "fastalex.study", arguments.name, arguments.data, *options]
        subprocess.run([*command, "--output", str(folder)], check=True)
        asked.write_text(json.dumps(options))
    study = json.loads((folder / "study.json").read_text())
    rows = study.pop("rows")
    settings = {"options": options, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(), **study}
    path = harness.write_record(f"study-{arguments.name}", settings, rows, arguments.output)
    path.with_suffix(".png").write_bytes((folder / "study.png").read_bytes())


if __name__ == "__main__":
    main()
