"""Writing a trained network in another format, after comparing what was built with the network itself."""

from __future__ import annotations

import importlib.util
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastalex.errors import ConfigurationError
from fastalex.files import write_atomically
from fastalex.interchange.exported_program import DESCRIPTION, build_program
from fastalex.interchange.onnx_export import build_onnx
from fastalex.interchange.preprocessing_module import StoredPreprocessing, describe, mean_image
from fastalex.interchange.torchvision_export import (
    build_timm,
    build_torchvision,
    check_timm,
    check_torchvision,
    normalisation,
    timm_config,
)
from fastalex.network.model import AlexNet
from fastalex.network.weights import NetworkSpec, load_model, load_spec
from fastalex.network.weights_record import WeightsRecord, load_record
from fastalex.optional_packages import require
from fastalex.options.choices import ExportFormat

TOLERANCE = 1e-4
"""Largest difference from the network's outputs, relative to the largest of them. Sums in another order give 1e-6."""


@dataclass(frozen=True)
class Export:
    """A network and the file, or for timm the folder, to write.

    Args:
        weights: file of weights.
        format: ``onnx``, ``pt2`` (``torch.export``), ``torchvision`` (state dict of ``owt``) or ``timm-safetensors``
            (a folder with the same weights and ``config.json``).
        output: what to write. Beside a file come OUTPUT.json, which says how to use it, and OUTPUT.mean.npy, if a mean
            image is to be subtracted from the images.
        with_preprocessing: for ``onnx`` and ``pt2``: take stored images and return probabilities.
    """

    weights: Path
    format: ExportFormat
    output: Path
    with_preprocessing: bool = False

    def check(self) -> None:
        """Check that the format can hold the network, before its weights are loaded.

        Raises:
            ConfigurationError: it cannot, or a package is missing, or the file of weights cannot be used.
        """
        spec, record = load_spec(self.weights), load_record(self.weights)
        if self.format == "onnx":
            for package in ("onnx", "onnxscript"):
                require(package, "export")
        if self.format == "torchvision":
            check_torchvision(spec)
        if self.format == "timm-safetensors":
            check_timm(spec, record)
        if self.with_preprocessing:
            if self.format not in ("onnx", "pt2"):
                raise ConfigurationError(
                    f"{self.format} holds weights only, no preprocessing; leave the preprocessing out, or export to "
                    "onnx or pt2"
                )
            self._preprocessing(spec, record)

    def files(self) -> tuple[Path, ...]:
        """The files to write, the network first."""
        if self.format == "timm-safetensors":
            return self.output / "model.safetensors", self.output / "config.json"
        files = self.output, _beside(self.output, ".json")
        needs_mean = not self.with_preprocessing and mean_image(load_record(self.weights)) is not None
        return (*files, _beside(self.output, ".mean.npy")) if needs_mean else files

    def run(self) -> float | None:
        """Write the files; return the largest relative difference from the network's outputs, None if nothing ran.

        Raises:
            ConfigurationError: as :meth:`check`, or the outputs differ; then nothing is written.
            OSError: a file cannot be written.
        """
        self.check()
        (model, spec), record = load_model(self.weights), load_record(self.weights)
        preprocessing = self._preprocessing(spec, record) if self.with_preprocessing else None
        network, *others = self.files()
        values = self._description(spec, record)
        content = self._build(model, preprocessing, json.dumps(values))
        difference = self._compare(content, model, preprocessing)
        # The network comes last: where it is, what belongs to it is, too.
        if self.format == "timm-safetensors":
            self.output.mkdir(exist_ok=True)
        for path in others:
            if path.suffix == ".npy":
                write_atomically(path, _npy(mean_image(record)))
            else:
                write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        write_atomically(network, content)
        return difference

    def _preprocessing(self, spec: NetworkSpec, record: WeightsRecord | None) -> StoredPreprocessing:
        if record is None:
            raise ConfigurationError(
                f"{self.weights} is of an earlier version and does not hold the mean of its images, so the "
                "preprocessing cannot be included; leave it out, or train on"
            )
        return StoredPreprocessing(record, spec.build_architecture().image_size)

    def _description(self, spec: NetworkSpec, record: WeightsRecord | None) -> dict[str, Any]:
        if self.format == "timm-safetensors":
            assert record is not None  # checked
            return timm_config(spec, record)
        name = _beside(self.output, ".mean.npy").name
        values: dict[str, Any] = {"format": self.format}
        values |= describe(spec, record, with_preprocessing=self.with_preprocessing, mean_file=name)
        if self.format == "torchvision":
            values["normalise"] = normalisation(spec, record)
        return values

    def _build(self, model: AlexNet, preprocessing: StoredPreprocessing | None, description: str) -> bytes:
        match self.format:
            case "onnx":
                return build_onnx(model, preprocessing, {"fastalex": description})
            case "pt2":
                return build_program(model, preprocessing, description)
            case "torchvision":
                return build_torchvision(model)
            case "timm-safetensors":
                return build_timm(model)

    def _compare(self, content: bytes, model: AlexNet, preprocessing: StoredPreprocessing | None) -> float | None:
        """The largest relative difference on two random images; None if nothing can run the content here."""
        images = random_images(2, model, preprocessing)
        if self.format == "onnx" and importlib.util.find_spec("onnxruntime"):
            found = run_onnx(content, images)
        elif self.format == "pt2":
            with torch.no_grad():
                found = torch.export.load(io.BytesIO(content), extra_files={DESCRIPTION: ""}).module()(images)
        else:
            return None
        expected = outputs(model, images, preprocessing)
        difference = relative_difference(found, expected)
        if not difference <= TOLERANCE:
            raise ConfigurationError(
                f"{self.output} is not written: its outputs differ from the network's by {difference:.1e} of the "
                f"largest, at most {TOLERANCE:.0e} is allowed; report this as a bug, with the versions of torch, onnx "
                "and onnxruntime"
            )
        return difference


def outputs(model: AlexNet, images: Tensor, preprocessing: StoredPreprocessing | None) -> Tensor:
    """What an exported network returns, computed by the network itself."""
    with torch.no_grad():
        if preprocessing is None:
            return model(images)
        return model(preprocessing(images)).softmax(1)


def random_images(count: int, model: AlexNet, preprocessing: StoredPreprocessing | None) -> Tensor:
    """Inputs of an exported network: crops minus the mean in float32, or stored images in uint8.

    Stored images are near the mean: strong contrasts give probabilities of 0 and 1, which hide differences.
    """
    generator = torch.Generator().manual_seed(0)
    side = model.architecture.image_size
    noise = torch.rand(count, 3, side, side, generator=generator)
    if preprocessing is None:
        return 256 * noise - 128
    images = torch.randint(256, (count, 3, *[preprocessing.stored_size] * 2), generator=generator, dtype=torch.uint8)
    inside = slice(preprocessing.offset, preprocessing.offset + side)
    images[:, :, inside, inside] = (preprocessing.mean + 16 * noise - 8).clamp(0, 255)
    return images


def run_onnx(content: bytes, images: Tensor) -> Tensor:
    """The output of an ONNX graph on the CPU, by onnxruntime."""
    import onnxruntime  # an optional package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference relative to the largest magnitude expected; NaN if a value is not a number."""
    largest = expected.abs().max()
    difference = (found - expected).abs().max()
    return float(difference / largest) if largest > 0 else float(difference)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _npy(array: NDArray[np.float32] | None) -> bytes:
    assert array is not None
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
