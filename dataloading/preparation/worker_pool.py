"""Worker processes that never outlive the command they work for, and that an image may crash without ending it."""

import contextlib
import ctypes
import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection, wait
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
_DEATHS = 3  # that no image explains, with no task finished in between, before it is given up


def results(
    work: Callable[[Task, Counter], Result], tasks: Iterator[Task], processes: int, report: ProgressReport
) -> Generator[tuple[Task, Result], None, None]:
    """Do the tasks in `processes` processes (in this one if that is 0) and yield each with its result as they come.

    Only one task for each process is taken ahead. `work` is a function of some module; it gets the task, and something
    to call after each image. Close the generator when leaving it early: that ends the processes.

    When a process dies, the image that it was decoding is tried once more, in a process of its own. If that ends too,
    the entry gets this as its `problem`. Then the task is begun anew, in another process.

    Raises:
        DatasetError: processes die again and again, and no image is to blame.
    """
    if processes == 0:
        for task in tasks:
            yield task, work(task, lambda: report.update(report.done + 1))
        return
    done, deaths, workers = report.done, 0, []
    try:
        for _ in range(processes):
            workers.append(_Worker(work))
        while busy := [worker for worker in workers if worker.give(tasks)]:
            for worker in _answering(busy):
                at = worker.task
                try:
                    result = worker.answer()
                except _Died:
                    again = at and _without_crashing_image(at, worker.place.value)
                    deaths += again == at
                    if deaths == _DEATHS:
                        raise DatasetError(
                            f"worker processes were killed {deaths} times (out of memory?); the same command goes on "
                            "from the finished shards; --workers sets how many processes there are"
                        ) from None
                    tasks = itertools.chain([again], tasks) if again else tasks
                    worker.end()
                    workers[workers.index(worker)] = _Worker(work)
                    continue
                if at:
                    done, deaths = done + len(at.entries), 0
                    worker.give(tasks)  # before the caller is busy with this result
                    yield at, result
            report.update(done + sum(max(worker.place.value, 0) for worker in workers))
    finally:
        for worker in workers:
            worker.end()


class _Died(Exception):
    """The process ended without an answer."""


class _Worker(Generic[Result]):
    """A process and the task that it is at.

    It has a pipe of its own, with no lock and no other writer. So one that is killed at any moment, even halfway
    through handing over a result, is an end of file here and nothing to the others.
    """

    def __init__(self, work: Callable[[Task, Counter], Result]) -> None:
        self.task: Task | None = None
        self.place = _CONTEXT.RawValue("q", _NOT_BEGUN)  # images done of the task, written by the process
        self._busy = True  # its first answer says that it has started
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(work, theirs, self.place, os.getpid()), daemon=True)
        with _main_module_hidden():
            self._process.start()
        theirs.close()

    def give(self, tasks: Iterator[Task]) -> bool:
        """Hand over the next task if the process has none; return whether an answer is to come."""
        if not self._busy and (task := next(tasks, None)):
            self.task, self.place.value, self._busy = task, _NOT_BEGUN, True
            with contextlib.suppress(ConnectionError):  # a process that died shows by having no answer
                self.connection.send(task)
        return self._busy

    def answer(self) -> Result:
        """Return what came of the task (of starting: None), or raise what it raised.

        Raises:
            _Died: the process ended.
        """
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            raise _Died from None
        self.task, self.place.value, self._busy = None, _NOT_BEGUN, False
        if error:
            raise error
        return result

    def end(self) -> None:
        """End the process after the image that it is at; its shard is begun anew next time."""
        self.connection.close()  # which tells it
        self._process.join()


def _answering(workers: list[_Worker[Result]]) -> list[_Worker[Result]]:
    """Wait a moment; return those that have an answer or died."""
    ready = wait([worker.connection for worker in workers], timeout=0.2)
    return [worker for worker in workers if worker.connection in ready]


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


class _Stopped(Exception):
    """The result of this task is no longer wanted."""


def _serve(work: Callable[[Task, Counter], Result], tasks: Connection, place: Any, parent: int) -> None:
    """Do one task after the other until the other end of the pipe is closed."""
    _obey(parent)

    def count() -> None:
        if tasks.poll():  # nothing is sent while a task is in work, so this is the end of the pipe
            raise _Stopped
        place.value += 1

    answer: tuple[Result | None, Exception | None]
    with contextlib.suppress(EOFError, ConnectionError, _Stopped):
        tasks.send((None, None))
        while True:
            task = tasks.recv()
            try:
                count()  # from not begun to the first image
                answer = work(task, count), None
            except Exception as error:
                if isinstance(error, _Stopped):
                    raise
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = None, error
            tasks.send(answer)


def _obey(parent: int) -> None:
    """Leave Ctrl-C to the parent, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _try(entry: Entry, treatment: Treatment, parent: int) -> None:
    _obey(parent)
    with contextlib.suppress(Exception):  # only what ends the process matters here
        treat(read_entry(entry, treatment.max_bytes), treatment)
