"""Background: one job at a time on a thread of its own, whose error is raised at the next call and which exit waits for."""

from __future__ import annotations

import sys
import threading
import traceback
import weakref
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import ckptstore.parallel  # noqa: F401 - its thread pools must have registered with the interpreter's exit before us

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Background(Generic[Result]):
    """Does one job at a time beside the caller."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None
        _waited_for.add(self)

    @property
    def is_busy(self) -> bool:
        """True while a job is being done."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[], Result]) -> None:
        """Begin a job, once the one before is done; that one's error is raised instead."""
        self.wait()

        def run() -> None:
            try:
                self._result = job()
            except BaseException as error:  # noqa: BLE001 - whoever calls next gets it, whatever it is
                self._error = error

        self._thread = threading.Thread(target=run, name="ckptstore-save", daemon=True)
        self._thread.start()

    def wait(self) -> Result | None:
        """Wait for the job, and raise its error: the result of the last one that went well."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_error()
        return self._result

    def raise_error(self) -> None:
        """Raise the error of a job that has ended, once."""
        if not self.is_busy and self._error is not None:
            error, self._error = self._error, None
            raise error

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


# Not atexit: that comes after thread pools have been closed, and a save needs them. It is how these register themselves.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001
