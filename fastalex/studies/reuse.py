"""Finished runs that several studies share: most studies have the network of 2012 as their base."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from fastalex.errors import ConfigurationError
from fastalex.files import UNFINISHED
from fastalex.network.variation import Variation
from fastalex.studies.comparison import RECORD
from fastalex.studies.runs import StudyRun, has_diverged, is_finished
from fastalex.training.config import RunConfig


def find_same_run(run: StudyRun, study: Path) -> Path | None:
    """The folder of a finished run of another study with the same configuration; None if there is none.

    Args:
        study: folder of the run's study; studies in folders beside it are searched.
    """
    for record in sorted(study.absolute().parent.glob(f"*/{RECORD}")):
        if record.parent == study.absolute():
            continue
        for path in sorted(record.parent.glob(f"*/{run.folder.name}/config.json")):
            try:
                config = RunConfig.load(path.parent)
            except ConfigurationError:  # damaged, or not a run
                continue
            other = StudyRun(run.variant, config)
            if _identity(config) == _identity(run.config) and is_finished(other):
                return None if has_diverged(other) else path.parent
    return None


def _identity(config: RunConfig) -> tuple[object, ...]:
    """What makes a run what it is: options that only spell a default out do not count, nor does its folder."""
    network = config.network
    same = replace(config, output="", network=replace(network, architecture="", variation=Variation()))
    return same, network.build_architecture()


def copy_run(source: Path, destination: Path) -> None:
    """Copy a finished run, whole or not at all. Weights are never changed in place, so they are linked.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = destination.with_name(f"{destination.name}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a copy that was interrupted
    shutil.copytree(source, unfinished, copy_function=_link_weights)
    unfinished.rename(destination)


def _link_weights(source: str, destination: str) -> None:
    if source.endswith(".safetensors"):
        try:
            os.link(source, destination)
            return
        except OSError:  # the file system has no links
            pass
    shutil.copy2(source, destination)
