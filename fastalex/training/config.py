"""A run's configuration: everything resolved, as it stands in the run folder's ``config.json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastalex.errors import ConfigurationError
from fastalex.files import runs_near, write_atomically
from fastalex.json_types import check_json
from fastalex.network.precision import Precision
from fastalex.network.weights import NetworkSpec
from fastalex.options.choices import BadSamplePolicy, NonFinitePolicy, ScheduleName
from fastalex.parallel.layout import ParallelPlan, resolve_layout
from fastalex.parallel.partition import parse_split, partition
from fastalex.parallel.schedules import default_micro_batches
from fastalex.recipes.edits import Edit
from fastalex.recipes.schedule import Change, Plateau, Recipe


@dataclass(frozen=True)
class RunConfig:
    """A training run.

    Args:
        data: folder of the prepared data set, or ``synthetic``.
        network: architecture, variation and classes.
        recipe: the training recipe, with everything that the command line changed.
        parallel: which worker computes what.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        seed: of initial weights, order, augmentation and dropout.
        output: the run folder.
        measure_split: whether the split is still to be balanced by measured block times when the run starts.
        on_bad_sample: ``stop`` at a damaged image, or ``skip`` it in favour of another image of its class.
        hardware_decoder_load: fraction of each batch that a GPU's JPEG hardware decodes, 0 to 1.
        fraction: of each class's training images to train on; ``seed`` chooses them.
        stored_size: shorter side of the data set's images in pixels; None in runs of earlier versions.
        mean_image: :func:`~fastalex.datasets.mean_image_hash` of the data set; None in runs of earlier versions.
        init_from: file of weights to start from, or None.
        edits: changes of the recipe by hand, or made when the run was resumed; ``recipe`` includes them.
        on_non_finite: ``stop`` if a loss is not finite, or ``skip`` the update.
        cuda_graphs: whether steps run from CUDA graphs; None leaves the choice to the engine.
        overlap_update: whether a second stream updates fully connected weights during the backward pass.
        save_every: steps between checkpoints within an epoch; None saves by the clock. Every epoch ends with one, too.
        keep: number of checkpoints to keep.
    """

    data: str
    network: NetworkSpec
    recipe: Recipe
    parallel: ParallelPlan
    precision: Precision
    seed: int
    output: str
    measure_split: bool = False
    on_bad_sample: BadSamplePolicy = "stop"
    hardware_decoder_load: float = 0.65
    fraction: float = 1.0
    stored_size: int | None = None
    mean_image: str | None = None
    init_from: str | None = None
    edits: tuple[Edit, ...] = ()
    on_non_finite: NonFinitePolicy = "stop"
    cuda_graphs: bool | None = None
    overlap_update: bool = False
    save_every: int | None = None
    keep: int = 1

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output)

    def on_devices(self, devices: Sequence[torch.device]) -> RunConfig:
        """The same run with the devices of this machine: each machine may have others."""
        return replace(self, parallel=replace(self.parallel, devices=tuple(devices)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``config.json``."""
        return {**asdict(replace(self, parallel=None)), "parallel": self.parallel.to_json()}  # type: ignore[arg-type]

    def save(self) -> None:
        """Write ``config.json`` into the run folder, with the SHA-256 of its content."""
        values = self.to_json()
        values["sha256"] = _content_sha256(values)
        write_atomically(self.folder / "config.json", json.dumps(values, indent=2) + "\n")

    @classmethod
    def load(cls, run: Path) -> RunConfig:
        """Read ``config.json`` of a run folder, which may have moved.

        Raises:
            ConfigurationError: not a run folder, or its ``config.json`` is damaged or of an unknown version.
        """
        path = run / "config.json"
        if not path.is_file():
            raise ConfigurationError(f"{run} is not a run folder: it has no config.json{runs_near(run)}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            written = values.pop("sha256", None)  # version 0.1 wrote none
            is_changed = written not in (None, _content_sha256(values))
            _check_values(values)
            _count_epochs_from_1(values)
            recipe, network = _recipe(values["recipe"]), NetworkSpec.from_json(json.dumps(values["network"]))
            parallel = values.pop("parallel", None)
            plan = ParallelPlan.from_json(parallel) if parallel else _plan_of_version_0_1(values, network, recipe)
            _check_plan(plan, network)
            values |= {"recipe": recipe, "network": network, "parallel": plan}
            values["edits"] = tuple(Edit(**edit) for edit in values.get("edits", ()))
            config = replace(cls(**values), output=str(run))
            if is_changed:
                raise ValueError(
                    "its content has another SHA-256 than it says; restore it, or remove its entry sha256 to keep edits"
                )
            return config
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else error
            raise ConfigurationError(f"{path} is damaged or of another version: {reason}") from None


@dataclass(frozen=True)
class _PlanValues:
    """The types of what :meth:`ParallelPlan.to_json` returns."""

    devices: tuple[str, ...]
    machines: int
    replicas: int
    ranks: int
    split: tuple[tuple[str, ...], ...]
    schedule: ScheduleName
    micro_batches: int


@dataclass(frozen=True)
class _PlanValuesOfVersion01:
    """The types of the seven fields of version 0.1."""

    devices: str
    machines: int
    stages: int | None
    replicas: int | None
    schedule: str | None
    split: str
    micro_batches: int | None


def _check_values(values: Any) -> None:
    """Check the types of everything in a ``config.json``.

    Raises:
        ValueError: something has another type; the message names it.
    """
    plan = values.get("parallel") if isinstance(values, dict) else None
    if plan is not None:
        check_json(_PlanValues, plan, "parallel", required=tuple(_PlanValues.__annotations__))
        values = {**values, "parallel": {}}  # ParallelPlan itself has other fields
    else:
        check_json(_PlanValuesOfVersion01, values)
    check_json(RunConfig, values)


def _check_plan(plan: ParallelPlan, network: NetworkSpec) -> None:
    """Check that the parts of a plan fit each other and the network.

    Raises:
        ValueError: they do not.
    """
    layout, workers, names = plan.layout, len(plan.devices) * plan.machines, network.build_architecture().block_names
    counts = {"machines": plan.machines, "replicas": layout.replicas, "micro_batches": plan.micro_batches}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"parallel.{name} must be at least 1, got {count}")
    if layout.workers != workers or not workers:
        raise ValueError(f"parallel has {layout.replicas} x {layout.ranks} workers on {workers} devices")
    if sum(plan.split, ()) != names or not all(plan.split) or layout.stages % layout.ranks:
        raise ValueError(f"parallel.split must cut {', '.join(names)} into stages for {layout.ranks} ranks")


def _count_epochs_from_1(values: dict[str, Any]) -> None:
    """Bring the recipe's changes and edits of earlier versions, which counted epochs from 0, into today's form.

    Those versions named the epoch of a change ``epoch``; today it is ``from_epoch``, so each tells how it counts.

    Raises:
        KeyError, ValueError: there are no changes, or the epoch of one is no integer.
    """
    old = [change for change in values["recipe"]["changes"] if "epoch" in change]
    for change in old:
        epoch = change.pop("epoch")
        if type(epoch) is not int:
            raise ValueError(f"the epoch of a change must be an integer, got {epoch!r}")
        change["from_epoch"] = epoch + 1
    for edit in values.get("edits", ()) if old else ():  # an edit of an epoch is one of the changes, too
        edit["text"] = re.sub(r"^epoch=(\d+):", lambda found: f"epoch={int(found[1]) + 1}:", edit["text"])


def _content_sha256(values: dict[str, Any]) -> str:
    """The SHA-256 of a configuration as plain values, whatever the order of its names and its white space."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _recipe(values: dict[str, Any]) -> Recipe:
    changes = tuple(Change(**{**change, "layers": tuple(change["layers"])}) for change in values["changes"])
    plateau = Plateau(**values["plateau"]) if values["plateau"] else None
    return Recipe(**{**values, "changes": changes, "plateau": plateau})


def _plan_of_version_0_1(values: dict[str, Any], network: NetworkSpec, recipe: Recipe) -> ParallelPlan:
    """The plan in a ``config.json`` of version 0.1, whose seven fields could be text or None; they are removed.

    That version had a schedule ``zero-bubble`` with any number of stages. A run gives the same results for any split
    and schedule, so such a run goes on with the default ones.
    """
    devices = tuple(
        torch.device(name if name == "cpu" else f"cuda:{name.removeprefix('cuda:')}")
        for name in (part.strip() for part in values.pop("devices").split(","))
    )
    machines, replicas = values.pop("machines", 1), values.pop("replicas", None)
    stages, schedule = values.pop("stages", None), values.pop("schedule", None)
    split, micro_batches = values.pop("split", "analytic"), values.pop("micro_batches", None)
    if schedule == "zero-bubble":
        stages, schedule, split, micro_batches = None, None, "analytic", None
    layout, schedule = resolve_layout(len(devices), machines, stages, replicas, schedule)
    architecture = network.build_architecture()
    return ParallelPlan(
        devices=devices,
        machines=machines,
        layout=layout,
        split=partition(architecture, layout.stages)
        if split in ("", "auto", "analytic")
        else parse_split(split, architecture.block_names, layout.stages),
        schedule=schedule,
        micro_batches=micro_batches or default_micro_batches(layout, schedule, recipe.batch_size, devices[0].type),
    )
