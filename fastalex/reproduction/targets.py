"""Which steps each table, figure and claim needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fastalex.reproduction import steps
from fastalex.reproduction.job import Job
from fastalex.reproduction.steps import Baseline, Drawing, Step, StudyStep, Training
from fastalex.studies.claims import STUDIES

TABLE_1_NETWORKS, TABLE_2_NETWORKS, PRETRAINED_NETWORKS = 1, 5, 2
"""Networks of the paper's rows: "CNN" in table 1, "5 CNNs" in table 2, and the two pre-trained ones of "7 CNNs*"."""

CLAIM_SEEDS = 3
"""Seeds of what the paper gives no number of networks for."""


@dataclass(frozen=True)
class Targets:
    """The steps of a job. Everything is decided from the job alone, so each call makes the same steps.

    Args:
        job: what is reproduced.
        batch_size: images per update of the network.
    """

    job: Job
    batch_size: int

    @cached_property
    def plan(self) -> Step:
        """Figure 2, memory, and the measured speed."""
        return steps.plan(self.job, len(self.job.main.data.classes), self.batch_size)

    @cached_property
    def first_networks(self) -> list[Training]:
        """Networks of table 1."""
        job = self.job
        return [steps.network(job, job.first, seed) for seed in range(job.networks(TABLE_1_NETWORKS))]

    @cached_property
    def networks(self) -> list[Training]:
        """Networks of table 2; a single one if only a figure asks for it."""
        job = self.job
        count = job.networks(TABLE_2_NETWORKS) if {"table2", "claims"} & set(job.targets) else 1
        return [steps.network(job, job.main, seed) for seed in range(count)]

    @cached_property
    def pretrained(self) -> list[Training]:
        """Networks before they are trained on; none without a pre-training set."""
        job = self.job
        if job.pretraining is None:
            return []
        count = min(PRETRAINED_NETWORKS, job.networks(PRETRAINED_NETWORKS))
        return [steps.pretrained(job, job.pretraining, seed) for seed in range(count)]

    @cached_property
    def finetuned(self) -> list[Training]:
        """The pre-trained networks of table 2."""
        return [steps.finetuned(self.job, self.job.main, run, seed) for seed, run in enumerate(self.pretrained)]

    def first_evaluation(self, views: int) -> Step:
        """Errors for table 1."""
        runs = self.first_networks
        return steps.evaluation(self.job, self.job.first, runs, views, f"{self.job.first.name}-{len(runs)}")

    def evaluation(self, views: int) -> Step:
        """Errors of the networks of table 2, together and alone."""
        runs = self.networks
        return steps.evaluation(self.job, self.job.main, runs, views, f"{self.job.main.name}-{len(runs)}")

    @cached_property
    def pretrained_evaluation(self) -> Step | None:
        """Errors of these together with the pre-trained networks; None without these."""
        if not self.finetuned:
            return None
        runs = [*self.networks, *self.finetuned]
        name = f"{self.job.main.name}-{len(self.networks)}-and-{len(self.finetuned)}"
        return steps.evaluation(self.job, self.job.main, runs, 10, name)

    @cached_property
    def first_baselines(self) -> list[Baseline]:
        """Hand-crafted features for table 1; none on too few or too many images."""
        job = self.job
        if not steps.allows_baseline(job.first):
            return []
        return [steps.baseline(job, job.first, seed) for seed in range(job.networks(TABLE_1_NETWORKS))]

    @cached_property
    def baselines(self) -> dict[float, list[Baseline]]:
        """Hand-crafted features on fractions of the images, as the study of data set size has them."""
        job = self.job
        seeds = range(job.networks(CLAIM_SEEDS))
        fractions = [part for part in steps.FRACTIONS if steps.allows_baseline(job.main, part)]
        return {part: [steps.baseline(job, job.main, seed, part) for seed in seeds] for part in fractions}

    def study(self, name: str) -> StudyStep:
        """The study of a claim."""
        return steps.study(self.job, self.job.main, name)

    def steps(self) -> list[Step]:
        """All steps in the order in which they run, each once."""
        found: dict[str, Step] = {}
        for step in self._needed():
            found.setdefault(str(step.result), step)
        if self.report:
            found[str(self.report.result)] = self.report
        return list(found.values())

    @cached_property
    def report(self) -> Drawing | None:
        """The report of the networks, with figure 4; None if there are none."""
        job = self.job
        if set(job.targets) - {"table1", "figure1", "figure2"}:
            return steps.report(job, job.main, self.networks)
        return steps.report(job, job.first, self.first_networks) if "table1" in job.targets else None

    def _needed(self) -> Iterator[Step]:
        job = self.job
        yield self.plan
        if "table1" in job.targets:
            yield from self.first_networks
            yield from (self.first_evaluation(1), self.first_evaluation(10))
            yield from self.first_baselines
        if {"table2", "claims"} & set(job.targets):
            yield from self.networks
            yield from (self.evaluation(1), self.evaluation(10))
            yield from (*self.pretrained, *self.finetuned)
            if self.pretrained_evaluation:
                yield self.pretrained_evaluation
        if "figure1" in job.targets:
            yield self.study("activation")
        if {"figure3", "figure4"} & set(job.targets):
            yield self.networks[0]
            yield steps.kernels(job, self.networks[0])
        if "claims" in job.targets:
            for baselines in self.baselines.values():
                yield from baselines
            for name in STUDIES:
                yield self.study(name)
