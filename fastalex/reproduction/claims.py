"""The paper's claims, each with what was published and what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fastalex.metrics import has_top5
from fastalex.reproduction.tables import NOTHING, UNSUITABLE, table2
from fastalex.reproduction.targets import Targets
from fastalex.studies.claims import OTHER_CLAIMS, PUBLISHED_ERRORS, STUDIES, Study
from fastalex.studies.comparison import MARKS, RECORD, Difference, Figure, learned_text

HEADER = ("claim", "variant", "paper", "measured", "networks")


@dataclass(frozen=True)
class Finding:
    """What was found about a claim.

    Args:
        claim: as a sentence.
        variant: what is compared, with what.
        published: the paper's figure.
        measured: ours.
        behind: the number of networks behind it.
    """

    claim: str
    variant: str
    published: str
    measured: str
    behind: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The finding as a row of a table."""
        return (self.claim, self.variant, self.published, self.measured, self.behind)


def findings(targets: Targets) -> list[Finding]:
    """One finding per variant of every study, and one per claim that other commands test."""
    found: list[Finding] = []
    for study in STUDIES.values():
        step = targets.study(study.name)
        found += _of_study(study, json.loads((step.result / RECORD).read_bytes()))
    with_top5 = has_top5(len(targets.job.main.data.classes))
    for claim, finding in zip(OTHER_CLAIMS, _others(targets, with_top5), strict=True):
        found.append(Finding(claim.claim, *finding))
    return found


def explanation() -> str:
    """What the columns hold."""
    marks = "; ".join(f"{mark} {meaning}" for mark, meaning in MARKS.items())
    return (
        "Differences are top-1 / top-5 in percentage points, the variant's error minus the base's, after the last "
        f"epoch on one centre crop. {marks}. Networks: runs of the variant."
    )


def _of_study(study: Study, record: dict[str, Any]) -> list[Finding]:
    if study.measure == "epochs":
        ratio = record["ratio"]
        fastest = " and ".join(record["fastest"].values()) or "none"
        measured = f"{ratio:.1f} times" if ratio else f"{fastest} reached it"
        runs = sum(len(row["runs"]) for row in record["rows"])
        return [
            Finding(
                study.claim, " against ".join(study.families), f"{study.published_ratio:g} times", measured, str(runs)
            )
        ]
    found = []
    base = record["rows"][0]["variant"]
    for row, variant in zip(record["rows"][1:], study.variants[1:], strict=True):
        measured = " / ".join(
            str(Difference(entry["value"], entry["is_larger"]))
            for entry in (row["top1_difference"], row["top5_difference"])
            if entry
        )
        failed = ", ".join(
            filter(
                None,
                (
                    f"{row['diverged']} diverged" if row["diverged"] else "",
                    learned_text(row["not_learned"], len(row["runs"])),
                ),
            )
        )
        measured = f"{measured or NOTHING}{f' ({failed})' if failed else ''}"
        published = str(variant.published or "no figure")
        found.append(
            Finding(study.claim, f"{variant.name}, against {base}", published, measured, str(len(row["runs"])))
        )
    return found


def _others(targets: Targets, with_top5: bool) -> list[tuple[str, str, str, str]]:
    """Pre-training, ten views and ensembles, hand-crafted features, memory and time: as ``claims.toml`` lists them."""
    table = {row.published: row for row in table2(targets).rows}

    def errors(top1: Figure | None, top5: Figure | None) -> str:
        kinds = (top1, top5) if with_top5 else (top1,)
        return " / ".join(NOTHING if figure is None else f"{figure.mean:.2f}" for figure in kinds)

    def paper(worse: str, better: str) -> str:
        return f"{PUBLISHED_ERRORS[worse]} to {PUBLISHED_ERRORS[better]}"

    one, pretrained, several = (table[name] for name in ("one-network", "one-pretrained-network", "five-networks"))
    count, more = len(targets.networks), len(targets.finetuned)
    measured = f"{errors(one.top1, one.top5)} to {errors(pretrained.top1, pretrained.top5)}"
    result = [
        (
            "1 CNN* against 1 CNN",
            paper("one-network", "one-pretrained-network"),
            measured if more else NOTHING,
            f"{more} and {count}" if more else pretrained.behind,
        )
    ]
    views = [
        [(network["top1_error"], network["top5_error"]) for network in _read(targets, views)["networks"]]
        for views in (1, 10)
    ]
    single, ten = ([Figure.of([pair[place] for pair in errors_]) for place in (0, 1)] for errors_ in views)
    text = f"{errors(*single)} to {errors(*ten)}"
    if count > 1:
        text += f" to {errors(several.top1, several.top5)}"
    published = f"{paper('network-2010-one-view', 'network-2010')}; {paper('one-network', 'five-networks')}"
    result.append(
        (f"one view, ten views, {count} network{'s' if count > 1 else ''} together", published, text, str(count))
    )
    result.append(_handcrafted(targets, errors(*single), with_top5))
    plan = json.loads(targets.plan.result.read_bytes())
    memory = " and ".join(f"{stage['memory'] / 2**30:.2f}" for stage in plan["stages"])
    speed = f"{memory} GiB at batch {plan['batch_size']}; {plan['images_per_second']:.1f} images/s"
    result.append(("memory of each device, and speed", OTHER_CLAIMS[-1].published, speed, "1"))
    return result


def _handcrafted(targets: Targets, network: str, with_top5: bool) -> tuple[str, str, str, str]:
    published = f"{PUBLISHED_ERRORS['sift-fisher-vectors-2010']} to {PUBLISHED_ERRORS['network-2010']}"
    what = "SIFT + Fisher vectors against the network, one view"
    if 1.0 not in targets.baselines:
        return (what, published, NOTHING, UNSUITABLE)
    values = [json.loads(step.result.read_bytes()) for step in targets.baselines[1.0]]
    names = ("top1_error", "top5_error")[: 1 + with_top5]
    means = [sum(value[name] for value in values) / len(values) for name in names]
    text = f"{' / '.join(f'{mean:.2f}' for mean in means)} to {network}"
    return (what, published, text, f"{len(values)} and {len(targets.networks)}")


def _read(targets: Targets, views: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(targets.evaluation(views).result.read_bytes())
    return values
