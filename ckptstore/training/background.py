"""Background: runs one job at a time on a thread of its own.

The error of a job is raised by the next call, and the interpreter waits for the job before it
exits. There is no queue: a second job waits for the first. Where the system starts no more threads,
the caller does the job. In a forked child there is no job: the one in flight is the parent's.
"""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from ckptstore.forks import free_in_child, renewed

if TYPE_CHECKING:
    from collections.abc import Callable


class Background:
    """Runs one job at a time beside the caller.

    The thread is kept between jobs: starting one blocks the caller until it runs, measured at
    2.5 ms.
    """

    def __init__(self) -> None:
        self._begin()
        _waited_for.add(self)
        renewed(self, Background._begin)

    def _begin(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ckptstore-save")
        self._job: Future[object] | None = None

    @property
    def is_busy(self) -> bool:
        """True while a job is running."""
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], object]) -> None:
        """Start a job once the previous one has ended; raise the error of that one instead."""
        self.wait()
        try:
            self._job = self._thread.submit(job)
        except RuntimeError:  # no thread can be started, or the interpreter ends
            self._begin()  # the thread pool has kept the job
            job()

    def wait(self) -> None:
        """Wait for the job and raise its error, once."""
        if self._job is not None:
            job, self._job = self._job, None
            try:
                job.result()
            except KeyboardInterrupt:  # interrupts only this wait; the job continues
                self._job = job
                raise

    def raise_error(self) -> None:
        """Raise the error of a job that has ended, once."""
        if not self.is_busy:
            self.wait()


_waited_for: weakref.WeakSet[Background] = weakref.WeakSet()
ending = free_in_child(threading.Event())  # set when the interpreter ends: no job waits any longer


def finish_all() -> None:
    """Wait for all jobs, and print their errors: no caller is left to catch them."""
    ending.set()
    for background in list(_waited_for):
        try:
            background.wait()
        except BaseException:  # noqa: BLE001 - the interpreter ends
            sys.stderr.write("ckptstore: the last save failed after training had ended:\n")
            traceback.print_exc()


# Not atexit, which runs after thread pools have been closed, and a save needs them. The pools
# register themselves in the same way when they are imported, as above, and the last to register is
# called first.
threading._register_atexit(finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
