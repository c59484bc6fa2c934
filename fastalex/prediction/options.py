"""The options of ``python -m fastalex.predict``, and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from dataloading.command_line import parse_color
from dataloading.process import command
from dataloading.sources.folder_listing import has_image_suffix
from fastalex.cli import check_positive
from fastalex.console import console
from fastalex.errors import ConfigurationError
from fastalex.files import check_new_file, write_atomically
from fastalex.network.means import read_mean
from fastalex.network.weights import find_weights, names_weights
from fastalex.network.weights_record import WeightsRecord
from fastalex.optional_packages import require
from fastalex.options.predict import PredictOptions
from fastalex.parallel.devices import default_device, parse_devices
from fastalex.prediction.images import images_in, prepared
from fastalex.prediction.picture import MOST_IMAGES, draw_predictions
from fastalex.prediction.preprocessing import Preprocessing, UnusableImage
from fastalex.prediction.results import as_csv, as_json, as_lines
from fastalex.prediction.trained import AlexNet, Prediction, best, load
from fastalex.training.validation import mean_of_views

T = TypeVar("T")

_ENDINGS = {"--json": "json", "--csv": "csv", "--picture": "png"}
_STORED_SIZE = 256  # of images whose size nobody has recorded


def predict_and_report(options: PredictOptions) -> int:
    """Predict, print or write the results, and return the number of files that could not be used.

    Raises:
        ConfigurationError, dataloading.DatasetError: nothing can be predicted, or a file cannot be written.
    """
    _check(options)
    weights, places = _weights_and_images(options.paths)
    files = images_in(places)
    if options.picture and len(files) > MOST_IMAGES:
        raise ConfigurationError(f"--picture holds {MOST_IMAGES} images at most, got {len(files)}; name fewer images")
    devices = parse_devices(options.device or default_device())
    if len(devices) > 1:
        raise ConfigurationError(f"predict computes on one device, got {options.device}; name one")
    models = [load(path, device=devices[0]) for path in weights]
    _check_classes(models, weights)
    preprocessings = _preprocessings(models, weights, options)

    # Predict in batches; unusable files are reported at once, the rest in the end.
    results: dict[Path, Prediction] = {}
    unusable = 0
    for batch in _batches(prepared(files, preprocessings, options.crops), options.batch_size):
        usable: dict[Path, list[Tensor]] = {}
        for path, images in batch:
            if isinstance(images, UnusableImage):
                unusable += 1
                print(f"error: {images}", file=sys.stderr, flush=True)
            else:
                usable[path] = images
        if usable:
            scores = _scores(models, list(usable.values()))
            results |= zip(usable, best(scores, models[0].classes, options.top, models[0].words), strict=True)
    if results:
        _report(options, results, weights, preprocessings[0])
    return unusable


def _check(options: PredictOptions) -> None:
    check_positive("--batch-size", options.batch_size)
    check_positive("--top", options.top)
    parse_color("--background", options.background)
    outputs = {"--json": options.json, "--csv": options.csv, "--picture": options.picture}
    given = {name: path for name, path in outputs.items() if path is not None}
    if len({os.path.realpath(path) for path in given.values()}) < len(given):
        raise ConfigurationError(f"{' and '.join(given)} name the same file; name different ones")
    for name, path in given.items():
        if str(path) != "-" or name == "--picture":
            check_new_file(path, (f".{_ENDINGS[name]}",), overwrite=options.force, remedy="add --force")
    if options.picture:
        require("matplotlib", "report")


def _weights_and_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files of weights that come first, and the images after them.

    Raises:
        ConfigurationError: there are no weights, or no images.
    """
    count = next((number for number, path in enumerate(paths) if not names_weights(path)), len(paths))
    if count == 0:
        first = f", got {paths[0]}" if paths else ""
        if paths and not paths[0].exists():
            find_weights(paths[0])  # raises, and names the runs that there are
        if paths and (has_image_suffix(paths[0].name) or any(map(names_weights, paths))):
            raise ConfigurationError(f"name the run folder or the .safetensors file first, then the images{first}")
        raise ConfigurationError(
            f"the first path must be a run folder or a .safetensors file{first}; to use a network from elsewhere, "
            f"convert it with: {command('fastalex.convert', 'FILE', 'OUT.safetensors')}"
        )
    if count == len(paths):
        raise ConfigurationError("name at least one image, or a folder of images, after the weights")
    return [find_weights(path) for path in paths[:count]], list(paths[count:])


def _check_classes(models: Sequence[AlexNet], weights: Sequence[Path]) -> None:
    for model, path in zip(models, weights, strict=True):
        if model.classes != models[0].classes or model.architecture.num_classes != models[0].architecture.num_classes:
            raise ConfigurationError(
                f"{path} has other classes than {weights[0]}; the networks of an ensemble need the same classes in the "
                "same order"
            )


def _preprocessings(models: Sequence[AlexNet], weights: Sequence[Path], options: PredictOptions) -> list[Preprocessing]:
    """How each network's images are prepared: as its file says, or with the given mean.

    Raises:
        ConfigurationError: a file does not say it, and no mean is given; or one is given that no network needs.
    """
    given = None if options.mean is None else read_mean(options.mean)
    records = [model.record for model in models]
    if given is not None and None not in records:
        raise ConfigurationError(f"--mean {options.mean}: all files know their mean; leave it out")
    found = []
    for model, record, path in zip(models, records, weights, strict=True):
        if record is None:
            if given is None:
                raise ConfigurationError(
                    f"{path} does not say how images are prepared, as files of early versions; give the mean of its "
                    "training images with --mean FILE|R,G,B"
                )
            crop = model.architecture.image_size
            record = WeightsRecord(given, max(_STORED_SIZE, crop) if given.ndim == 1 else len(given), crop)
        background = parse_color("--background", options.background)
        found.append(Preprocessing(record, exif=options.exif, background=background))
    return found


def _scores(models: Sequence[AlexNet], images: Sequence[Sequence[Tensor]]) -> Tensor:
    """Logarithms of the mean softmax output over networks and views, N x classes."""
    by_model = zip(*images, strict=True)
    return mean_of_views([model.log_probabilities(own) for model, own in zip(models, by_model, strict=True)])


def _batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while batch := list(islice(items, size)):
        yield batch


def _report(
    options: PredictOptions, results: dict[Path, Prediction], weights: Sequence[Path], preprocess: Preprocessing
) -> None:
    for path, text in ((options.json, as_json(results, weights)), (options.csv, as_csv(results))):
        if path is None:
            continue
        if str(path) == "-":
            print(text, end="", flush=True)
        else:
            write_atomically(path, text)
    if Path("-") not in (options.json, options.csv):
        console().print("\n".join(as_lines(results)))
    if options.picture:
        write_atomically(options.picture, draw_predictions(results, preprocess))
    written = [str(path) for path in (options.json, options.csv, options.picture) if path and str(path) != "-"]
    if Path("-") not in (options.json, options.csv) and (written or len(weights) > 1):
        mean = f"mean of {len(weights)} networks" if len(weights) > 1 else ""
        console().print("; ".join(filter(None, (mean, f"written: {', '.join(written)}" if written else ""))))
