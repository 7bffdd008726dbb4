"""Batches: one pass over a data loader, which counts what the loop got. See docs/adr/0055."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from ckptstore.training.loaders.contents import NO_BATCH, contents
from ckptstore.training.loaders.glimpse import glimpse
from ckptstore.training.loaders.indices import Drawn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(slots=True, kw_only=True)
class Epoch:
    """One pass over a loader.

    Attributes:
        begin: The random states when it began.
        yielded: The number of batches that the loop got.
        reuses: Whether it began with workers of an earlier epoch.
        drawn: What was drawn from the sampler.
        is_finished: True once the loader had no more.
        last: A glimpse of the newest batch of an iterable dataset.
    """

    begin: dict[str, Any]
    yielded: int = 0
    reuses: bool = False
    drawn: Drawn = field(default_factory=Drawn)
    is_finished: bool = False
    last: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """The entries of a state that say where in the epoch the loop is."""
        return {
            "yielded": self.yielded,
            "drawn": self.drawn.count,
            "is_exhausted": self.drawn.is_exhausted,
            "indices": self.drawn.digest,
            "begin": self.begin,
            "reuses": self.reuses,
            "last": self.last,
        }


@dataclass(slots=True, kw_only=True)
class _Next:
    """A batch that was loaded to be compared, before the loop asks for it; None at the end."""

    batch: Any
    is_end: bool
    contents: dict[str, Any]
    states: dict[str, Any]  # the random states before it was loaded


class Batches:
    """An iterator over the batches of an epoch.

    loader: the loader that is iterated over.
    """

    loader: object = None

    def __init__(
        self,
        epoch: Epoch,
        iterator: Iterator[Any],
        *,
        glimpses: bool = False,
        load_first: Callable[[Iterator[Any]], Any] = next,
        or_next: Callable[[], Batches] | None = None,
    ) -> None:
        """Begin.

        Args:
            epoch: Counts what the loop gets.
            iterator: The loader's own.
            glimpses: Whether to take a glimpse of each batch.
            load_first: Takes the first batch from the iterator; StopIteration if there is none.
            or_next: Begins the next epoch if nothing is left of this one.
        """
        self._epoch, self._iterator, self._glimpses = epoch, iterator, glimpses
        self._load, self._or_next = load_first, or_next
        self._following: _Next | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        following, self._following = self._following, None
        or_next, self._or_next = self._or_next, None
        try:
            batch = self._loaded() if following is None else following.batch
            if following is not None and following.is_end:
                raise StopIteration  # noqa: TRY301
        except StopIteration:
            self._epoch.is_finished = True
            if or_next is None:
                raise
            self._become(or_next())
            return next(self)
        self._epoch.yielded += 1
        if self._glimpses:
            self._epoch.last = glimpse(batch)
        return batch

    def __len__(self) -> int:
        return len(self._iterator)  # type: ignore[arg-type]  # torch's iterators have a length

    @property
    def states_of_next(self) -> dict[str, Any] | None:
        """The random states from which the next batch was loaded, if it was already."""
        return None if self._following is None else self._following.states

    def contents_of_next(self, states: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Load the next batch before the loop asks for it, and return its contents.

        Args:
            states: Returns the random states.

        Raises:
            UnsupportedValueError: The batch holds a value that no checkpoint can hold.
        """
        if self._following is None:
            before = states()
            try:
                batch, is_end = self._loaded(), False
            except StopIteration:
                batch, is_end = None, True
            self._following = _Next(batch=batch, is_end=is_end, contents=NO_BATCH, states=before)
            if not is_end:
                self._following.contents = contents(batch)
        return self._following.contents

    def _loaded(self) -> Any:
        load, self._load = self._load, next
        return load(self._iterator)

    def _become(self, other: Batches) -> None:
        self._epoch, self._iterator = other._epoch, other._iterator
