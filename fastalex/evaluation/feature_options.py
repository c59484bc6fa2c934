"""The options of ``python -m fastalex.features``: parsed into an :class:`Extraction`, and its report."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from dataloading.loading.dali_check import check_dali
from fastalex.cli import check_positive, optional
from fastalex.console import console, data_size, print_rows
from fastalex.datasets import AnyDataset, open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.evaluation.features import DType, Extraction, activation_shapes, bytes_needed, extract
from fastalex.evaluation.options import check_mean_images, check_one_mean
from fastalex.evaluation.trained_network import (
    TrainedNetwork,
    check_split,
    default_split,
    inference_plan,
    with_mean,
    with_training_data,
)
from fastalex.files import check_new_folder
from fastalex.network.precision import Precision, check_precision
from fastalex.parallel.devices import Devices, default_device, parse_devices
from fastalex.parallel.torchrun import is_worker, machines
from fastalex.parallel.world import World


@dataclass(frozen=True)
class FeaturesOptions:
    """Write the activations of a trained network on a set of images to NumPy files.

    The folder gets one NAME.npy per activation (images x channels x height x width, or images x features; open with
    numpy.load(path, mmap_mode="r")), samples.csv with the image and class of each row, and features.json. The images
    may have other classes than the network.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file of weights."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A prepared data set or class folders."""
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="ACTIVATION [ACTIVATION ...]", help_behavior_hint="")]
    """Such as conv1 (the output of a block), conv1.conv, conv1.norm, conv5.activation, fc6.linear, fc7. An unknown name
    lists all names."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="DIR")]
    """The folder to create."""
    split: Annotated[str | None, optional("SPLIT")] = None
    """Split of the data set, such as train. Default: val, or the only split with images."""
    weights: Literal["best", "last"] = "best"
    """Which weights of the run to use."""
    training_data: Annotated[Path | None, optional("DATA")] = None
    """The training data of a network that no longer finds its own, prepared or as class folders: their mean image is
    subtracted from the images."""
    mean: Annotated[str | None, optional("FILE|R,G,B")] = None
    """The mean of a network that does not know its own, in place of its training data: a .npy file (S x S x 3 is red,
    green, blue; 3 x S x S is Caffe's blue, green, red), Caffe's mean.binaryproto, weights that record it, or a colour
    from 0 to 255."""
    dtype: DType = "float32"
    """Data type of the files."""
    devices: Annotated[str | None, optional("DEVICES", "--device")] = None
    """One device per stage: "0", "0,1", "cpu", "cpu,cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images per batch."""
    precision: Precision = "fp32"
    """fp32, tf32 or bf16."""


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
    network = TrainedNetwork.find(options.run, options.weights)
    plan = inference_plan(devices, machines(), network.spec.build_architecture(), options.batch_size)
    names = tuple(dict.fromkeys(options.names))
    if not names:
        raise ConfigurationError("name at least one activation, such as fc7; an unknown name lists all of them")
    activation_shapes(network.spec, names)
    check_dali(options.data)
    (network,) = with_mean([network], options.mean)
    (network,) = with_training_data([network], options.training_data, may_prepare=not is_worker())
    check_mean_images([network], None)
    dataset = open_data(options.data, network.stored_size, for_training=False, may_prepare=not is_worker())
    split = options.split or default_split(dataset)
    check_split(dataset, split)
    check_mean_images([network], dataset)
    extraction = Extraction(
        network, plan, str(dataset.root), split, names, output, options.dtype, options.batch_size, options.precision
    )
    _check_disk_space(extraction, dataset)
    return extraction


def _check_disk_space(extraction: Extraction, dataset: AnyDataset) -> None:
    output = extraction.output.absolute()
    needed = bytes_needed(extraction, dataset)
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
        dataset = open_prepared(extraction.data)
        shapes = activation_shapes(extraction.network.spec, extraction.names)
        count = dataset.count(extraction.split)
        rows = {
            "weights": str(extraction.network.weights),
            "data": f"{dataset.name}, {extraction.split}: {count} images",
            **{f"{name}.npy": " x ".join(map(str, (count, *shape))) for name, shape in shapes.items()},
            "size": f"{data_size(bytes_needed(extraction, dataset))} of {extraction.dtype}",
            "folder": str(extraction.output),
        }
        print_rows(console(), rows)


def resolve_and_extract(world: World, argument: tuple[FeaturesOptions, Devices]) -> None:
    """Run as a worker of torchrun: the first worker resolves the options for all."""
    options, devices = argument
    extract_and_report(world, world.from_first(lambda: resolve(options, devices)))
