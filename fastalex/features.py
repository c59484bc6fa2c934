"""``python -m fastalex.features RUN DATA ACTIVATION ... -o DIR``: a trained network's activations as NumPy files."""

from __future__ import annotations

from dataloading.command_line import parse
from fastalex import cli, launch
from fastalex.features_options import FeaturesOptions, extract_and_report, resolve, resolve_and_extract


def main() -> None:
    """Parse, then extract here, in new workers, or as one of torchrun's."""
    options = parse(FeaturesOptions, prog="python -m fastalex.features")
    if launch.is_worker():
        launch.run_under_torchrun(resolve_and_extract, options.on, options.devices)
    else:
        extraction, chosen = resolve(options)
        launch.run(extract_and_report, extraction, launch.parse_devices(chosen))


if __name__ == "__main__":
    cli.main(main)
