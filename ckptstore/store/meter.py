"""Meter: how far a long operation is, counted where bytes pass.

Objects are read, stored, checked and deleted in a few places, by any thread. Each of them adds to
the meter of its `ObjectStore`, and an operation says how much it expects. Without a listener this
costs one comparison (docs/adr/0047).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Literal

from ckptstore.forks import free_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Kind = Literal["read", "stored", "verified", "deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an operation is.

    Attributes:
        kind: What is counted: bytes "read", "stored" (or found to be stored already) or "verified",
            or objects "deleted".
        done: How much so far.
        total: How much in all; 0 where that is not known.
    """

    kind: str
    done: int
    total: int


class Meter:
    """Counts for one listener."""

    def __init__(self) -> None:
        self.listener: Callable[[Progress], object] | None = None
        self._kind: Kind = "read"
        self._done = self._total = 0
        self._lock = free_in_child(Lock())

    @contextmanager
    def heard_by(self, listener: Callable[[Progress], object]) -> Iterator[None]:
        """Have a listener of its own in this block."""
        before, self.listener = self.listener, listener
        try:
            yield
        finally:
            self.listener = before

    def begin(self, kind: Kind, total: int) -> None:
        """Begin an operation: from now on only this kind is counted, from zero."""
        with self._lock:
            self._kind, self._done, self._total = kind, 0, total

    def add(self, kind: Kind, number: int) -> None:
        """Count some more, if it is what the operation counts, and tell the listener."""
        if self.listener is None or kind != self._kind:
            return
        with self._lock:
            self._done += number
            done = min(self._done, self._total) if self._total else self._done
            if self.listener is not None:
                self.listener(Progress(kind=kind, done=done, total=self._total))
