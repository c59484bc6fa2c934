"""A network that carries what using it needs: its preprocessing, its classes, and how it was trained.

    >>> model = fastalex.load("runs/20261101-photos")           # or best.safetensors, or owner/name on the hub
    >>> model.predict(["cat.jpg"])[0].classes
    ('tabby', 'tiger cat', 'Egyptian cat', 'lynx', 'Persian cat')

:class:`AlexNet` is the public class: :class:`fastalex.network.model.AlexNet`, and where a file describes it, what that
file says. On the Hugging Face hub it is a folder with ``model.safetensors`` and a model card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataloading.process import command
from dataloading.sources.names import classes_in_words
from fastalex.errors import ConfigurationError
from fastalex.network import model as plain
from fastalex.network.architecture import Architecture
from fastalex.network.weights import HUB_FILE, NetworkSpec, find_weights, load_parameters, load_spec
from fastalex.network.weights_record import Origin, WeightsRecord, load_record, save_weights
from fastalex.parallel.devices import check_devices
from fastalex.prediction.hub import ModelHubMixin, card, download
from fastalex.prediction.preprocessing import AnyImage, Preprocessing
from fastalex.training.validation import mean_of_views

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_UNKNOWN = (
    "this network does not know how its images are prepared: it was not loaded from a file that says so; subtract the "
    "mean of the training images yourself"
)
_BATCH = 64  # images that predict() runs at a time


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the most probable first.

    Args:
        classes: their names.
        probabilities: of each.
        indices: of the network's outputs.
        names: the classes as people read them: "tench" for "n01440764", if the network knows the words.
    """

    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    indices: tuple[int, ...]
    names: tuple[str, ...]

    def __repr__(self) -> str:
        """The classes with their probabilities in percent."""
        pairs = zip(self.names, self.probabilities, strict=True)
        return f"Prediction({', '.join(f'{name} {probability:.1%}' for name, probability in pairs)})"


class _UnknownPreprocessing(Preprocessing):
    """Stands in for preprocessing that is unknown: using it raises ConfigurationError.

    The property of the network must not raise, because PyTorch's tracers read every attribute of a module.
    """

    def __init__(self) -> None:
        pass

    def stored(self, image: AnyImage) -> NDArray[np.uint8]:
        """Not possible."""
        raise ConfigurationError(_UNKNOWN)

    def __getattr__(self, name: str) -> Any:
        raise ConfigurationError(_UNKNOWN) if name == "record" else AttributeError(name)

    def __repr__(self) -> str:
        return "Preprocessing(unknown)"


class AlexNet(plain.AlexNet, ModelHubMixin):
    """The network of :class:`fastalex.network.model.AlexNet`, with the same arguments.

    One that :func:`load` or :meth:`from_pretrained` returns has in addition:

    Attributes:
        classes: names of the classes in the order of the outputs; empty if unknown.
        record: how its images are prepared; None if unknown.
        origin: the run that made the weights; None if unknown.
    """

    classes: tuple[str, ...]
    record: WeightsRecord | None
    origin: Origin | None

    def __init__(
        self,
        architecture: str | Architecture = "krizhevsky",
        num_classes: int = 1000,
        *,
        seed: int | None = None,
        hookable: bool = False,
        **variation: Any,
    ) -> None:
        super().__init__(architecture, num_classes, seed=seed, hookable=hookable, **variation)
        self.classes, self.record, self.origin = (), None, None
        self._spec: NetworkSpec | None = None
        self._hub_mixin_config = None  # the file of weights describes the network; no config.json is needed

    def hookable(self) -> Self:
        """As in :class:`fastalex.network.model.AlexNet`; with the classes and the preprocessing of this network."""
        twin = super().hookable()
        twin._spec, twin.classes, twin.record, twin.origin = self._spec, self.classes, self.record, self.origin
        return twin

    @property
    def words(self) -> tuple[str, ...]:
        """What describes the classes, such as "tench, Tinca tinca"; empty if the weights do not say it."""
        return self.record.words if self.record else ()

    @property
    def preprocess(self) -> Preprocessing:
        """From an image or the path of one to the input of the network; see :class:`Preprocessing`.

        Using it raises ConfigurationError if the network does not know the mean of its training images.
        """
        return _UnknownPreprocessing() if self.record is None else Preprocessing(self.record)

    @torch.inference_mode()
    def log_probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """Logarithms of the softmax outputs, averaged over the views of each image: N x classes, float32, on the CPU.

        Args:
            images: prepared views of each image, views x 3 x C x C (:meth:`Preprocessing.views`).
        """
        was_training = self.training
        self.eval()
        try:
            views = torch.stack(list(images)).to(next(self.parameters()).device)
            scores = [self(views[:, view]).float().log_softmax(1) for view in range(views.shape[1])]
        finally:
            self.train(was_training)
        return mean_of_views(scores).cpu()

    def predict(
        self, images: AnyImage | list[AnyImage] | tuple[AnyImage, ...], *, top: int = 5, views: Literal[1, 10] = 1
    ) -> list[Prediction]:
        """The most probable classes of each image.

        Args:
            images: one or several: paths, PIL images, or pixels (uint8, height x width x 3).
            top: classes per image, or all if there are fewer.
            views: 1 for the centre crop, 10 for the paper's ten views, whose softmax outputs are averaged.

        Raises:
            UnusableImage: an image cannot be read.
            ConfigurationError: the network does not know how its images are prepared.
        """
        several = list(images) if isinstance(images, list | tuple) else [images]
        preprocess, found = self.preprocess, []
        for first in range(0, len(several), _BATCH):
            prepared = [preprocess.views(image, views) for image in several[first : first + _BATCH]]
            found += best(self.log_probabilities(prepared), self.classes, top, self.words)
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """The network of a file of weights, a run folder, a folder of :meth:`save_pretrained`, or of the hub.

        Args:
            options: of ``huggingface_hub``: ``revision``, ``token``, ``cache_dir``, ``local_files_only``, ...

        Raises:
            ConfigurationError: there is no such network, or its file is damaged.
        """
        place = Path(pretrained_model_name_or_path)
        is_local = place.exists() or place.parent.is_dir()  # "runs/phtoos": a mistake, not a name on the hub
        if is_local or not _HUB_NAME.fullmatch(str(pretrained_model_name_or_path)):
            return cls._from_file(find_weights(place))
        return cls._from_file(download(str(pretrained_model_name_or_path), HUB_FILE, options))

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        spec = load_spec(path)
        model = cls(spec.build_architecture(), seed=0)
        load_parameters(model, path)
        model._spec, model.classes = spec, spec.classes
        model.record = load_record(path)
        model.origin = model.record.origin if model.record else None
        return model.eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        if self._spec is None or self.record is None:
            raise ConfigurationError(
                "only a network that was loaded with its preprocessing can be saved: its file has to say what the "
                "classes are and how images are prepared; load it from a run, or make a file with: "
                f"{command('fastalex.convert', 'FILE', 'OUT.safetensors')}"
            )
        weights = dict(self.named_parameters())
        save_weights(save_directory / HUB_FILE, weights, self._spec, self.record, overwrite=True)

    def generate_model_card(self, *arguments: Any, **options: Any) -> Any:
        """The card that :meth:`save_pretrained` writes: data, recipe, error, preprocessing and limits."""
        assert self._spec is not None
        assert self.record is not None
        return card(self._spec, self.record)


def load(source: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> AlexNet:
    """A trained network in evaluation mode, in fp32.

    Args:
        source: a file of weights, a run folder (its best weights), a folder of :meth:`AlexNet.save_pretrained`, or
            ``owner/name`` on the Hugging Face hub.
        device: where it computes.

    Raises:
        ConfigurationError: there is no such network or device, or the file is damaged.
    """
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigurationError(f"device must be cpu or cuda, or a GPU such as cuda:0, got {device!r}") from None
    if place.type == "cuda":
        check_devices((torch.device("cuda", place.index or 0),))
    return AlexNet.from_pretrained(source).to(place)


def best(log_probabilities: Tensor, classes: Sequence[str], top: int, words: Sequence[str] = ()) -> list[Prediction]:
    """The most probable classes of each row.

    Args:
        log_probabilities: N x classes.
        classes: their names; without any, classes are called by their numbers.
        top: classes per row, or all if there are fewer.
        words: describe the classes; without any, they are called by their names.

    Raises:
        ConfigurationError: ``top`` is below 1.
    """
    if top < 1:
        raise ConfigurationError(f"top must be at least 1, got {top}")
    count = log_probabilities.shape[1]
    values, indices = log_probabilities.exp().topk(min(top, count), 1)
    labels = classes or [str(number) for number in range(count)]
    names = classes_in_words(labels, words)
    return [
        Prediction(
            tuple(labels[index] for index in row), tuple(value), tuple(row), tuple(names[index] for index in row)
        )
        for value, row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
