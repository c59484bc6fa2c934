"""The charts of the documentation, from the committed records in bench/results/.

`make figures` draws every chart in docs/images/ again. A test compares them with the records, so do that after a record
has changed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
RESULTS = DOCS.parent / "bench" / "results"
GPU, CPU = "nvidia-h100-80gb-hbm3", "amd-epyc-with-avx-512-bf16-2-threads"
STEP_CPU = "intel-xeon-processor-with-amx-2-threads"
CPU_WITHOUT_BF16 = "amd-epyc-2-threads"
MACHINES = {
    GPU: "NVIDIA H100",
    CPU: "two cores of an AMD EPYC",
    STEP_CPU: "two cores of an Intel Xeon with AMX",
    CPU_WITHOUT_BF16: "two cores of an AMD EPYC",
}

# --- what the charts show ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One operator and size: the record that measured it, and how its rows are called there."""

    label: str
    record: str
    op: str
    sizes: str  # without the batch
    batches: dict[str, int]
    direction: str = "both"


IMAGES_OF = {GPU: 128, CPU: 64}
ROWS_OF = {GPU: 1024, CPU: 1024}
CONV1, CONV2 = "96 x 55 x 55", "256 x 27 x 27"
CASES = (
    Case(f"LRN, {CONV1}", "lrn", "local_response_norm", CONV1, IMAGES_OF),
    Case(f"LRN, {CONV2}", "lrn", "local_response_norm", CONV2, IMAGES_OF),
    Case(f"same-map norm, {CONV2}", "lrn", "same_map_norm", CONV2, IMAGES_OF),
    Case(f"fused block, {CONV1}", "fusions", "bias, LRN, pool, ReLU after", CONV1, IMAGES_OF),
    Case(f"fused block, {CONV2}", "fusions", "bias, LRN, pool, ReLU before", CONV2, IMAGES_OF),
    Case(f"max-pool, {CONV1}", "max_pool", "max_pool2d", CONV1, IMAGES_OF),
    Case(f"max-pool, {CONV2}", "max_pool", "max_pool2d", CONV2, IMAGES_OF),
    Case("dropout, 1024 x 4096", "dropout", "dropout", "4096", ROWS_OF),
    Case("bias + ReLU + dropout, 1024 x 4096", "dropout", "bias_relu_dropout", "4096", ROWS_OF),
    Case("convolution + ReLU, five layers", "conv_relu", "all five layers", "", {GPU: 128, CPU: 32}),
    Case("update of 61 million weights", "sgd", "sgd_update_", "", {GPU: 60965224, CPU: 60965224}, "forward"),
)
BY_OPERATOR = {
    "local_response_norm": ("LRN",),
    "same_map_norm": ("same-map",),
    "lrn_max_pool2d": ("fused block",),
    "max_pool2d": ("max-pool",),
    "dropout": ("dropout", "bias + ReLU + dropout"),
    "conv2d_relu": ("convolution",),
    "sgd_update_": ("update",),
}
"""The charts of single operators: how the labels of their cases begin."""


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its length, the text behind it, and whether it is ours."""

    label: str
    value: float
    text: str
    ours: bool


@dataclass(frozen=True)
class Panel:
    """Bars on one scale under a heading, and where a line marks a value for comparison."""

    heading: str
    bars: tuple[Bar, ...]
    mark: float | None = None


def read(device: str, name: str) -> dict[str, Any]:
    """A record."""
    if device == CPU and not (RESULTS / device / f"{name}.json").exists():
        device = CPU_WITHOUT_BF16  # the convolutions in fp32
    record: dict[str, Any] = json.loads((RESULTS / device / f"{name}.json").read_text())
    return record


def times(case: Case, device: str) -> dict[str, dict[str, Any]]:
    """The rows of a case with a time, by provider."""
    shape = [case.batches[device], *(int(side) for side in case.sizes.split(" x ") if side)]
    rows = read(device, case.record)["rows"]
    chosen = [row for row in rows if (row["op"], row["shape"], row["direction"]) == (case.op, shape, case.direction)]
    return {row["provider"]: row for row in chosen if row["ms_p50"] is not None}


def best(rows: dict[str, dict[str, Any]], pattern: str) -> dict[str, Any] | None:
    """The fastest row whose provider matches."""
    matching = [row for name, row in rows.items() if re.search(pattern, name) and "our" not in name]
    return min(matching, key=lambda row: row["ms_p50"], default=None)


EAGER, COMPILED = r"eager|optim", r"compile"


def speeds(case: Case, device: str) -> tuple[float, float | None]:
    """How many times as fast as the best eager PyTorch are we, and is torch.compile?

    Medians of the ratios within rounds, where the record has rounds; else ratios of medians.
    """
    rows = times(case, device)
    eager, compiled = best(rows, EAGER), best(rows, COMPILED)
    assert eager is not None
    ratios = [
        None if row is None else row.get("speed_to_eager") or eager["ms_p50"] / row["ms_p50"]
        for row in (rows["ours"], compiled)
    ]
    assert ratios[0] is not None
    return ratios[0], ratios[1]


def milliseconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def title_of(device: str, name: str) -> str:
    """What was measured where: "H100, bf16, batch 128, torch 2.11"."""
    record = read(device, name)
    dtype = "bf16" if device == GPU else "fp32"
    return f"{MACHINES[device]}, {dtype}, torch {re.match(r'[0-9]+[.][0-9]+', record['versions']['torch'])[0]}"


def speed_panel(device: str) -> Panel:
    """The operators of normalisation and pooling beside the best eager PyTorch, whose speed is the line."""
    bars = []
    for case in CASES:
        if case.record not in ("lrn", "fusions", "max_pool"):
            continue
        ours, compiled = speeds(case, device)
        bars.append(Bar(case.label, ours, f"{ours:.3g} x", ours=True))
        if compiled is not None:
            bars.append(Bar("torch.compile", compiled, f"{compiled:.3g} x", ours=False))
    return Panel(f"{title_of(device, 'lrn')}, batch {IMAGES_OF[device]}; the line is PyTorch", tuple(bars), mark=1.0)


def case_panel(case: Case, device: str) -> Panel:
    """The times of all providers of a case."""
    rows = times(case, device)
    names = {
        "fastalex": next((rows[name] for name in ("ours",) if name in rows), None),
        "fastalex, Triton alone": rows.get("ours, Triton alone"),
        "fastalex, not fused": rows.get("ours, not fused"),
        "PyTorch, channels_last": rows.get("torch eager channels_last"),
        "PyTorch, NCHW": rows.get("torch eager NCHW"),
        "PyTorch": rows.get("torch eager"),
        "PyTorch, fused SGD": rows.get("torch.optim.SGD fused"),
        "PyTorch, foreach SGD": rows.get("torch.optim.SGD foreach"),
        "torch.compile": best(rows, COMPILED),
    }
    bars = (
        Bar(name, row["ms_p50"], f"{milliseconds(row['ms_p50'])} ms", name.startswith("fastalex"))
        for name, row in names.items()
        if row is not None
    )
    batch = "" if case.record in ("sgd", "dropout") else f", batch {case.batches[device]}"
    return Panel(f"{case.label}: {title_of(device, case.record)}{batch}", tuple(bars))


def step_panel(device: str, batch: int, variants: dict[str, str]) -> Panel:
    """Images per second of a training step."""
    rows = {row["variant"]: row for row in read(device, "train_step")["rows"] if row["batch"] == batch}
    bars = (
        Bar(label, rows[name]["images_per_second"], f"{rows[name]['images_per_second']:,.0f} images/s", "ours" in name)
        for name, label in variants.items()
    )
    machine = title_of(device, "train_step").replace(", bf16", "").replace(", fp32", "")
    return Panel(f"{machine}, batch {batch}", tuple(bars))


STEPS = (
    (
        GPU, 128,
        {
            "ours bf16": "fastalex, bf16, CUDA graphs", "ours bf16, no graphs": "fastalex, bf16",
            "eager bf16": "PyTorch, bf16", "ours fp32": "fastalex, fp32", "eager fp32": "PyTorch, fp32",
        },
    ),
    (
        STEP_CPU, 64,
        {
            "ours bf16": "fastalex, bf16", "compile banded bf16": "torch.compile, bf16, banded LRN",
            "eager banded bf16": "PyTorch, bf16, banded LRN", "eager bf16": "PyTorch, bf16",
            "ours fp32": "fastalex, fp32", "compile fp32": "torch.compile, fp32", "eager fp32": "PyTorch, fp32",
        },
    ),
)  # fmt: skip


def loader_panel() -> Panel:
    """Images per second of the loader and of other readers of the same files."""
    rows = {(row["reader"], row["setting"]): row["images_per_second"] for row in read(STEP_CPU, "loader")["rows"]}
    names = {
        ("shards, DALI", "2 threads"): "fastalex: DALI, from shards",
        ("shards, DALI alone", "2 threads"): "DALI alone, from shards",
        ("shards, simplejpeg", "2 workers"): "DataLoader, simplejpeg, from shards",
        ("shards, WebDataset", "2 workers"): "WebDataset, simplejpeg, from shards",
        ("shards, Pillow", "2 workers"): "DataLoader, Pillow, from shards",
    }
    bars = (Bar(label, rows[key], f"{rows[key]:,.0f} images/s", "fastalex" in label) for key, label in names.items())
    return Panel(f"{MACHINES[STEP_CPU]}, crops of 224 pixels, with augmentation", tuple(bars))


def front_panel() -> Panel:
    """The chart of the front page: our speed relative to PyTorch, whose bar is 1."""
    chosen = {f"LRN, {CONV1}": "LRN", f"fused block, {CONV1}": "fused block"}
    chosen |= {f"max-pool, {CONV1}": "max-pooling"}
    bars = []
    for case in CASES:
        if case.label in chosen:
            ours = speeds(case, GPU)[0]
            bars.append(Bar(chosen[case.label], ours, f"{ours:.3g} x", ours=True))
    step = {row["variant"]: row["images_per_second"] for row in read(GPU, "train_step")["rows"]}
    ratio = step["ours bf16"] / step["eager bf16"]
    bars.append(Bar("training step", ratio, f"{ratio:.3g} x", ours=True))
    bars.append(Bar("PyTorch", 1.0, "1 x", ours=False))
    return Panel("speed on an NVIDIA H100, torch 2.11; PyTorch = 1", tuple(bars))


# --- drawing ----------------------------------------------------------------------------------------------------------

WIDTH, LABELS, VALUES = 680, 262, 130  # pixels: the whole chart, the labels on the left, room for values on the right
ROW, HEADING, MARGIN = 24, 34, 10
_STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums; }
.title { font-size: 15px; font-weight: 600; } .label { text-anchor: end; } .own { font-weight: 600; }
"""
_COLOURS = (
    "text {{ fill: {ink}; }} .heading {{ fill: {soft}; }} .ours {{ fill: {ours}; }} .other {{ fill: {other}; }} "
    ".mark {{ stroke: {ink}; }}"
)
_LIGHT = _COLOURS.format(ink="#1f2328", soft="#59636e", ours="#2f6fbf", other="#b6bfc9")
_DARK = _COLOURS.format(ink="#e6edf3", soft="#9aa4af", ours="#6cb0ff", other="#4b5560")


def draw(title: str, panels: Sequence[Panel], width: int = WIDTH, labels: int = LABELS) -> str:
    """A chart as SVG: horizontal bars from 0, ours in colour. It follows the reader's light or dark mode."""
    y = MARGIN + 18
    parts = [f'<text class="title" x="{MARGIN}" y="{y}">{escape(title)}</text>']
    for panel in panels:
        y += HEADING
        parts.append(f'<text class="heading" x="{MARGIN}" y="{y - 8}">{escape(panel.heading)}</text>')
        scale = (width - labels - VALUES) / max(bar.value for bar in panel.bars)
        top = y
        for bar in panel.bars:
            length = round(scale * bar.value, 1)
            own = " own" if bar.ours else ""
            middle = y + ROW / 2
            parts.append(f'<text class="label{own}" x="{labels - 8}" y="{middle + 4.5:g}">{escape(bar.label)}</text>')
            parts.append(
                f'<rect class="{"ours" if bar.ours else "other"}" x="{labels}" y="{y + 4}" '
                f'width="{max(length, 1):g}" height="{ROW - 8}" rx="2"/>'
            )
            value = (
                f'<text class="value{own}" x="{labels + length + 6:g}" y="{middle + 4.5:g}">{escape(bar.text)}</text>'
            )
            parts.append(value)
            y += ROW
        if panel.mark is not None:
            x = labels + round(scale * panel.mark, 1)
            parts.append(f'<line class="mark" x1="{x:g}" y1="{top}" x2="{x:g}" y2="{y}" stroke-dasharray="3 3"/>')
    height = y + MARGIN
    style = f"<style>{_STYLE}{_LIGHT}\n@media (prefers-color-scheme: dark) {{ {_DARK} }}\n</style>"
    body = "\n".join([f"<title>{escape(title)}</title>", style, *parts])
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" height="{height:g}">'
    )
    text = f"{svg}\n{body}\n</svg>\n"
    ElementTree.fromstring(text)
    return text


def charts() -> Iterator[tuple[str, str]]:
    """The file name and the content of every chart."""
    faster = "How many times as fast as PyTorch? Forward and backward"
    yield "front.svg", draw("fastalex beside PyTorch", [front_panel()], width=440, labels=130)
    yield "operators-gpu.svg", draw(faster, [speed_panel(GPU)])
    yield "operators-cpu.svg", draw(faster, [speed_panel(CPU)])
    yield "step.svg", draw("A training step of the 2012 network", [step_panel(*step) for step in STEPS])
    yield "loader.svg", draw("Decoding and augmentation", [loader_panel()])
    for name, beginnings in BY_OPERATOR.items():
        cases = [case for case in CASES if case.label.startswith(beginnings)]
        title = "Time of the update" if name == "sgd_update_" else "Time of forward and backward together"
        yield f"{name}.svg", draw(title, [case_panel(case, device) for device in (GPU, CPU) for case in cases])


if __name__ == "__main__":
    for name, content in charts():
        (IMAGES / name).write_text(content)
