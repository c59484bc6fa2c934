"""The options of ``python -m fastalex.export``: parsed into an :class:`Export`, and its report."""

from __future__ import annotations

import json
import os
from pathlib import Path

from fastalex.console import console, data_size, print_rows
from fastalex.errors import ConfigurationError
from fastalex.files import check_writable
from fastalex.interchange.exporting import TOLERANCE, Export
from fastalex.interchange.torchvision_export import normalisation
from fastalex.network.weights import find_weights, load_spec
from fastalex.network.weights_record import load_record
from fastalex.options.choices import ExportFormat
from fastalex.options.export import ExportOptions

# The first ending is that of the default output.
_ENDINGS = {"onnx": (".onnx",), "pt2": (".pt2",), "torchvision": (".pth", ".pt")}


def resolve(options: ExportOptions) -> Export:
    """Check the options and decide what they leave open.

    Raises:
        ConfigurationError: the export is not possible.
    """
    weights = find_weights(options.run, options.weights)
    output = options.output or _default_output(weights, options.to)
    endings = _ENDINGS.get(options.to)
    if endings is not None and output.suffix not in endings:
        raise ConfigurationError(f"--output must end with {' or '.join(endings)}, got {output}")
    job = Export(weights, options.to, output, options.with_preprocessing)
    if options.with_preprocessing and options.to not in ("onnx", "pt2"):
        raise ConfigurationError(
            f"--with-preprocessing is not possible with --to {options.to}, which holds weights only; leave it out, or "
            "use --to onnx or --to pt2"
        )
    job.check()
    _check_files(job, overwrite=options.force)
    return job


def export_and_report(job: Export) -> None:
    """Export, and print what was written and how to run it.

    Raises:
        ConfigurationError: a file cannot be written, or the exported network differs from the network.
    """
    try:
        difference = job.run()
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename} cannot be written: {error.strerror}; free space, or choose another --output"
        ) from None
    spec = load_spec(job.weights)
    rows = {"weights": str(job.weights), "network": f"{spec.summary()}, {spec.num_classes} classes"}
    rows["written"] = ", ".join(f"{path} ({data_size(path.stat().st_size)})" for path in job.files())
    if difference is not None:
        rows["compared"] = (
            f"with the network on 2 random images: outputs differ by {difference:.1e} of the largest "
            f"({TOLERANCE:.0e} allowed)"
        )
    elif job.format == "onnx":
        rows["compared"] = "not with the network: onnxruntime is not installed"
    rows["run it"], rows[""] = _how_to_run(job)
    print_rows(console(), rows)


def _default_output(weights: Path, format: ExportFormat) -> Path:
    if format in _ENDINGS:
        return weights.with_suffix(_ENDINGS[format][0])
    return weights.with_name(f"{weights.stem}-timm")


def _check_files(job: Export, *, overwrite: bool) -> None:
    """Check that the files can be written, before the work.

    Raises:
        ConfigurationError: one exists or is the weights themselves, or the folder is missing or cannot be written.
    """
    output = job.output
    parent = output.absolute().parent
    if not parent.is_dir():
        raise ConfigurationError(f"{output}: the folder {output.parent} does not exist; create it first")
    is_folder = job.format == "timm-safetensors"
    if is_folder and os.path.lexists(output) and not output.is_dir():
        raise ConfigurationError(f"{output} is not a folder; choose another --output")
    for path in job.files():
        if os.path.realpath(path) == os.path.realpath(job.weights):
            raise ConfigurationError(f"{path} holds the weights to export; choose another --output")
        if path.is_file() and not overwrite:
            raise ConfigurationError(f"{path} exists already; choose another --output, or add --force")
        try:
            check_writable(path if path.parent.is_dir() else path.parent)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}; choose another --output") from None


def _how_to_run(job: Export) -> tuple[str, str]:
    """Two lines of Python."""
    spec, record = load_spec(job.weights), load_record(job.weights)
    size = spec.build_architecture().image_size
    if job.with_preprocessing:
        assert record is not None
        size = record.stored_size
        images = f"uint8, N x 3 x {size} x {size}, RGB"
        output = "probabilities"
    else:
        images = f"float32, N x 3 x {size} x {size}, RGB 0-255 minus the mean"
        output = "logits"
    name = json.dumps(str(job.output))  # a string of Python, too
    model = f"model = torchvision.models.alexnet(num_classes={spec.num_classes}); model.load_state_dict"
    match job.format:
        case "onnx":
            return (
                f"session = onnxruntime.InferenceSession({name})",
                f'({output},) = session.run(None, {{"images": images}})  # {images}',
            )
        case "pt2":
            return f"model = torch.export.load({name}).module()", f"{output} = model(images)  # {images}"
        case "torchvision":
            first = f"{model}(torch.load({name}))"
        case "timm-safetensors":
            file = json.dumps(str(job.output / "model.safetensors"))
            first = f"{model}(safetensors.torch.load_file({file}))"
    values = normalisation(spec, record)
    if values["mean"] is None:
        std = f"torch.tensor({_numbers(values['std'], 255)}).view(3, 1, 1)"
        return first, f"logits = model.eval()(images / {std})  # {images}"
    transform = f"torchvision.transforms.Normalize({_numbers(values['mean'])}, {_numbers(values['std'])})"
    return first, f"logits = model.eval()({transform}(images))  # float32, N x 3 x {size} x {size}, RGB 0-1"


def _numbers(values: list[float], scale: float = 1) -> str:
    return f"[{', '.join(f'{value * scale:.6g}' for value in values)}]"
