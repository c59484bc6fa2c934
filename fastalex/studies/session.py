"""One call of ``python -m fastalex.study``: train the missing runs, then show and write the comparison."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from fastalex.console import console, duration
from fastalex.errors import ConfigurationError, Interrupted
from fastalex.files import check_writable, is_empty, new_folder, owned
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.recipes.schedule import epochs_in_words
from fastalex.studies.claims import Study
from fastalex.studies.comparison import RECORD, comparison_table, remarks, write_comparison
from fastalex.studies.options import OTHER_FOLDER, StudyOptions, resolve
from fastalex.studies.picture import draw_comparison
from fastalex.studies.reuse import copy_run, find_same_run
from fastalex.studies.runs import (
    StudyRun,
    has_diverged,
    is_finished,
    plan_runs,
    read_result,
    run_to_completion,
    steps_saved,
)
from fastalex.training.metrics_log import reason, say
from fastalex.training.resolve import advise


def run_study(options: StudyOptions) -> None:
    """Train the runs that are missing, print the comparison, and write ``study.json`` and ``study.png``.

    Raises:
        ConfigurationError, dataloading.DatasetError: the study is not possible, or its folder holds another one.
        Interrupted: a signal asked to stop; the same command continues the study.
    """
    refuse_launcher("a study starts its own workers; run it without torchrun and name its devices")
    study = resolve(options)
    folder = options.folder
    is_begun = folder.is_dir() and not is_empty(folder)
    with owned(folder) if is_begun else new_folder(folder, OTHER_FOLDER):
        if is_begun:
            _check_folder(study, folder)
        runs = plan_runs(study, options.shared, options.seeds, folder)
        if not is_begun:
            advise(runs[0].config)
        _train_and_compare(study, runs, folder, options.parallel.max_restarts)


def _check_folder(study: Study, folder: Path) -> None:
    """Check that a folder with content holds this study, and that its record can be replaced.

    Raises:
        ConfigurationError: it holds something else, or the record cannot be written.
    """
    record = folder / RECORD
    if os.path.lexists(record):
        try:
            check_writable(record)
            found = json.loads(record.read_bytes()).get("study")
        except OSError as error:
            raise ConfigurationError(f"{record} cannot be written: {error.strerror}; {OTHER_FOLDER}") from None
        except (ValueError, AttributeError, RecursionError):
            raise ConfigurationError(
                f"{record} is not the record of a study; move it away, or {OTHER_FOLDER}"
            ) from None
        if found not in study.names:
            raise ConfigurationError(f"{folder} holds the study {found}, not {study.name}; {OTHER_FOLDER}")
    elif not any(variant.folder_in(folder).is_dir() for variant in study.variants):
        raise ConfigurationError(f"{folder} exists already and holds no study; {OTHER_FOLDER}")


def _train_and_compare(study: Study, runs: Sequence[StudyRun], folder: Path, restarts: int) -> None:
    out = console()
    if not out.is_terminal:
        out.width = 140
    if missing := sum(not is_finished(run) for run in runs):
        out.print(f"{study.name}: {missing} of {len(runs)} runs to train, in {folder}")
    for number, run in enumerate(runs, 1):
        if not is_finished(run):
            try:
                how = _complete(run, folder, restarts)
            except Interrupted as error:
                message = f"stopped in run {number} of {len(runs)}; the same command continues from there"
                raise Interrupted(message, error.signal_number) from None
            name = f"{run.variant.name}, {run.folder.name}"
            out.print(f"{study.name}, run {number} of {len(runs)}: {name}{how}: {_outcome(run)}")
        # Written after every run, so that an unfinished study can be looked at.
        rows = write_comparison(study, runs, folder)
    out.print(comparison_table(study, rows))
    for remark in remarks(study, runs, rows):
        out.print(remark)
    out.print(f"written: {folder / 'study.json'}, {folder / 'study.png'}")
    try:
        draw_comparison(study, rows, folder / "study.png")
    except Exception as error:  # a picture is decoration
        say(f"study.png is left out: {reason(error)}")


def _complete(run: StudyRun, study: Path, restarts: int) -> str:
    """Train a run, or copy the same run of another study. Returns what was unusual about it, for its line."""
    step = steps_saved(run)
    if not run.folder.exists() and (found := find_same_run(run, study)):
        copy_run(found, run.folder)
        return f", the same run as {os.path.relpath(found, study.absolute().parent)}"
    run_to_completion(run, restarts)
    return f", resumed at step {step}" if step else ""


def _outcome(run: StudyRun) -> str:
    """What came out of a finished run, in a few words."""
    if has_diverged(run):
        return "diverged"
    result, epochs = read_result(run), run.config.recipe.epochs
    return f"top-1 error {result.top1_error:.2f} % after {epochs_in_words(epochs)}, {duration(result.seconds)}"
