"""The Hugging Face hub: its mixin where ``huggingface_hub`` is installed, downloads, and model cards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from fastalex.errors import ConfigurationError
from fastalex.network.weights import NetworkSpec
from fastalex.network.weights_record import WeightsRecord
from fastalex.optional_packages import require

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in notebooks without ipywidgets, of progress bars that nobody asked for
        from huggingface_hub import ModelHubMixin
except ImportError:

    class ModelHubMixin:  # type: ignore[no-redef]
        """Stands in for the mixin: every use of the hub names what to install."""

        def save_pretrained(self, *arguments: Any, **options: Any) -> None:
            """Not possible without ``huggingface_hub``."""
            require("huggingface_hub", "hub")

        push_to_hub = save_pretrained


def download(name: str, file: str, options: dict[str, Any]) -> Path:
    """The local copy of a file in a repository of the hub.

    Args:
        name: ``owner/name``.
        options: of ``huggingface_hub.hf_hub_download``.

    Raises:
        ConfigurationError: ``huggingface_hub`` is missing, or the file cannot be had.
    """
    try:
        hub = require("huggingface_hub", "hub")
    except ConfigurationError as error:
        raise ConfigurationError(f"no such file or folder: {name}; as a name on the hub: {error}") from None
    try:
        return Path(hub.hf_hub_download(name, file, **options))
    except TypeError:
        raise
    except Exception as error:  # of the network, the hub and its cache, of many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigurationError(
            f"no such file or folder: {name}; and the hub did not give {file} of a repository of that name: {reason}"
        ) from None


def card(spec: NetworkSpec, record: WeightsRecord) -> Any:
    """The model card of a network."""
    hub = require("huggingface_hub", "hub")
    data = hub.ModelCardData(
        library_name="fastalex", pipeline_tag="image-classification", tags=["alexnet", "image-classification"]
    )
    origin = record.origin
    mean = record.mean.mean(axis=(0, 1)) if record.mean.ndim == 3 else record.mean
    kind = "mean image of its training images" if record.mean.ndim == 3 else "mean colour of its training images"
    classes = f"{spec.num_classes} classes"
    if spec.classes:
        shown = ", ".join(spec.classes[:20])
        classes += f": {shown}, ..." if len(spec.classes) > 20 else f": {shown}"
    training = ["It is not known how these weights were made."]
    if origin is not None:
        error = "not measured" if origin.top1_error is None else f"{origin.top1_error:.2f} %"
        training = [
            f"- data: {origin.data} (fingerprint {origin.fingerprint})",
            f"- recipe: {origin.recipe}, {origin.epoch} epochs",
            f"- top-1 validation error: {error}",
            f"- fastalex {origin.version}",
        ]
    resized = "the shorter side" if record.resize == "shorter" else "both sides"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# AlexNet, {spec.summary()}",
        "",
        f"The network of Krizhevsky, Sutskever and Hinton (2012) for {classes}.",
        "",
        "```python",
        "import fastalex",
        "",
        'model = fastalex.load("owner/name")',
        'model.predict("photo.jpg")',
        "```",
        "",
        "## Training",
        "",
        *training,
        "",
        "## Images",
        "",
        f"RGB from 0 to 255; {resized} resized to {record.stored_size} pixels, the centre {record.crop_size} x "
        f"{record.crop_size} cropped, and the {kind} subtracted "
        f"(on average {', '.join(f'{value:.2f}' for value in mean)}). The file of weights holds it.",
        "",
        "## Limits",
        "",
        "It knows its classes and nothing else: every image gets one of them. Its errors were measured on images like "
        "those it was trained on, and other images give more. Whoever uses it has to check what it was trained on, "
        "and whether that suits the purpose.",
        "",
    ]
    return hub.ModelCard("\n".join(lines))
