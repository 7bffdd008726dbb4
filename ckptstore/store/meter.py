"""Meter: the progress of a long operation, counted where bytes pass.

Any thread that reads, stores, checks or deletes objects adds to the meter of its `ObjectStore`. The
operation sets the expected total. Without a listener this costs one comparison (docs/adr/0047).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING, Literal

from ckptstore.forks import free_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Kind = Literal["read", "stored", "verified", "deleted"]

_numbers = count(1)  # of the operations of this process


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of an operation.

    Attributes:
        kind: "read", "stored" (also for bytes that were stored already) or "verified" for bytes,
            "deleted" for objects.
        done: The bytes or objects so far.
        total: The bytes or objects in all; 0 if unknown.
        operation: A number that no other operation of this process has. One call may begin several
            operations. 0 for what is read before any.
    """

    kind: str
    done: int
    total: int
    operation: int = 0


class Meter:
    """Counts for one listener."""

    def __init__(self) -> None:
        self.listener: Callable[[Progress], object] | None = None
        self._kind: Kind = "read"
        self._done = self._total = self._operation = 0
        self._lock = free_in_child(Lock())

    @contextmanager
    def heard_by(self, listener: Callable[[Progress], object]) -> Iterator[None]:
        """Use another listener in this block."""
        before, self.listener = self.listener, listener
        try:
            yield
        finally:
            self.listener = before

    @contextmanager
    def also_heard_by(self, listener: Callable[[Progress], object]) -> Iterator[None]:
        """Use one more listener in this block."""
        before = self.listener

        def both(progress: Progress) -> None:
            listener(progress)
            if before is not None:
                before(progress)

        with self.heard_by(both):
            yield

    def begin(self, kind: Kind, total: int) -> None:
        """Begin an operation: count from zero, and only this kind."""
        with self._lock:
            self._kind, self._done, self._total = kind, 0, total
            self._operation = next(_numbers)

    def add(self, kind: Kind, number: int) -> None:
        """Add to the count if it is of the kind being counted, and call the listener."""
        if self.listener is None or kind != self._kind:
            return
        with self._lock:
            self._done += number
            done = min(self._done, self._total) if self._total else self._done
            if self.listener is not None:
                self.listener(
                    Progress(kind=kind, done=done, total=self._total, operation=self._operation)
                )
