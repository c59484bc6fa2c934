"""Worker processes that end with the command they work for, and survive images that crash their decoder."""

import contextlib
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
from dataloading.preparation.images import ImageOptions, prepare_entry, stderr_muted
from dataloading.preparation.shard_plan import Task
from dataloading.process import die_with_parent
from dataloading.progress_bar import ProgressBar
from dataloading.sources.entries import Entry

Result = TypeVar("Result")
Tick = Callable[[], None]  # called after each image
_CONTEXT = multiprocessing.get_context("spawn")
_NOT_STARTED = -1
_MAX_DEATHS = 3  # of workers, without an image to blame and without a finished task in between
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS}


def run_tasks(
    work: Callable[[Task, Tick], Result], tasks: Iterator[Task], processes: int, bar: ProgressBar
) -> Generator[tuple[Task, Result], None, None]:
    """Run `work` on every task in worker processes and yield (task, result) as they finish.

    If a worker dies, the image that it was decoding is tried once more, in a process of its own. If that process dies
    too, the image's entry gets this as its `problem`. Then another worker repeats the task.

    Args:
        work: a function at module level; called with the task and a function to call after each image.
        tasks: read as workers become free, one task per worker.
        processes: number of worker processes; 0 works in this process.
        bar: updated with the number of finished images.

    Close the generator to stop early: that ends the workers.

    Raises:
        DatasetError: workers die again and again, and no image is to blame.
    """
    if processes == 0:
        for task in tasks:
            yield task, work(task, lambda: bar.update(bar.done + 1))
        return
    done, deaths, workers = bar.done, 0, []
    try:
        for _ in range(processes):
            workers.append(_Worker(work))
        while busy := [worker for worker in workers if worker.give(tasks)]:
            for worker in _with_answer(busy):
                task_at_hand = worker.task
                try:
                    result = worker.answer()
                except _Died:
                    again = task_at_hand and _without_crashing_image(task_at_hand, worker.position.value)
                    deaths += again == task_at_hand
                    if deaths == _MAX_DEATHS:
                        raise DatasetError(_killed(deaths, worker)) from None
                    tasks = itertools.chain([again], tasks) if again else tasks
                    worker.end()
                    workers[workers.index(worker)] = _Worker(work)
                    continue
                if task_at_hand:
                    done, deaths = done + len(task_at_hand.entries), 0
                    worker.give(tasks)  # before the caller spends time on this result
                    yield task_at_hand, result
            bar.update(done + sum(max(worker.position.value, 0) for worker in workers))
    finally:
        for worker in workers:
            worker.end()


class _Died(Exception):
    """The process ended without an answer."""


class _Worker(Generic[Result]):
    """A process and its current task.

    Each worker has a pipe of its own, without locks and other writers. So if it is killed at any moment, even while it
    sends a result, this process sees the end of the pipe, and the other workers are not affected.
    """

    def __init__(self, work: Callable[[Task, Tick], Result]) -> None:
        self.task: Task | None = None
        self.position = _CONTEXT.RawValue("q", _NOT_STARTED)  # finished images of the task; the worker writes it
        self._busy = True  # the first answer says that the process has started
        self.connection, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(work, theirs, self.position, os.getpid()), daemon=True)
        with _main_module_hidden():
            self._process.start()
        theirs.close()

    def give(self, tasks: Iterator[Task]) -> bool:
        """Send the next task if the process has none; return whether an answer is pending."""
        if not self._busy and (task := next(tasks, None)):
            self.task, self.position.value, self._busy = task, _NOT_STARTED, True
            with contextlib.suppress(ConnectionError):  # the process has died; `answer` will notice
                self.connection.send(task)
        return self._busy

    def answer(self) -> Result:
        """Return the result of the task (None after the start of the process), or raise the worker's exception.

        Raises:
            _Died: the process ended.
        """
        try:
            result, error = self.connection.recv()
        except (EOFError, OSError):
            raise _Died from None
        self.task, self.position.value, self._busy = None, _NOT_STARTED, False
        if error:
            raise error
        return result

    def end(self) -> None:
        """End the process after its current image. Its shard is not finished."""
        self.connection.close()  # the worker notices
        self._process.join()


def _with_answer(workers: list[_Worker[Result]]) -> list[_Worker[Result]]:
    """Wait up to 0.2 seconds; return the workers that have answered or died."""
    ready = wait([worker.connection for worker in workers], timeout=0.2)
    return [worker for worker in workers if worker.connection in ready]


def _without_crashing_image(task: Task, position: int) -> Task:
    """Return the task, with a `problem` for the image at `position` if decoding it crashes a process."""
    if not 0 <= position < len(task.entries):
        return task
    entry = task.entries[position]
    entry = entry._replace(problem=entry.problem or _crash(entry, task.options))
    return dataclasses.replace(task, entries=[*task.entries[:position], entry, *task.entries[position + 1 :]])


def _killed(deaths: int, worker: "_Worker[Any]") -> str:
    """Return the message for workers that were killed again and again."""
    task, position = worker.task, worker.position.value
    where = f", the last one at {task.entries[position].name}" if task and 0 <= position < len(task.entries) else ""
    return (
        f"worker processes were killed {deaths} times{where} (out of memory?); the same command continues from the "
        "finished shards, and workers sets the number of processes"
    )


def _crash(entry: Entry, options: ImageOptions) -> str:
    """Prepare an image in a process of its own; return how that process crashed, or an empty string.

    An image is to blame only if its decoder crashes. A process that does not even begin, or that somebody kills (the
    kernel does so when memory runs out), says nothing about the image.
    """
    has_begun = _CONTEXT.RawValue("b", 0)
    process = _CONTEXT.Process(target=_try, args=(entry, options, has_begun, os.getpid()), daemon=True)
    with _main_module_hidden():
        process.start()
    process.join()
    code = process.exitcode or 0
    if not code or not has_begun.value or (code < 0 and -code not in _CRASHES):
        return ""
    how = signal.strsignal(-code) if code < 0 else f"exit code {code}"
    return f"crashes the process that decodes it: {how}"


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep spawned processes from importing the main module of the running program, as they do by default.

    They do not need it, it may be slow to import (a trainer), and without ``if __name__ == "__main__":`` it would run.
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
    """The result of this task is no longer needed."""


def _serve(work: Callable[[Task, Tick], Result], tasks: Connection, position: Any, parent: int) -> None:
    """Main function of a worker: run tasks until the other end of the pipe is closed."""
    _set_signals(parent)

    def tick() -> None:
        if tasks.poll():  # nothing is sent while a task is running, so this is the end of the pipe
            raise _Stopped
        position.value += 1

    answer: tuple[Result | None, Exception | None]
    with contextlib.suppress(EOFError, ConnectionError, _Stopped):
        tasks.send((None, None))
        while True:
            task = tasks.recv()
            try:
                tick()  # from _NOT_STARTED to 0
                with stderr_muted():
                    answer = work(task, tick), None
            except Exception as error:
                if isinstance(error, _Stopped):
                    raise
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
                answer = None, error
            tasks.send(answer)


def _set_signals(parent: int) -> None:
    """Leave Ctrl-C to the parent process, and die with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)


def _try(entry: Entry, options: ImageOptions, has_begun: Any, parent: int) -> None:
    """Main function of a process that tries one image."""
    _set_signals(parent)
    has_begun.value = 1
    with stderr_muted(), contextlib.suppress(Exception):  # only a crash of the process matters here
        prepare_entry(entry, options)
