"""The options of ``python -m fastalex.features``: parsed into an :class:`Extraction`, and its report."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from dataloading import is_prepared
from dataloading.command_line import parse_color
from dataloading.loading.dali_check import check_dali
from dataloading.process import command
from dataloading.sources.folder_listing import has_image_suffix, has_images
from fastalex.cli import check_positive
from fastalex.console import console, data_size, print_rows
from fastalex.datasets import open_data
from fastalex.errors import ConfigurationError
from fastalex.evaluation.feature_files import check_format
from fastalex.evaluation.features import Extraction, activation_shapes, bytes_needed, extract, largest_array
from fastalex.evaluation.image_sources import ImageFiles, PreparedImages
from fastalex.evaluation.options import check_mean_images, check_one_mean
from fastalex.evaluation.trained_network import (
    TrainedNetwork,
    check_split,
    default_split,
    inference_plan,
    with_mean,
    with_training_data,
)
from fastalex.files import check_new_folder, is_empty
from fastalex.network.precision import check_precision
from fastalex.network.weights import names_weights
from fastalex.options.features import FeaturesOptions
from fastalex.parallel.devices import Devices, default_device, parse_devices
from fastalex.parallel.torchrun import is_worker, machines
from fastalex.parallel.world import World
from fastalex.prediction.images import LIST_SUFFIX, images_in
from fastalex.prediction.preprocessing import Preprocessing


def resolve(options: FeaturesOptions, devices: Devices | None = None) -> Extraction:
    """Check the options and decide everything that they leave open.

    Args:
        devices: of this machine, where torchrun has assigned them; None reads them from the options.

    Raises:
        ConfigurationError, dataloading.DatasetError: the extraction is not possible.
    """
    check_positive("--batch-size", options.batch_size)
    check_one_mean(options.training_data, options.mean)
    output = options.output
    check_new_folder(output, "choose another --output")
    devices = devices or parse_devices(options.devices or default_device())
    check_precision(options.precision, devices)
    if names_weights(options.data) and not names_weights(options.run):
        raise ConfigurationError(
            f"{options.run} is not a run, but {options.data} is: name the run first, then the images: "
            f"{command('fastalex.features', options.data, options.run, *options.names)} -o {output}"
        )
    place = next((name for name in options.names if Path(name).exists()), None)
    if place and not options.data.exists():
        activations = (options.data, *(name for name in options.names if name != place))
        raise ConfigurationError(
            f"no images at {options.data}, but at {place}: name the images before the activations: "
            f"{command('fastalex.features', options.run, place, *activations)} -o {output}"
        )
    network = TrainedNetwork.find(options.run, options.weights)
    plan = inference_plan(devices, machines(), network.spec.build_architecture(), options.batch_size)
    names = tuple(dict.fromkeys(options.names))
    if not names:
        raise ConfigurationError("name at least one activation, such as fc7; an unknown name lists all of them")
    activation_shapes(network.spec, names)
    check_format(options.format, options.dtype, 0)
    (network,) = with_mean([network], options.mean)
    images = _files(options, network) if _are_files(options.data) else _prepared(options, network)
    extraction = Extraction(
        images.network,
        plan,
        images.source,
        names,
        output,
        options.dtype,
        options.format,
        options.batch_size,
        options.precision,
    )
    _check_disk_space(extraction)
    return extraction


class _Images(NamedTuple):
    """The images, and the network as it is completed for them."""

    network: TrainedNetwork
    source: PreparedImages | ImageFiles


def _are_files(data: Path) -> bool:
    """Whether the data are files to be read as they are: an image, a list, or a folder of images that is no data set.

    Raises:
        ConfigurationError: an empty folder.
    """
    if data.is_file():
        return data.suffix == LIST_SUFFIX or has_image_suffix(data.name)
    is_folder = data.is_dir() and not (data / "config.json").is_file()
    if is_folder and is_empty(data):
        raise ConfigurationError(f"{data} is empty; name a folder of images, a list of images, or a prepared data set")
    return is_folder and not is_prepared(data) and has_images(data)


def _files(options: FeaturesOptions, network: TrainedNetwork) -> _Images:
    """The files of a folder or a list, prepared as the options say.

    Raises:
        ConfigurationError, dataloading.DatasetError: an option does not fit, or the network's mean is not known.
    """
    if options.split:
        raise ConfigurationError(
            f"--split names a part of a prepared data set, and {options.data} is not one; name a folder such as "
            f"{options.data / options.split}, or leave --split out"
        )
    background = parse_color("--background", options.background)
    (network,) = with_training_data([network], options.training_data, may_prepare=not is_worker())
    check_mean_images([network], None)
    preprocessing = Preprocessing(network.images_record(), options.resize, options.crop, options.exif, background)
    return _Images(network, ImageFiles(options.data, tuple(images_in([options.data])), preprocessing))


def _prepared(options: FeaturesOptions, network: TrainedNetwork) -> _Images:
    """A split of a data set, which is prepared first if it is an archive.

    Raises:
        ConfigurationError, dataloading.DatasetError: an option does not fit, or the data cannot be used.
    """
    for name, value, default in (
        ("--resize", options.resize, None),
        ("--no-crop", options.crop, True),
        ("--exif", options.exif, False),
        ("--background", options.background, None),
    ):
        if value != default:
            raise ConfigurationError(f"{name} is for files; the images of {options.data} are prepared, leave it out")
    if not os.path.lexists(options.data) and str(options.data) != "synthetic":
        raise ConfigurationError(
            f"no such file or folder: {options.data}; name a folder of images, a list of images (.txt), or a prepared "
            "data set"
        )
    check_dali(options.data)
    (network,) = with_training_data([network], options.training_data, may_prepare=not is_worker())
    check_mean_images([network], None)
    dataset = open_data(options.data, network.stored_size, for_training=False, may_prepare=not is_worker())
    split = options.split or default_split(dataset)
    check_split(dataset, split)
    check_mean_images([network], dataset)
    return _Images(network, PreparedImages(str(dataset.root), split))


def _check_disk_space(extraction: Extraction) -> None:
    output = extraction.output.absolute()
    largest = largest_array(extraction)
    check_format(extraction.format, extraction.dtype, largest)
    # An array of another format is converted from a .npy file, which is then removed.
    needed = bytes_needed(extraction) + (largest if extraction.format != "npy" else 0)
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigurationError(
            f"{extraction.output} needs {data_size(needed)}, but only {data_size(free)} are free in "
            f"{existing}; choose fewer activations, --dtype float16 or another --output"
        )


def extract_and_report(world: World, extraction: Extraction) -> None:
    """Extract on all workers; the first one prints what was written."""
    extract(world, extraction)
    if world.is_first:
        shapes = activation_shapes(extraction.network.spec, extraction.names)
        count, kind = extraction.images.count, extraction.format
        rows = {
            "weights": str(extraction.network.weights),
            "images": extraction.images.summary(),
            **{f"{name}.{kind}": " x ".join(map(str, (count, *shape))) for name, shape in shapes.items()},
            "size": f"{data_size(bytes_needed(extraction))} of {extraction.dtype}",
            "folder": str(extraction.output),
        }
        print_rows(console(), rows)


def resolve_and_extract(world: World, argument: tuple[FeaturesOptions, Devices]) -> None:
    """Run as a worker of torchrun: the first worker resolves the options for all."""
    options, devices = argument
    extract_and_report(world, world.from_first(lambda: resolve(options, devices)))
