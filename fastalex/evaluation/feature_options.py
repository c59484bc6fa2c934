"""What ``python -m fastalex.features`` takes, and how it becomes an extraction."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from rich.console import Console
from tyro.conf import Positional, arg

from fastalex.cli import check_positive, optional
from fastalex.console import name_value_table, print_whole
from fastalex.datasets import open_data, open_prepared
from fastalex.errors import ConfigurationError
from fastalex.evaluation.features import DType, Extraction, activation_shapes, bytes_needed, extract
from fastalex.evaluation.trained_network import TrainedNetwork, check_split, default_split
from fastalex.network.precision import Precision
from fastalex.parallel.devices import default_device, parse_devices
from fastalex.parallel.partition import partition
from fastalex.parallel.world import World


@dataclass(frozen=True)
class FeaturesOptions:
    """Write a trained network's activations over a set of images to NumPy files.

    The folder gets one NAME.npy for each activation (images x channels x height x width, or images x features; open
    them with numpy.load(path, mmap_mode="r")), samples.csv with the name and class of each row's image, and
    features.json. The images' classes need not be the network's.
    """

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """A run folder, or a .safetensors file with weights."""
    data: Annotated[Positional[Path], arg(metavar="DATA")]
    """A prepared data set or class folders."""
    names: Annotated[Positional[tuple[str, ...]], arg(metavar="ACTIVATION [ACTIVATION ...]", help_behavior_hint="")]
    """Such as conv1 (a block's output), conv1.conv, conv1.norm, conv5.activation, fc6.linear, fc7; an unknown name is
    answered with all of them."""
    output: Annotated[Path, arg(aliases=("-o",), metavar="DIR")]
    """The folder to make."""
    split: Annotated[str | None, optional("SPLIT")] = None
    """Which part of the data set, such as train. Default: val, or the only one that there is."""
    weights: Literal["best", "last"] = "best"
    """Which of the run's weights."""
    dtype: DType = "float32"
    """Of the files."""
    devices: Annotated[str | None, optional("DEVICES", "--device")] = None
    """One per stage: "0", "0,1", "cpu", "cpu,cpu". Default: the first GPU if there is one, else the CPU."""
    batch_size: Annotated[int, arg(aliases=("-b",))] = 64
    """Images at a time."""
    precision: Precision = "fp32"
    """fp32 or bf16."""

    def on(self, devices: Sequence[torch.device]) -> FeaturesOptions:
        """The same options with these devices."""
        return replace(self, devices=",".join(map(str, devices)))


def resolve(options: FeaturesOptions) -> tuple[Extraction, str]:
    """Check the options; the extraction, and the devices it runs on.

    Raises:
        ConfigurationError, dataloading.DatasetError: what is asked for cannot be done.
    """
    check_positive("--batch-size", options.batch_size)
    output = options.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} exists already; choose another --output")
    devices = options.devices or default_device()
    stages = len(parse_devices(devices))
    network = TrainedNetwork.find(options.run, options.weights)
    partition(network.description.build_architecture(), stages)
    names = tuple(dict.fromkeys(options.names))
    if not names:
        raise ConfigurationError("name at least one activation, such as fc7; an unknown name is answered with all")
    activation_shapes(network.description, names)
    dataset = open_data(options.data, network.stored_size, for_training=False)
    split = options.split or default_split(dataset)
    check_split(dataset, split)
    extraction = Extraction(
        network, str(dataset.root), split, names, output, options.dtype, options.batch_size, options.precision
    )
    needed = bytes_needed(extraction, dataset)
    there = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ConfigurationError(
            f"{output} needs {needed / 2**30:.1f} GiB and {there} has {free / 2**30:.1f} GiB free; choose fewer "
            "activations, --dtype float16 or another --output"
        )
    return extraction, devices


def extract_and_report(world: World, extraction: Extraction) -> None:
    """Extract; the first worker prints what was written."""
    extract(world, extraction)
    if world.is_first:
        dataset = open_prepared(extraction.data)
        shapes = activation_shapes(extraction.network.description, extraction.names)
        count = dataset.count(extraction.split)
        rows = {
            "weights": str(extraction.network.weights),
            "data": f"{dataset.name}, {extraction.split}: {count} images",
            **{f"{name}.npy": " x ".join(map(str, (count, *shape))) for name, shape in shapes.items()},
            "size": f"{bytes_needed(extraction, dataset) / 2**20:.1f} MiB of {extraction.dtype}",
            "folder": str(extraction.output),
        }
        print_whole(Console(soft_wrap=True, highlight=False), name_value_table("activations", rows))


def resolve_and_extract(world: World, options: FeaturesOptions) -> None:
    """As one of torchrun's workers: the first one resolves, all extract the same."""
    extraction, _ = world.from_first(lambda: resolve(options))
    extract_and_report(world, extraction)
