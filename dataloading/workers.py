"""Worker processes that never outlive the command they work for."""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from dataloading.errors import DatasetError
from dataloading.plan import Task
from dataloading.progress import ProgressReport

Result = TypeVar("Result")
Counter = Callable[[], None]


def results(
    work: Callable[[Task, Counter], Result], tasks: Iterator[Task], processes: int, report: ProgressReport
) -> Generator[tuple[Task, Result], None, None]:
    """Do the tasks in `processes` processes (in this one if that is 1) and yield each with its result as they come.

    Only a few tasks are taken ahead. `work` is a function of some module; it gets the task, and something to call after
    each image. Close the generator when leaving it early: that ends the processes.
    """
    if processes <= 1:
        for task in tasks:
            yield task, work(task, lambda: report.update(report.done + 1))
        return
    before, context = report.done, multiprocessing.get_context("spawn")
    counter, strangers = context.Value("q", 0), set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, context, _start_worker, (counter, os.getpid()))
    try:
        running: dict[Future[Result], Task] = {}
        while True:
            with _main_module_hidden():  # submitting a task is what starts a process
                for task in itertools.islice(tasks, 2 * processes - len(running)):
                    running[pool.submit(_in_worker, work, task)] = task
            if not running:
                break
            finished, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            report.update(before + counter.value)
            for future in finished:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise DatasetError(
            "a worker process ended before its work was done (killed, or out of memory?); the same command goes on "
            "from "
            "the finished shards; --workers sets how many processes there are"
        ) from None
    finally:
        # On errors and Ctrl-C there is no use in waiting for the shards in work: they are begun anew next time.
        if sys.exc_info()[0] is not None:
            for process in set(multiprocessing.active_children()) - strangers:
                process.terminate()
        pool.shutdown(cancel_futures=True)


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


_counter: Any = None  # of a worker: the number of images done by all of them


def _start_worker(counter: Any, parent: int) -> None:
    """Set up a worker: Ctrl-C is the parent's business, and the parent's death is the worker's, too."""
    global _counter
    _counter = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _in_worker(work: Callable[[Task, Counter], Result], task: Task) -> Result:
    return work(task, _count_one)


def _count_one() -> None:
    with _counter.get_lock():
        _counter.value += 1
