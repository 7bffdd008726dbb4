"""Position: a plain torch DataLoader with a state, so that a run resumes within an epoch.

The state is the position, not the data: the random states at the epoch's begin and the number of
batches since. A resumed epoch draws the indices of those batches again and loads none of their
samples. See docs/adr/0055.
"""

from __future__ import annotations

import functools
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from torch.utils.data import DataLoader, IterableDataset

from ckptstore.errors import InvalidInputError
from ckptstore.training.loaders.indices import Drawn, Indices
from ckptstore.training.loaders.randomness import LoaderRandomness
from ckptstore.training.random_state import RandomState
from ckptstore.training.ranks import rank_and_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ATTRIBUTE = "_ckptstore_position"  # of a loader with a state
_OF_A_CLASS = ("__module__", "__qualname__", "__doc__", "__slots__", "__dict__", "__weakref__")
ANEW = "Leave the loader out of the restore, as with exclude='loader', to begin the epoch anew."


def is_plain_loader(item: object) -> bool:
    """True for a torch DataLoader without a state of its own."""
    return isinstance(item, DataLoader) and (
        isinstance(item, PositionedLoader) or not hasattr(item, "state_dict")
    )


def with_position(loader: Any) -> PositionedLoader:
    """Give a plain DataLoader a state, in place: its class becomes a subclass of what it was."""
    if not isinstance(loader, PositionedLoader):
        kind: Any = type(loader)
        vars(loader)["_iterator"] = None  # persistent workers that go by another sampler
        vars(loader)[ATTRIBUTE] = Position(kind)
        loader.__class__ = _positioned(kind)
    found: PositionedLoader = loader
    return found


class PositionedLoader:
    """What a DataLoader's class is derived from once the loader has a state."""

    __slots__ = ()  # so that a loader can change to this class
    may_be_asked = True  # for its state: unlike others, it neither draws nor starts workers for it

    def __iter__(self) -> Iterator[Any]:
        return self.position.iterate(self)

    @property
    def position(self) -> Position:
        """The position of the newest iterator."""
        found: Position = vars(self)[ATTRIBUTE]
        return found

    def state_dict(self) -> dict[str, Any]:
        """The position in the epoch."""
        return self.position.state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position: the next iterator yields what is left of its epoch.

        Raises:
            InvalidInputError: The epoch cannot go on, as the loader is another one.
        """
        self.position.load_state_dict(self, state)

    def leave_epoch(self) -> None:
        """Note that the program has left the epoch, whether or not there were more batches."""
        self.position.leave()

    def __reduce__(self) -> Any:
        """Copies and pickles are loaders as they were, without a state."""
        twin = _twin(self, self.position.kind, {"_iterator": None})
        return _made, (type(twin), vars(twin))


@functools.cache
def _positioned(kind: Any) -> type:
    """A class of loaders with a state. It comes first among its bases, so that objects can change
    to it, and repeats what it has of the second.
    """
    own = {name: value for name, value in vars(PositionedLoader).items() if name not in _OF_A_CLASS}
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind, PositionedLoader), own | names)


def _made(kind: type, attributes: dict[str, Any]) -> Any:
    """A loader with these attributes, some of which no assignment may change."""
    loader: Any = object.__new__(kind)
    vars(loader).update(attributes)
    return loader


def _twin(loader: Any, kind: type, changes: dict[str, Any]) -> Any:
    """A loader of the class as it was, with the attributes of this one."""
    attributes = vars(loader) | changes
    del attributes[ATTRIBUTE]
    return _made(kind, attributes)


class Position:
    """The position of a loader: of its newest iterator, or of the state to continue with.

    The state of an epoch that has begun has the following entries. "begin" is None between epochs.

    - yielded: the number of batches that the loop got.
    - drawn, is_exhausted, indices: of the sampler, as in `Drawn`. Workers are given batches ahead.
    - begin: the random states when the epoch began, of the process and of the loader's generators.
    - reuses: whether the epoch began with workers of an earlier one.
    - created: the random states when persistent workers were started.
    - now: the states of the loader's generators.
    - facts: properties of the loader that decide which batches it yields.
    - stays: True if the run resumes in the epoch even at its end, False if the next one then
      begins, None if that depends on the program.
    """

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self._indices: Indices | None = None
        self._epoch: Epoch | None = None
        self._created: dict[str, Any] | None = None
        self._restarts = False  # whether workers were started by the process that was interrupted
        self._saved: dict[str, Any] | None = None  # to continue with

    def state_dict(self, loader: Any) -> dict[str, Any]:
        """The state of the loader."""
        now = LoaderRandomness(loader).state_dict()
        if self._saved is not None:
            return self._saved | {"now": now}
        if self._epoch is None or self._epoch.is_finished:
            return _between(now, self._created)
        return self._epoch.state_dict() | {
            "created": self._created,
            "now": now,
            "facts": facts(loader),
        }

    def load_state_dict(self, loader: Any, state: dict[str, Any]) -> None:
        """Continue at a position."""
        try:
            if state["begin"] is not None:
                _check(state["facts"], facts(loader), state["yielded"])
            LoaderRandomness(loader).load_state_dict(state["now"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"The checkpoint has no position of a plain DataLoader: {error!r}. {ANEW}"
            ) from error
        self._saved, self._created, self._epoch = state, state["created"], None
        self._restarts = True

    def leave(self) -> None:
        """Note that the program has left the epoch."""
        self._epoch = None

    def stay(self) -> None:
        """Note that the program resumes in the epoch, even if nothing is left of it."""
        if self._saved is not None and self._saved.get("stays") is None:
            self._saved = self._saved | {"stays": True}

    @property
    def waiting(self) -> int | None:
        """The number of batches that the next iterator passes over; None if it begins an epoch."""
        saved = self._saved
        return None if saved is None or saved["begin"] is None else int(saved["yielded"])

    def iterate(self, loader: Any) -> Iterator[Any]:
        """An iterator over the batches of a new epoch, or over those that are left."""
        saved, self._saved = self._saved, None
        if saved is None or saved["begin"] is None:
            return self._begin(loader)
        if saved["is_exhausted"] and saved["drawn"] == saved["yielded"]:
            if not saved.get("stays"):
                return self._begin(loader)
            self._epoch = Epoch(begin=saved["begin"], yielded=saved["yielded"])
            return Batches(self._epoch, iter(()))
        try:
            return self._resume(loader, saved)
        except InvalidInputError:
            self._saved = saved  # which no later iterator may pass over in silence
            raise

    def _begin(self, loader: Any) -> Batches:
        """Begin an epoch, and note the random states."""
        begin = _random_states(loader)
        reuses = _keeps_workers(loader) and vars(loader)["_iterator"] is not None
        begins: list[dict[str, Any] | None] = []
        if not _keeps_workers(loader):
            self._created = None
        elif not reuses:
            if self._restarts and self._created is not None:
                # The interrupted process had its workers already, and drew nothing to start them.
                begins, reuses = [self._created, begin], True
            else:
                self._created = begin
        self._restarts = False
        self._epoch = epoch = Epoch(begin=begin, reuses=reuses)
        return Batches(epoch, self._iterator(loader, epoch, begins))

    def _resume(self, loader: Any, saved: dict[str, Any]) -> Batches:
        """Go on with an epoch."""
        begin, yielded = saved["begin"], saved["yielded"]
        self._epoch = epoch = Epoch(begin=begin, yielded=yielded, reuses=saved["reuses"])
        self._restarts = False
        vars(loader)["_iterator"] = None
        if _is_iterable(loader):
            iterator = self._passed_over(loader, epoch)
        else:
            begins = [saved["created"], begin] if saved["reuses"] else [begin]
            iterator = self._iterator(loader, epoch, begins, saved)
        or_next = None if saved.get("stays") else functools.partial(self._begin, loader)
        return Batches(epoch, iterator, or_next=or_next)

    def _passed_over(self, loader: Any, epoch: Epoch) -> Iterator[Any]:
        """The iterator over an iterable dataset, from which the batches before are taken."""
        before = _random_states(loader)
        _set(loader, epoch.begin)
        iterator = self._iterator(loader, epoch, [])
        for number in range(epoch.yielded):
            if next(iterator, epoch) is epoch:
                raise InvalidInputError(
                    f"The epoch was interrupted after {epoch.yielded} batches, and the dataset now "
                    f"ends after {number}. {ANEW}"
                )
        _set(loader, before)
        return iterator

    def _iterator(
        self,
        loader: Any,
        epoch: Epoch,
        begins: list[dict[str, Any] | None],
        saved: dict[str, Any] | None = None,
    ) -> Iterator[Any]:
        """The loader's own iterator, over recorded indices.

        Args:
            loader: The loader.
            epoch: Records what is drawn.
            begins: The random states to set before each iterator of the sampler is made.
            saved: What was drawn before, to be drawn again. The random states are then those that
                they were.
        """
        if _is_iterable(loader):
            iterator: Iterator[Any] = iter(_twin(loader, self.kind, {}))
            return iterator
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        if self._indices is None or self._indices.sampler is not getattr(loader, name):
            self._indices = Indices(getattr(loader, name))
            vars(loader)["_iterator"] = None
        before: dict[str, Any] = {}

        def begin(count: int) -> None:
            if count == 0 and saved is not None:
                before.update(_random_states(loader))
            if count < len(begins):
                _set(loader, begins[count])

        def draw_again(sampler: Iterator[Any]) -> deque[Any]:
            if saved is None:
                return deque()
            try:
                return _drawn_again(epoch.drawn, sampler, saved)
            finally:
                _set(loader, before)

        self._indices.start(epoch.drawn, begin=begin, draw_again=draw_again)
        twin = _twin(loader, self.kind, {name: self._indices})
        iterator = iter(twin)
        vars(loader)["_iterator"] = vars(twin)["_iterator"]  # persistent workers
        if saved is not None and self._indices.iterator is not None:  # a subclass makes it later
            self._indices.iterator.catch_up()
        return iterator


class Epoch:
    """One pass over a loader.

    Attributes:
        begin: The random states when it began.
        yielded: The number of batches that the loop got.
        drawn: What was drawn from the sampler.
        is_finished: True once the loader had no more.
    """

    def __init__(self, *, begin: dict[str, Any], yielded: int = 0, reuses: bool = False) -> None:
        self.begin, self.yielded, self.reuses = begin, yielded, reuses
        self.drawn = Drawn()
        self.is_finished = False

    def state_dict(self) -> dict[str, Any]:
        """The entries of a state that tell where in the epoch the loop is."""
        return {
            "yielded": self.yielded,
            "drawn": self.drawn.count,
            "is_exhausted": self.drawn.is_exhausted,
            "indices": self.drawn.digest,
            "begin": self.begin,
            "reuses": self.reuses,
        }


class Batches:
    """An iterator over the batches of an epoch, which counts them."""

    def __init__(
        self,
        epoch: Epoch,
        iterator: Iterator[Any],
        *,
        or_next: Callable[[], Batches] | None = None,
    ) -> None:
        """or_next: begins the next epoch if nothing is left of this one."""
        self._epoch, self._iterator, self._or_next = epoch, iterator, or_next

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        or_next, self._or_next = self._or_next, None
        try:
            batch = next(self._iterator)
        except StopIteration:
            self._epoch.is_finished = True
            if or_next is None:
                raise
            following = or_next()
            self._epoch, self._iterator = following._epoch, following._iterator  # noqa: SLF001
            return next(self)
        self._epoch.yielded += 1
        return batch

    def __len__(self) -> int:
        return len(self._iterator)  # type: ignore[arg-type]  # torch's iterators have a length


def facts(loader: Any) -> dict[str, Any]:
    """Properties that decide which batches a loader yields, as plain values."""
    is_iterable = _is_iterable(loader)
    indices = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return {
        "dataset": "iterable" if is_iterable else "map",
        "samples": None if is_iterable else _length(loader.dataset),
        "batches": None if is_iterable else _length(indices),
        "batch_size": loader.batch_size,
        "drop_last": loader.drop_last,
        "sampler": type(loader.sampler if loader.batch_size else indices).__name__,
        # Each worker iterates over an iterable dataset of its own.
        "num_workers": loader.num_workers if is_iterable else None,
    }


def _check(saved: dict[str, Any], now: dict[str, Any], yielded: int) -> None:
    """Refuse to go on with the epoch of another loader."""
    found = [
        f"{name} was {saved.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if found:
        raise InvalidInputError(
            f"The epoch was interrupted after {yielded} batches, and cannot go on with another "
            f"loader: {', '.join(found)}. {ANEW}"
        )


def _drawn_again(drawn: Drawn, sampler: Iterator[Any], saved: dict[str, Any]) -> deque[Any]:
    """Draw what was drawn before the checkpoint; return the batches that are to be yielded."""
    waiting: deque[Any] = deque()
    for number in range(saved["drawn"]):
        try:
            batch = drawn.draw(sampler)
        except StopIteration:
            break
        if number >= saved["yielded"]:
            waiting.append(batch)
    if saved["is_exhausted"] and not drawn.is_exhausted:
        with suppress(StopIteration):
            waiting.append(drawn.draw(sampler))
    is_same = (drawn.count, drawn.is_exhausted, drawn.digest) == (
        *(saved["drawn"], saved["is_exhausted"]),
        saved["indices"],
    )
    if not is_same and rank_and_size()[0] == 0:  # other ranks have samples of their own
        raise InvalidInputError(
            f"The epoch was interrupted after {saved['yielded']} batches. The sampler now gives "
            "other samples. Either the sampler or the dataset has changed, or the sampler "
            "draws from the random generators of the process as it goes: give it a generator of "
            f"its own. {ANEW}"
        )
    return waiting


def _between(now: dict[str, Any], created: dict[str, Any] | None) -> dict[str, Any]:
    """The state between two epochs."""
    return {"yielded": 0, "begin": None, "created": created, "now": now}


def in_epoch(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a loader whose run resumes in the epoch, even if nothing is left of it."""
    return state if state["begin"] is None else state | {"stays": True}


def resumed_at(state: dict[str, Any], position: Mapping[str, object]) -> dict[str, Any]:
    """The state of a loader whose run resumes at a position.

    With an epoch in the position, it depends on the program whether it resumes in that epoch where
    nothing is left of it: on whether it reads the epoch. Otherwise the next epoch begins there.

    Args:
        state: The state of the loader.
        position: The "epoch" and "batch" of the save. With batch 0 the program has left the epoch.
    """
    if state["begin"] is None:
        return state
    if position.get("epoch") is None:
        return state | {"stays": False}
    if position.get("batch") == 0 and state["yielded"] > 1:
        return _between(state["now"], state["created"])
    return state | {"stays": None}


def _random_states(loader: Any) -> dict[str, Any]:
    return {
        "process": RandomState(accelerators=False).state_dict(),
        "loader": LoaderRandomness(loader).state_dict(),
    }


def _set(loader: Any, states: dict[str, Any] | None) -> None:
    if states is not None:
        RandomState(accelerators=False).load_state_dict(states["process"])
        LoaderRandomness(loader).load_state_dict(states["loader"])


def _is_iterable(loader: Any) -> bool:
    return isinstance(loader.dataset, IterableDataset)


def _keeps_workers(loader: Any) -> bool:
    return bool(loader.persistent_workers and loader.num_workers > 0)


def _length(item: Any) -> int | None:
    try:
        return len(item)
    except (TypeError, NotImplementedError):
        return None
