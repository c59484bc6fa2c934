"""``python -m fastalex.features RUN DATA ACTIVATION ... -o DIR``: save a network's activations as arrays."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli
from fastalex.options.features import COMMON, FeaturesOptions
from fastalex.startup import is_worker


def main() -> None:
    """Parse the options and extract: as one of torchrun's workers, in this process, or in new workers."""
    options = parse(FeaturesOptions, module="fastalex.features", common=COMMON)
    with cli.slow_imports():
        from fastalex.evaluation.feature_options import extract_and_report, resolve, resolve_and_extract
        from fastalex.evaluation.features import discard_unfinished
        from fastalex.parallel.launch import run_workers
        from fastalex.parallel.torchrun import run_under_torchrun
    if is_worker():
        run_under_torchrun(resolve_and_extract, options, options.devices)
        return
    extraction, is_new = resolve(options), not options.output.exists()
    try:
        run_workers(extract_and_report, extraction, extraction.plan.devices)
    except BaseException:
        discard_unfinished(extraction.output, folder_too=is_new)
        raise


if __name__ == "__main__":
    cli.main(main)
