"""Pictures of what the operators do: numbers before and after, computed by the operators themselves.

    python docs/sketches.py

draws docs/images/sketch-*.svg again. A test compares them with what the operators compute.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import kernels  # noqa: E402

IMAGES = ROOT / "docs" / "images"
RESPONSES = [0.5, 1.0, -0.4, 0.8, 6.0, 1.2, -0.7, 0.4, 1.0, 2.5, 2.4, 2.6, -0.5, 0.9, -1.6, 0.6]
"""Responses of 16 channels or pixels: one is much stronger than its neighbours, three are of middle strength."""

WIDTH, PANEL, HEIGHT, TOP = 680, 300, 116, 40  # pixels: the picture, a panel and its bars, the room above them
_STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.base { stroke-width: 1; } .arrow { font-size: 22px; text-anchor: middle; }
"""
_COLOURS = "text {{ fill: {ink}; }} .bar {{ fill: {bar}; }} .base {{ stroke: {ink}; }}"
_LIGHT, _DARK = _COLOURS.format(ink="#1f2328", bar="#2f6fbf"), _COLOURS.format(ink="#e6edf3", bar="#6cb0ff")


def draw(before: tuple[str, Sequence[float]], after: tuple[str, Sequence[float]], operator: str) -> str:
    """Two rows of bars beside each other, each on its own scale, with negative values below the line."""
    parts = [f"<title>{escape(f'{operator}: {before[0]}, {after[0]}')}</title>"]
    parts.append(f"<style>{_STYLE}{_LIGHT}\n@media (prefers-color-scheme: dark) {{ {_DARK} }}\n</style>")
    for left, (label, values) in ((10, before), (WIDTH - PANEL - 10, after)):
        highest, lowest = max(0.0, *values), min(0.0, *values)
        scale = HEIGHT / (highest - lowest or 1.0)
        zero, step = TOP + highest * scale, PANEL / len(values)
        parts.append(f'<text x="{left}" y="24">{escape(label)}</text>')
        for index, value in enumerate(values):
            length = round(abs(value) * scale, 1)
            y = zero - length if value > 0 else zero
            parts.append(
                f'<rect class="bar" x="{left + index * step + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}" '
                f'height="{length:g}"/>'
            )
        parts.append(f'<line class="base" x1="{left}" y1="{zero:.1f}" x2="{left + PANEL}" y2="{zero:.1f}"/>')
    parts.append(f'<text class="arrow" x="{WIDTH / 2:g}" y="{TOP + HEIGHT / 2:g}">→</text>')
    size = f'viewBox="0 0 {WIDTH} {TOP + HEIGHT + 14}" width="{WIDTH}" height="{TOP + HEIGHT + 14}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>", ""])


def sketches() -> Iterator[tuple[str, str]]:
    """The name of every operator with a picture, and the picture."""
    channels = torch.tensor(RESPONSES).view(1, -1, 1, 1)
    row = torch.tensor(RESPONSES).view(1, 1, 1, -1)
    strong = {"alpha": 0.5, "beta": 0.75, "k": 2.0}  # larger than the network's alpha, so that the effect can be seen
    here = ("responses of 16 channels at one pixel", RESPONSES)

    normalised = kernels.local_response_norm(channels, 5, **strong)
    yield "local_response_norm", draw(here, ("normalised over 5 channels", flat(normalised)), "local_response_norm")

    pixels = ("responses of one channel in a row of 16 pixels", RESPONSES)
    normalised = kernels.same_map_norm(row, 5, **strong)
    yield "same_map_norm", draw(pixels, ("normalised over 5 pixels", flat(normalised)), "same_map_norm")

    square = row.expand(1, 1, 3, -1).contiguous()
    fused = kernels.same_map_norm_max_pool2d(square, 5, **strong)
    yield "same_map_norm_max_pool2d", draw(pixels, ("normalised, then pooled", flat(fused)), "same_map_norm_max_pool2d")

    pooled = kernels.max_pool2d(square, 3, 2)
    yield "max_pool2d", draw(pixels, ("maxima of windows of 3 pixels, 2 apart", flat(pooled)), "max_pool2d")

    fused = kernels.lrn_max_pool2d(square.expand(1, 3, 3, -1).contiguous(), 3, relu="after", **strong)
    after = ("normalised, pooled, ReLU", flat(fused[:, 1]))
    yield "lrn_max_pool2d", draw(("a row of the convolution's raw output", RESPONSES), after, "lrn_max_pool2d")

    edge = torch.tensor([[[[-1.0, 0.0, 1.0]]]])
    rectified = kernels.conv2d_relu(row, edge, padding=(0, 1))
    after = ("convolved with (-1, 0, 1), ReLU", flat(rectified))
    yield "conv2d_relu", draw(("a row of 16 pixels", RESPONSES), after, "conv2d_relu")

    features = torch.tensor(RESPONSES).view(1, -1).abs()
    dropped = kernels.dropout(features, 0.5, seed=3)
    before = ("16 features", flat(features))
    yield "dropout", draw(before, ("half of them dropped, the others doubled", flat(dropped)), "dropout")

    logits = torch.tensor([RESPONSES]).requires_grad_()
    loss, _ = kernels.cross_entropy(logits, torch.tensor([9]))
    loss.backward()
    assert logits.grad is not None
    before = ("scores of 16 classes; the tenth is right", RESPONSES)
    yield "cross_entropy", draw(before, ("gradient of the loss", flat(logits.grad)), "cross_entropy")

    weight, velocity = torch.zeros(1), torch.zeros(1)
    velocities = []
    for number in range(24):
        rate = 0.01 if number < 12 else 0.001
        kernels.sgd_update_(
            [weight], [torch.ones(1)], [velocity], learning_rates=[rate], weight_decays=[0.0], momentum=0.9
        )
        velocities.append(float(velocity))
    before = ("learning rate of 24 updates", [0.01] * 12 + [0.001] * 12)
    yield "sgd_update_", draw(before, ("velocity, with a gradient of 1", velocities), "sgd_update_")


def flat(values: torch.Tensor) -> list[float]:
    """The values of a tensor."""
    return [float(value) for value in values.detach().flatten()]


if __name__ == "__main__":
    for name, picture in sketches():
        (IMAGES / f"sketch-{name}.svg").write_text(picture)
