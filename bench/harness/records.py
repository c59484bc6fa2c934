"""Records: JSON files with the device, versions, commit, date, settings and rows of one benchmark."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import triton

from harness.device import CUDA, device_name, slug
from kernels.native import build

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"


def write_record(
    name: str,
    settings: dict[str, Any],
    rows: Sequence[dict[str, Any]],
    output: Path = RESULTS,
    *,
    device: str | None = None,
    versions: Mapping[str, str | None] | None = None,
) -> Path:
    """Write `<output>/<device>/<name>.json` and return its path.

    The name of a quick run (`settings["quick"]`) ends in `-quick`, so that it does not replace a full record.

    Args:
        device: the device measured, if it is not what `device_name` returns now.
        versions: of packages besides Python, torch and Triton.
    """
    device = device or device_name()
    record = {
        "device": device,
        "versions": {**package_versions(), **(versions or {})},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "rows": list(rows),
    }
    folder = output / slug(device)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record_name(name, settings)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    return path


def record_name(name: str, settings: dict[str, Any]) -> str:
    """The name of a record with these settings, without its suffix."""
    return f"{name}-quick" if settings.get("quick") else name


def package_versions() -> dict[str, Any]:
    """Versions of Python, torch, Triton, the C compiler and CUDA."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cc": build.compiler_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if CUDA else None,
    }


def commit() -> str | None:
    """The commit measured, followed by "+changes" if tracked code differs from it; None outside a git checkout."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        code = ["kernels", "dataloading", "fastalex", "bench/*.py"]
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", *code],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if status.strip() else "")
