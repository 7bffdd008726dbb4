"""Indices: the batches of indices that a loader draws from its sampler, recorded and drawn again.

A resumed epoch draws the same batches from the same random states, without loading a sample, and
compares their digest with the one that was saved. See docs/adr/0055.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from blake3 import blake3

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Drawn:
    """The batches of indices that were drawn in an epoch.

    Attributes:
        count: Their number. Loaders with workers draw more of them than they have yielded.
        is_exhausted: True once the sampler had no more.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_exhausted = False
        self._hasher = blake3()

    @property
    def digest(self) -> str:
        """The BLAKE3 of all indices, in hexadecimal."""
        return self._hasher.hexdigest()

    def draw(self, sampler: Iterator[Any]) -> Any:
        """Draw a batch; StopIteration when there is no more."""
        try:
            batch = next(sampler)
        except StopIteration:
            self.is_exhausted = True
            raise
        self.count += 1
        self._hasher.update(_encoded(batch))
        return batch


class Indices:
    """Takes the place of a loader's sampler or batch sampler.

    Attributes:
        sampler: The loader's own.
        begin: Called before each iterator of the sampler is made, with the number of those made in
            this epoch. A loader with workers makes two at its first epoch.
        draw_again: Called with the sampler's iterator before the first batch is drawn; returns the
            batches that were drawn before and have not been yielded.
        drawn: What is recorded.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler
        self.start(Drawn())

    def start(
        self,
        drawn: Drawn,
        *,
        begin: Callable[[int], object] = lambda count: None,
        draw_again: Callable[[Iterator[Any]], deque[Any]] = lambda sampler: deque(),
    ) -> None:
        """Begin an epoch."""
        self.drawn, self.begin, self.draw_again = drawn, begin, draw_again
        self.iterator: DrawnIndices | None = None
        self._count = 0

    def __iter__(self) -> DrawnIndices:
        self.begin(self._count)
        self._count += 1
        self.iterator = DrawnIndices(self)
        return self.iterator

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":  # not set yet, as while it is copied
            raise AttributeError(name)
        return getattr(self.sampler, name)


class DrawnIndices:
    """The iterator over the indices of one epoch."""

    def __init__(self, indices: Indices) -> None:
        self._iterator = iter(indices.sampler)
        self._drawn, self._draw_again = indices.drawn, indices.draw_again
        self._waiting: deque[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def catch_up(self) -> deque[Any]:
        """Draw again what was drawn before the checkpoint, once; return what is to be yielded."""
        if self._waiting is None:
            self._waiting = deque()  # also where drawing again fails
            self._waiting = self._draw_again(self._iterator)
        return self._waiting

    def __next__(self) -> Any:
        waiting = self.catch_up()
        return waiting.popleft() if waiting else self._drawn.draw(self._iterator)


def _encoded(batch: Any) -> bytes:
    """The bytes of a batch of indices: equal for equal ones."""
    if isinstance(batch, list):
        try:
            return b"q" + array("q", batch).tobytes() + b";"
        except (TypeError, OverflowError):
            pass
    return repr(_plain(batch)).encode()


def _plain(value: Any) -> Any:
    """Lists and plain values; of an object that has no text of its own only its class."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [*map(_plain, value)]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    kind: Any = type(value)
    return kind.__name__ if kind.__repr__ is object.__repr__ else value
