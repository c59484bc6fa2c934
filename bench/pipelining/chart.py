"""The chart of one pipelined step: when each worker computes which micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import harness
from harness.charts import plt
from matplotlib.patches import Patch

from fastalex.parallel.partition import format_split
from pipelining.simulation import SimulatedStep, Span, bubble_fractions
from pipelining.workers import Trial

COLORS = {"forward": "#9ecae1", "backward": "#3182bd", "finish": "#d9d9d9", "reduce": "#fdd0a2"}
LABELS = {
    "forward": "forward pass",
    "backward": "backward pass",
    "finish": "deferred gradients, update",
    "reduce": "gradient reduction",
}


def draw(path: Path, measured: Sequence[Span], simulated: SimulatedStep | None, trial: Trial) -> None:
    """Draw the measured step, and below it the simulated one: one row per worker, passes by kind and micro-batch."""
    panels = [("measured", measured)] + ([("simulated", simulated.spans)] if simulated else [])
    figure, axes = plt.subplots(len(panels), 1, figsize=(11, 1.4 + 1.5 * len(panels)), sharex=True, squeeze=False)
    for axis, (title, spans) in zip(axes[:, 0], panels, strict=True):
        zero = min(span.start for span in spans)
        for span in spans:
            kind, _, _, micro_batch, _ = span.key
            width = span.end - span.start
            axis.barh(span.worker, width, left=span.start - zero, color=COLORS[kind], edgecolor="white", linewidth=0.5)
            if kind in ("forward", "backward"):
                middle = span.start - zero + width / 2
                axis.text(middle, span.worker, str(micro_batch), ha="center", va="center", size=7)
        workers = sorted({span.worker for span in spans})
        shares = bubble_fractions(spans, len(workers))
        axis.set_yticks(workers, [f"worker {w}: bubble {100 * shares[w]:.0f} %" for w in workers], size=8)
        axis.invert_yaxis()
        axis.set_title(title, size=9, loc="left")
    shown = [kind for kind in COLORS if any(span.key[0] == kind for _, spans in panels for span in spans)]
    handles = [Patch(color=COLORS[kind], label=LABELS[kind]) for kind in shown]
    axes[-1, 0].legend(handles=handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[-1, 0].set_xlabel("time (s); numbers are micro-batches", size=8)
    figure.suptitle(
        f"{trial.plan.schedule}, split at {format_split(trial.plan.split)}, {harness.device_name()}", size=10
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"wrote {path}")
