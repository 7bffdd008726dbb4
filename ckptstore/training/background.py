"""Background: one job at a time on a thread of its own, whose error is raised at the next call and which exit waits for."""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Does one job at a time beside the caller.

    The thread stays from job to job: whoever starts a thread waits until it runs, which took 2.5 ms.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "ckptstore-save")
        self._job: Future[Result] | None = None
        self._result: Result | None = None
        _waited_for.add(self)

    @property
    def is_busy(self) -> bool:
        """True while a job is being done."""
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], Result]) -> None:
        """Begin a job, once the one before is done; that one's error is raised instead."""
        self.wait()
        self._job = self._thread.submit(job)

    def wait(self) -> Result | None:
        """Wait for the job, and raise its error, once: the result of the last one that went well."""
        if self._job is not None:
            job, self._job = self._job, None
            try:
                self._result = job.result()
            except KeyboardInterrupt:  # of the one who waits: the job goes on
                self._job = job
                raise
        return self._result

    def raise_error(self) -> None:
        """Raise the error of a job that has ended, once."""
        if not self.is_busy:
            self.wait()

    def finish_at_exit(self) -> None:
        """Wait; nobody is left to catch an error, so it is printed."""
        try:
            self.wait()
        except BaseException:  # noqa: BLE001 - the interpreter ends
            sys.stderr.write("ckptstore: the last save failed, after the training had ended:\n")
            traceback.print_exc()


_waited_for: weakref.WeakSet[Background[Any]] = weakref.WeakSet()


def _finish_all() -> None:
    for background in list(_waited_for):
        background.finish_at_exit()


# Not atexit: that comes after thread pools have been closed, and a save needs them. They register themselves in this way
# when they are imported, as they are above, and who registered last is called first.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
