"""What a run is: everything resolved, as it stands in the run folder's ``config.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fastalex.errors import ConfigurationError
from fastalex.files import write_atomically
from fastalex.network.precision import Precision
from fastalex.network.weights import NetworkSpec
from fastalex.parallel.layout import Layout, ScheduleName, resolve_layout
from fastalex.recipes.edits import Edit
from fastalex.recipes.schedule import Change, Plateau, Recipe

BadSamplePolicy = Literal["stop", "skip"]
NonFinitePolicy = Literal["stop", "skip"]


@dataclass(frozen=True)
class RunConfig:
    """A training run.

    Args:
        data: the prepared data set's folder.
        network: which network.
        recipe: how it is trained, with what the command line overrode.
        devices: of each machine, one a worker, as :func:`fastalex.parallel.devices.parse_devices` reads them.
        micro_batches: in how many parts each replica's part of a batch passes through; None: to be measured.
        schedule: in which order they do; None: to be measured, or see :func:`fastalex.parallel.layout.resolve_layout`.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        seed: of weights, order, augmentation and dropout.
        output: the run folder.
        machines: how many have such devices.
        stages, replicas: how the devices share the network and the batch; None: see :mod:`fastalex.parallel.layout`.
        split: the first block of every later stage (``conv3,fc6``), ``analytic``, or ``auto``: to be measured.
        on_bad_sample: ``stop`` at a damaged image, or ``skip`` it: another of its class takes its place.
        hardware_decoder_load: share of a batch that a GPU's JPEG hardware decodes, 0 to 1.
        fraction: of the training images of each class that it trains on; ``seed`` chooses them.
        init_from: None, or the file of another network's weights that it starts from.
        edits: what was changed in the recipe by hand or when it was resumed; ``recipe`` is what it became.
        on_non_finite: ``stop`` at a loss that is not finite, or ``skip`` the updates of such steps.
        cuda_graphs: whether steps on GPUs are captured in CUDA graphs; None captures those on one GPU alone.
    """

    data: str
    network: NetworkSpec
    recipe: Recipe
    devices: str
    micro_batches: int | None
    schedule: ScheduleName | None
    precision: Precision
    seed: int
    output: str
    machines: int = 1
    stages: int | None = None
    replicas: int | None = None
    split: str = "analytic"
    on_bad_sample: BadSamplePolicy = "stop"
    hardware_decoder_load: float = 0.65
    fraction: float = 1.0
    init_from: str | None = None
    edits: tuple[Edit, ...] = ()
    on_non_finite: NonFinitePolicy = "stop"
    cuda_graphs: bool | None = None

    @property
    def layout(self) -> Layout:
        """How the devices share the work."""
        return self.arranged[0]

    @property
    def arranged(self) -> tuple[Layout, ScheduleName]:
        """The layout, and the schedule that goes with it."""
        devices = len(self.devices.split(","))  # counted, because another machine may have others
        return resolve_layout(devices, self.machines, self.stages, self.replicas, self.schedule)

    def save(self) -> None:
        """Write ``config.json`` into the run folder."""
        write_atomically(Path(self.output) / "config.json", json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: Path) -> RunConfig:
        """Read ``config.json`` of a run folder, which may have moved.

        Raises:
            ConfigurationError: no run folder, or a ``config.json`` that this version does not understand.
        """
        path = run / "config.json"
        if not path.is_file():
            raise ConfigurationError(f"{run} is not a run folder: it has no config.json")
        try:
            values = json.loads(path.read_text())
            values["recipe"] = _recipe(values["recipe"])
            values["network"] = NetworkSpec.from_json(json.dumps(values["network"]))
            values["edits"] = tuple(Edit(**edit) for edit in values.get("edits", ()))
            return replace(cls(**values), output=str(run))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(f"{path} is damaged or of another version: {error}") from None


def _recipe(values: dict[str, Any]) -> Recipe:
    changes = tuple(Change(**{**change, "layers": tuple(change["layers"])}) for change in values["changes"])
    plateau = Plateau(**values["plateau"]) if values["plateau"] else None
    return Recipe(**{**values, "changes": changes, "plateau": plateau})
