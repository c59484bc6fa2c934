"""Worker processes that never outlive the command they work for, and that an image may crash without ending it."""

import contextlib
import ctypes
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic, TypeVar

from dataloading.errors import DatasetError
from dataloading.images import Treatment, treat
from dataloading.plan import Task, read_entry
from dataloading.progress import ProgressReport
from dataloading.sources import Entry

Result = TypeVar("Result")
Counter = Callable[[], None]
_CONTEXT = multiprocessing.get_context("spawn")
_NOT_BEGUN = -1
_STOP = -1  # place of the request to stop, after those of the tasks
_DEATHS = 3  # that no image explains, with no task finished in between, before it is given up


def results(
    work: Callable[[Task, Counter], Result], tasks: Iterator[Task], processes: int, report: ProgressReport
) -> Generator[tuple[Task, Result], None, None]:
    """Do the tasks in `processes` processes (in this one if that is 0) and yield each with its result as they come.

    Only a few tasks are taken ahead. `work` is a function of some module; it gets the task, and something to call after
    each image. Close the generator when leaving it early: that ends the processes.

    When a process dies, the images that were being decoded are tried once more, each in a process of its own. One that
    ends that process too gets this as the `problem` of its entry. Then the unfinished tasks are begun anew.

    Raises:
        DatasetError: processes die again and again, and no image is to blame.
    """
    if processes == 0:
        for task in tasks:
            yield task, work(task, lambda: report.update(report.done + 1))
        return
    done, deaths = report.done, 0
    while True:
        crew = _Crew(work, processes)
        try:
            while crew.take(tasks):
                for task, result in crew.finished():
                    done, deaths = done + len(task.entries), 0
                    yield task, result
                report.update(done + crew.images_done())
            return
        except BrokenProcessPool:
            unfinished = crew.unfinished()
        finally:
            crew.end()
        again = [_without_crashing_image(task, place) for task, place in unfinished]
        deaths += again == [task for task, _ in unfinished]
        if deaths == _DEATHS:
            raise DatasetError(
                f"worker processes were killed {deaths} times (out of memory?); the same command goes on from the "
                "finished shards; --workers sets how many processes there are"
            )
        tasks = itertools.chain(again, tasks)


class _Crew(Generic[Result]):
    """A pool of processes, the tasks that it was given, and how far each of them is."""

    def __init__(self, work: Callable[[Task, Counter], Result], processes: int) -> None:
        self._work = work
        # Images done of each task in work, and at the end whether to stop. Each number is written by one process only,
        # so there is no lock that a dying process could keep.
        self._places = _CONTEXT.RawArray("q", 2 * processes + 1)
        self._tasks: dict[int, Task] = {}  # by number of the place
        self._futures: dict[Future[Result], int] = {}
        self._pool = ProcessPoolExecutor(processes, _CONTEXT, _start_worker, (self._places, os.getpid()))

    def take(self, tasks: Iterator[Task]) -> bool:
        """Fill the free places; return whether there is anything in work."""
        free = [number for number in range(len(self._places) - 1) if number not in self._tasks]
        with _main_module_hidden():  # submitting a task is what starts a process
            for number, task in zip(free, tasks, strict=False):
                self._tasks[number], self._places[number] = task, _NOT_BEGUN
                self._futures[self._pool.submit(_in_worker, self._work, task, number)] = number
        return bool(self._tasks)

    def finished(self) -> Iterator[tuple[Task, Result]]:
        """Wait a moment, and yield the tasks that are finished by then."""
        finished, _ = wait(self._futures, timeout=0.2, return_when=FIRST_COMPLETED)
        for future in finished:
            result = future.result()
            yield self._tasks.pop(self._futures.pop(future)), result

    def images_done(self) -> int:
        """Return how many images of the tasks in work are done."""
        return sum(max(self._places[number], 0) for number in self._tasks)

    def unfinished(self) -> list[tuple[Task, int]]:
        """Return the tasks in work, each with the place of the image that is next, or `_NOT_BEGUN`."""
        return [(task, self._places[number]) for number, task in self._tasks.items()]

    def end(self) -> None:
        """End the processes after the image that each is at; the shards in work are begun anew next time."""
        # They are told, not killed: a process that is killed while it hands over a result leaves the pool waiting for
        # the rest of it.
        self._places[_STOP] = 1
        self._pool.shutdown(cancel_futures=True)


def _without_crashing_image(task: Task, place: int) -> Task:
    """Return the task with the `problem` of the image at `place`, if decoding it ends a process."""
    if not 0 <= place < len(task.entries):
        return task
    entry = task.entries[place]
    problem = entry.problem or _crash(entry, task.treatment)
    return dataclasses.replace(
        task, entries=[*task.entries[:place], entry._replace(problem=problem), *task.entries[place + 1 :]]
    )


def _crash(entry: Entry, treatment: Treatment) -> str:
    """Treat an image in a process of its own; return how that process was ended, if it was."""
    process = _CONTEXT.Process(target=_try, args=(entry, treatment, os.getpid()), daemon=True)
    with _main_module_hidden():
        process.start()
    process.join()
    code = process.exitcode or 0
    if not code:
        return ""
    how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    return f"crashes the process that decodes it: {how}"


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep spawned processes from importing the program that was started, as they do where they can find it.

    They need nothing of it, it may be large (a trainer), and without its ``if __name__ == "__main__":`` it would run.
    """
    main = sys.modules["__main__"]
    hidden = {name: value for name, value in vars(main).items() if name in ("__spec__", "__file__")}
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


# --- in the worker processes ------------------------------------------------------------------------------------------

_places: Any = None  # shared by all: how many images are done of each task in work, and whether to stop


class _Stopped(Exception):
    """The result of this task is no longer wanted."""


def _start_worker(places: Any, parent: int) -> None:
    """Set up a worker: Ctrl-C is the parent's business, and the parent's death is the worker's, too."""
    global _places
    _places = places
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _in_worker(work: Callable[[Task, Counter], Result], task: Task, number: int) -> Result:
    def count() -> None:
        if _places[_STOP]:
            raise _Stopped
        _places[number] += 1

    count()  # from not begun to the first image
    return work(task, count)


def _try(entry: Entry, treatment: Treatment, parent: int) -> None:
    _start_worker(None, parent)
    with contextlib.suppress(Exception):  # only what ends the process matters here
        treat(read_entry(entry, treatment.max_bytes), treatment)
