"""A readers-writer lock that prefers writers, and that a reader may take again."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.forks import renewed

if TYPE_CHECKING:
    from collections.abc import Iterator


class RWLock:
    """Many threads may read at once, or one may write.

    A writer that waits comes before readers that begin after it, so that it never starves.
    """

    def __init__(self) -> None:
        self._release()
        renewed(self, RWLock._release)

    def _release(self) -> None:
        self._changed = threading.Condition()
        self._readers: Counter[int] = Counter()  # by thread
        self._is_written = False

    def is_reading(self) -> bool:
        """True while this thread reads."""
        with self._changed:
            return self._readers[threading.get_ident()] > 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it together with other readers; a thread that reads already never waits."""
        reader = threading.get_ident()  # another thread may leave the block
        with self._changed:
            while self._is_written and not self._readers[reader]:
                self._changed.wait()
            self._readers[reader] += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers[reader] -= 1
                self._readers += Counter()  # drops the threads that are at 0
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold it alone."""
        with self._changed:
            while self._is_written:
                self._changed.wait()
            self._is_written = True  # from here on no other thread begins to read
        try:
            with self._changed:
                while self._readers:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._is_written = False
                self._changed.notify_all()
