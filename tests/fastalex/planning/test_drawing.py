"""The drawing of a network: its numbers are the architecture's, and towers and stages are where they belong."""

import math
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch

from fastalex.network.architecture import block_shapes
from fastalex.network.footprint import training_macs
from fastalex.network.variation import Variation, build_architecture
from fastalex.options.training import NetworkOptions
from fastalex.parallel.partition import parse_split, partition
from fastalex.parallel.world import World
from fastalex.planning import speed
from fastalex.planning.drawing import boundary_bytes, draw_network
from fastalex.planning.options import PlanOptions, resolve
from fastalex.planning.speed import measure_blocks
from tests.fastalex.commands import command, line_of

SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str = "krizhevsky", stages: int = 2, **variation) -> tuple:
    """An architecture, its split and its drawing."""
    architecture = build_architecture(name, 1000, Variation(**variation))
    split = partition(architecture, stages)
    devices = [f"cuda:{stage}" for stage in range(stages)]
    return architecture, split, ElementTree.fromstring(draw_network(architecture, split, devices))


def group(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (element for element in root if element.get("id") == name)
    return found


def texts(root: ElementTree.Element, name: str) -> list[str]:
    """The lines of text of a group."""
    return [element.text for element in group(root, name).iter(f"{SVG}text")]


def kinds(root: ElementTree.Element, block: str) -> list[str]:
    """The classes of the connections into a block."""
    return sorted(line.get("class") for line in group(root, f"into-{block}"))


@pytest.mark.parametrize(
    ("name", "variation"),
    [
        ("krizhevsky", {}),
        ("separate", {"width": 0.5, "conv6": True}),
        ("owt", {"bottleneck": 64}),
        ("four-layer", {"activation": "tanh"}),
    ],
)
def test_every_number_is_the_architectures(name, variation):
    architecture, split, root = drawn(name, **variation)
    shapes = block_shapes(architecture)
    image = f"3 × {architecture.image_size} × {architecture.image_size}"
    assert texts(root, "row-output") == ["output", image, *(" × ".join(map(str, s.output)) for s in shapes)]
    assert texts(root, "row-parameters") == ["parameters", *(f"{shape.parameters:,}" for shape in shapes)]
    assert texts(root, "row-MACs") == ["MACs", *(f"{shape.macs:,}" for shape in shapes)]
    assert len(texts(root, "row-layer")) == 1 + len(shapes)
    title = f"{name}: {len(shapes)} blocks, {sum(shape.parameters for shape in shapes):,} parameters"
    assert root.findtext(f"{SVG}title") == title
    macs = training_macs(architecture)
    for number, names in enumerate(split, 1):
        own = sum(shape.parameters for shape in shapes if shape.name in names)
        share = 100 * sum(macs[block] for block in names) / sum(macs.values())
        assert texts(root, f"stage-{number}") == [
            f"stage {number} of {len(split)}",
            f"cuda:{number - 1}",
            f"{own:,} parameters",
            f"{share:.1f} % of training MACs",
        ]


def test_layers_and_steps_are_in_their_order():
    *_, root = drawn()
    assert texts(root, "row-layer")[1:4] == ["11 × 11, stride 4", "5 × 5", "3 × 3"]
    assert texts(root, "row-then")[1:8] == [
        *("LRN in each tower", "max pool 3 × 3 / 2", "ReLU"),
        *("ReLU", "LRN in each tower", "norm in each map", "max pool 3 × 3 / 2"),
    ]
    assert texts(root, "row-then")[-4:] == ["ReLU", "dropout 0.5"] * 2
    *_, root = drawn("owt")
    assert texts(root, "row-then")[-4:] == ["(dropout 0.5 before)", "ReLU"] * 2
    *_, root = drawn("krizhevsky", activation="tanh", dropout=0.0, lrn=False)
    assert texts(root, "row-then")[-3:] == ["tanh"] * 3
    assert "LRN" not in "".join(texts(root, "row-then"))


def test_what_crosses_a_cut_is_the_output_of_the_block_before_it():
    architecture, _, _ = drawn()
    split = parse_split("conv3,fc6", architecture.block_names, 3)
    root = ElementTree.fromstring(draw_network(architecture, split, ["a", "b", "c"]))
    assert texts(root, "cut-1")[1:] == ["173,056 bytes fp32", "86,528 bytes bf16"]  # 256 x 13 x 13
    assert texts(root, "cut-2")[1:] == ["36,864 bytes fp32", "18,432 bytes bf16"]  # 256 x 6 x 6
    assert [element.get("id") for element in root if element.get("id", "").startswith("cut")] == ["cut-1", "cut-2"]
    for shape in block_shapes(architecture):
        empty = {dtype: torch.empty(shape.output, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
        assert list(boundary_bytes(shape).values()) == [tensor.nbytes for tensor in empty.values()]


def test_connections_between_towers_are_told_apart():
    *_, root = drawn()
    assert {name: kinds(root, name) for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")} == {
        "conv1": ["link"] * 2,
        **dict.fromkeys(("conv2", "conv4", "conv5"), ["link"] * 2),
        **dict.fromkeys(("conv3", "fc6", "fc7"), ["cross"] * 2 + ["link"] * 2),
        "fc8": ["cross"] * 2,
    }
    assert texts(root, "row-reads")[1:] == [
        *("the image", "its own tower", "both towers", "its own tower", "its own tower"),
        *["both towers"] * 3,
    ]
    assert [text for text in texts(root, "conv3") if text != "conv3"] == ["192 × 13 × 13"] * 2
    *_, root = drawn("separate")
    assert [name for name in ("conv3", "fc6", "fc7", "fc8") if "cross" in kinds(root, name)] == ["fc8"]
    *_, root = drawn("ungrouped")
    assert {kind for line in root.iter(f"{SVG}line") for kind in [line.get("class")]} == {"link", "cut"}
    assert not [element for element in root if element.get("id") == "row-reads"]


@pytest.mark.parametrize(("name", "stages"), [("krizhevsky", 1), ("krizhevsky", 8), ("owt", 3)])
def test_blocks_are_within_the_frames_of_their_stages_and_all_is_on_the_page(name, stages):
    _, split, root = drawn(name, stages)
    frames = []
    for number, names in enumerate(split, 1):
        frame = group(root, f"stage-{number}").find(f"{SVG}rect")
        x, y, width, height = (float(frame.get(key)) for key in ("x", "y", "width", "height"))
        frames.append((x, x + width))
        for block in names:
            for polygon in group(root, block).iter(f"{SVG}polygon"):
                for corner in polygon.get("points").split():
                    a, b = map(float, corner.split(","))
                    assert x < a < x + width
                    assert y < b < y + height
        # Letters of 12 pixels are a little more than half as wide on average.
        assert max(map(len, texts(root, f"stage-{number}"))) * 0.55 * 12 < width
    assert frames == sorted(frames)
    assert all(right < left for (_, right), (left, _) in pairwise(frames))
    page = float(root.get("width")), float(root.get("height"))
    assert frames[-1][1] < page[0]
    assert max(float(text.get("y")) for text in root.iter(f"{SVG}text")) < page[1]


def test_names_are_escaped_and_nothing_is_loaded_from_elsewhere():
    architecture = replace(build_architecture(), name='<b>"A & B"</b>')
    text = draw_network(architecture, partition(architecture, 1), ["<cpu>"])
    root = ElementTree.fromstring(text)
    assert root.findtext(f"{SVG}title").startswith('<b>"A & B"</b>: ')
    assert "<cpu>" in texts(root, "stage-1")
    assert "prefers-color-scheme: dark" in text
    assert text.count("http") == 1  # the name of the format
    assert all(word not in text for word in ("@import", "url(", "<script", "href", "@font-face"))


def test_measured_times_are_shown():
    architecture = build_architecture()
    split = partition(architecture, 2)
    seconds = {name: 0.001 * number for number, name in enumerate(architecture.block_names, 1)}
    text = draw_network(architecture, split, ["cpu", "cpu"], seconds=seconds, batch_size=48)
    root = ElementTree.fromstring(text)
    assert texts(root, "row-time") == ["time", *(f"{number}.00 ms" for number in range(1, 9))]
    totals = [sum(seconds[name] for name in names) for names in split]
    assert [texts(root, f"stage-{n}")[-1] for n in (1, 2)] == [f"{1000 * total:.2f} ms" for total in totals]
    assert "a training step of 48 images, measured" in text
    assert "row-time" not in draw_network(architecture, split, ["cpu", "cpu"])


def test_a_block_takes_its_time_on_the_device_of_its_stage(monkeypatch):
    plan = resolve(PlanOptions(NetworkOptions(width=1 / 16, lrn=False), devices="cpu,cpu", batch_size=8))
    asked = []

    def time_blocks(world, model, rows, micro_batches):
        asked.append((rows, micro_batches, model.compute_dtype))
        return dict.fromkeys(model.architecture.block_names, 1.0)

    def everyone(self, value):
        return [value, {name: 2 * seconds for name, seconds in value.items()}]

    monkeypatch.setattr(speed, "time_blocks", time_blocks)
    monkeypatch.setattr(World, "gather_objects", everyone)
    times = measure_blocks(World(0, 1, torch.device("cpu")), plan.architecture, plan.parallel, 8, "bf16")
    assert times == {name: stage + 1.0 for stage, names in enumerate(plan.parallel.split) for name in names}
    assert asked == [(2, 4, torch.bfloat16)]


def test_the_command_draws_and_replaces_only_what_it_may(tmp_path):
    arguments = ["fastalex.plan", "--width", "0.1", "--init", "scaled", "--devices", "0,1", "--device-memory", "3"]
    arguments += ["--draw", "network.svg"]
    code, out, err = command(tmp_path, *arguments, "--split", "conv4")
    assert code == 0, err
    assert out.splitlines()[-1] == "written: network.svg"
    before = (tmp_path / "network.svg").read_text()
    assert texts(ElementTree.fromstring(before), "stage-2")[:2] == ["stage 2 of 2", "cuda:1"]
    assert math.isclose(float(ElementTree.fromstring(before).get("width")), 1500, rel_tol=0.2)
    code, _, err = command(tmp_path, *arguments)
    assert line_of(code, err) == "error: network.svg exists already; choose another file, or add --force"
    assert (tmp_path / "network.svg").read_text() == before
