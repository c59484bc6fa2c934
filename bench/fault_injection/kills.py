"""Killing a command again and again, and repeating it until it finishes."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from fault_injection.comparison import differences
from fault_injection.jobs import JOBS, Job, Workplace
from fault_injection.moments import Moment
from fault_injection.processes import Hung, Process
from fault_injection.record import Fault, Outcome


def run(place: Workplace, seed: int) -> list[Fault]:
    """One command, killed several times before it may finish. The seed decides which one, whom, and when.

    Returns:
        The kills. Where the finished result differs, all of them are wrong: nobody knows which one it was.
    """
    draw = random.Random(f"kill {seed}")
    job = draw.choices(list(JOBS), list(JOBS.values()))[0]
    folder = place.scratch()
    try:
        return _Chain(place, job, folder, seed, draw).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Chain:
    """The lives of one command, each but the last one ended by a kill."""

    place: Workplace
    job: Job
    folder: Path
    seed: int
    draw: random.Random
    kills: list[str] = field(default_factory=list)  # how

    def run(self) -> list[Fault]:
        expected, pace = self.place.undisturbed(self.job)
        most, lives = self.draw.randint(1, self.job.most_kills), 0
        while True:
            lives += 1
            moment = Moment.draw(self.draw, pace) if len(self.kills) < most and lives < 2 * most else None
            process = Process(
                self.job.next(self.place, self.folder), self.folder, self.folder / "log", forked=self.job.forked
            )
            try:
                saved = self._disturb(process, moment)
                code = process.wait()
            except Hung as error:
                return self._faults("hung", str(error))
            if saved is not None and self.job.saved(self.folder) < saved:
                return self._faults("lost", f"saved {saved}, then {self.job.saved(self.folder)}")
            if self.job.is_finished(code, process.output):
                break
            if saved is None:  # nobody has disturbed it
                return self._faults("lost", f"ends with code {code}: {last_line(process.output)}")
        found = differences(self.job.result(self.folder), expected)
        return self._faults("wrong", f"differs in {', '.join(found)}") if found else self._faults("survived", "")

    def _disturb(self, process: Process, moment: Moment | None) -> list[int] | None:
        """Kill at the moment; returns what was saved just before, or None if there was no kill."""
        if moment is None or not moment.wait(process, self.job.watched(self.folder), self.job.log(self.folder)):
            return None
        victim, saved = self.draw.choice(self.job.victims), self.job.saved(self.folder)
        if not process.kill(victim, self.draw):
            return None
        self.kills.append(f"kill {len(self.kills) + 1} of the {victim} at {moment}")
        return saved

    def _faults(self, outcome: Outcome, detail: str) -> list[Fault]:
        """All kills of the chain. A kill before the last one has survived if the job went on after it."""
        if not self.kills and outcome != "survived":
            return [Fault("kill", self.seed, self.job.name, "undisturbed", outcome, detail)]
        last = len(self.kills) - 1
        return [
            Fault("kill", self.seed, self.job.name, how, outcome, detail)
            if outcome in ("survived", "wrong") or number == last
            else Fault("kill", self.seed, self.job.name, how, "survived")
            for number, how in enumerate(self.kills)
        ]


def last_line(output: str) -> str:
    """The last line that a command has printed."""
    return (output.strip().splitlines() or [""])[-1]
