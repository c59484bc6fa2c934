"""One call of ``python -m fastalex.study``: train the missing runs, then show and write the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastalex.console import console
from fastalex.errors import Interrupted
from fastalex.files import is_empty, new_folder, owned
from fastalex.parallel.torchrun import refuse_launcher
from fastalex.studies.claims import Study
from fastalex.studies.comparison import comparison_table, draw_comparison, remarks, write_comparison
from fastalex.studies.options import StudyOptions, resolve
from fastalex.studies.runs import StudyRun, is_finished, plan_runs, run_to_completion
from fastalex.training.metrics_log import reason, say


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
    with owned(folder) if is_begun else new_folder(folder, "choose another output folder"):
        runs = plan_runs(study, options.shared, options.seeds, folder)
        _train_and_compare(study, runs, folder, options.parallel.max_restarts)


def _train_and_compare(study: Study, runs: Sequence[StudyRun], folder: Path, restarts: int) -> None:
    out = console()
    if not out.is_terminal:
        out.width = 140
    for number, run in enumerate(runs, 1):
        if not is_finished(run):
            out.print(f"{study.name}, run {number} of {len(runs)}: {run.variant.name}, {run.folder.name}")
            try:
                run_to_completion(run, restarts)
            except Interrupted as error:
                message = f"stopped in run {number} of {len(runs)}; the same command continues from there"
                raise Interrupted(message, error.signal_number) from None
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
