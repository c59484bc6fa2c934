"""Writes the tables of launch settings that `kernels.launch_settings` and `kernels.tuned` read."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import harness

from kernels import launch_settings, tuned


def write_table(
    path: Path, gpu: str, entries: launch_settings.Table | None = None, launches: tuned.Table | None = None
) -> None:
    """Write the table of a GPU. What is None stays as it is in the table."""
    entries = launch_settings.load_table(path) if entries is None else entries
    launches = tuned.load(path) if launches is None else launches
    table = {
        "device": gpu,
        "versions": harness.package_versions(),
        "commit": harness.commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "entries": [launch_settings.table_entry(*key, entry) for key, entry in entries.items()],
        "launches": [tuned.table_entry(key, entry) for key, entry in launches.items()],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(table, indent=1) + "\n")
    unfinished.replace(path)
    # The old table may be cached.
    launch_settings.load_table.cache_clear()
    launch_settings.choose.cache_clear()
    tuned.forget()
