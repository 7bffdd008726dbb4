"""Position: a plain torch DataLoader with a state, so that a run resumes within an epoch.

The state is the position, not the data: the random states at the epoch's begin and the number of
batches since. A resumed epoch draws the indices of those batches again and loads none of their
samples. See docs/adr/0055.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from ckptstore.errors import InvalidInputError
from ckptstore.training.loaders.batches import Batches, Epoch
from ckptstore.training.loaders.contents import NO_BATCH, contents, difference
from ckptstore.training.loaders.facts import ANEW, check_facts, facts, is_iterable
from ckptstore.training.loaders.glimpse import glimpse
from ckptstore.training.loaders.indices import Drawn, Indices
from ckptstore.training.loaders.randomness import LoaderRandomness, that_count
from ckptstore.training.loaders.workers import Workers
from ckptstore.training.random_state import RandomState
from ckptstore.training.ranks import rank_and_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ATTRIBUTE = "_ckptstore_position"  # of a loader with a state
_OF_A_CLASS = ("__module__", "__qualname__", "__doc__", "__slots__", "__dict__", "__weakref__")


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
        vars(loader)[ATTRIBUTE] = Position(loader)
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
    - workers_draw: whether workers drew random numbers of their own.
    - last: a glimpse of the newest batch of an iterable dataset.
    - peeked: the random states from which the next batch was loaded already, to be compared.
    - next: the contents of the next batch, if they are to be compared.
    - created: the random states when persistent workers were started.
    - now: the states of the loader's generators, and what its samplers count.
    - facts: properties of the loader that decide which batches it yields.
    - stays: True if the run resumes in the epoch even at its end, False if the next one then
      begins, None if that depends on the program.
    """

    def __init__(self, loader: Any) -> None:
        self.kind: Any = type(loader)
        self._first = LoaderRandomness(loader).state_dict()  # before anything was counted
        self.is_strict = True  # whether another next batch than expected is an error
        self._workers = Workers()
        self._batches: Callable[[], Batches | None] = lambda: None  # the iterator, while it lives
        self._indices: Indices | None = None
        self._epoch: Epoch | None = None
        self._created: dict[str, Any] | None = None
        self._restarts = False  # whether workers were started by the process that was interrupted
        self._saved: dict[str, Any] | None = None  # to continue with

    def state_dict(self, loader: Any) -> dict[str, Any]:
        """The state of the loader."""
        states = LoaderRandomness(loader).state_dict()
        now = that_count(states, self._first)
        if self._saved is not None:
            return self._saved | {"now": now}
        if self._epoch is None or self._epoch.is_finished:
            return _between(now, self._created)
        begin, batches = self._epoch.begin, self._batches()
        counted = that_count(begin["loader"], self._first, states)
        return self._epoch.state_dict() | {
            "begin": begin | {"loader": counted},
            "created": self._created,
            "workers_draw": self._workers.draw,
            "peeked": None if batches is None else batches.states_of_next,
            "now": now,
            "facts": facts(loader),
        }

    def with_next(self, loader: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Add the contents of the next batch to a state that was just taken. It is loaded for this.

        Raises:
            UnsupportedValueError: The batch holds a value that no checkpoint can hold.
        """
        batches = self._batches()
        if batches is None or self._saved is not None or state["begin"] is None:
            return state
        return state | {"next": batches.contents_of_next(lambda: _random_states(loader))}

    def load_state_dict(self, loader: Any, state: dict[str, Any]) -> None:
        """Continue at a position."""
        try:
            if state["begin"] is not None:
                check_facts(state["facts"], facts(loader), yielded=state["yielded"])
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

    def iterate(self, loader: Any) -> Iterator[Any]:
        """An iterator over the batches of a new epoch, or over those that are left."""
        saved, self._saved = self._saved, None
        batches = self._begin(loader) if _is_over(saved) else self._resume(loader, saved or {})
        batches.loader = loader  # which lives as long as the loop
        self._batches = weakref.ref(batches)
        return batches

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
                self._created = begin | {"loader": that_count(begin["loader"])}
        self._restarts = False
        self._epoch = epoch = Epoch(begin=begin, reuses=reuses)
        iterator = self._iterator(loader, epoch, begins)
        return Batches(epoch, iterator, glimpses=is_iterable(loader))

    def _resume(self, loader: Any, saved: dict[str, Any]) -> Batches:
        """Go on with an epoch."""
        begin, yielded = saved["begin"], saved["yielded"]
        self._epoch = epoch = Epoch(begin=begin, yielded=yielded, reuses=saved["reuses"])
        if _is_at_end(saved):
            return Batches(epoch, iter(()))
        self._restarts = False
        vars(loader)["_iterator"] = None
        begins = [saved["created"], begin] if saved["reuses"] else [begin]
        try:
            if is_iterable(loader):
                iterator = self._passed_over(loader, epoch, begins, saved["last"])
            else:
                _warn_of_workers(loader, saved)
                if saved["workers_draw"]:
                    self._workers.draw = True
                iterator = self._iterator(loader, epoch, begins, saved)
        except InvalidInputError:
            self._saved = saved  # which no later iterator may pass over in silence
            raise
        return Batches(
            epoch,
            iterator,
            glimpses=is_iterable(loader),
            load_first=functools.partial(self._load_first, loader, saved),
            or_next=None if saved.get("stays") else functools.partial(self._begin, loader),
        )

    def _load_first(self, loader: Any, saved: dict[str, Any], iterator: Iterator[Any]) -> Any:
        """Load the first batch of a resumed epoch, and compare it if its contents were saved."""
        states = None if saved["peeked"] is None else _random_states(loader)
        _set(loader, saved["peeked"])
        batch = next(iterator, saved)
        _set(loader, states)
        is_end = batch is saved
        if saved.get("next") and rank_and_size()[0] == 0:
            self._compare(saved, NO_BATCH if is_end else contents(batch))
        if is_end:
            raise StopIteration
        return batch

    def _compare(self, saved: dict[str, Any], now: dict[str, Any]) -> None:
        """Compare the contents of the next batch."""
        said = difference(saved["next"], now)
        if not said:
            return
        message = (
            f"The epoch was interrupted after batch {saved['yielded']}, and its next batch is not "
            f"the one that was next then. What differs: {said}."
        )
        if self.is_strict:
            self._saved = saved
            raise InvalidInputError(f"{message} With strict=False a restore only warns. {ANEW}")
        warnings.warn(message, stacklevel=5)

    def _passed_over(
        self, loader: Any, epoch: Epoch, begins: list[dict[str, Any] | None], last: str | None
    ) -> Iterator[Any]:
        """The iterator over an iterable dataset, from which the batches before are taken."""
        before = _random_states(loader)
        iterator = self._iterator(loader, epoch, begins)
        batch: Any = None
        for number in range(epoch.yielded):
            batch = next(iterator, epoch)
            if batch is epoch:
                raise InvalidInputError(
                    f"The epoch was interrupted after batch {epoch.yielded}, and the dataset now "
                    f"ends after {number}. {ANEW}"
                )
        _set(loader, before)
        if epoch.yielded and glimpse(batch) != last:
            warnings.warn(
                f"The iterable dataset gives other batches than before the interruption, such as "
                f"batch {epoch.yielded}, so that some samples may come twice and some not at all. "
                "It resumes exactly if it draws from generators of its own, or if it has a "
                "state_dict and torchdata's StatefulDataLoader is tracked.",
                stacklevel=5,
            )
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
        if is_iterable(loader):
            return self._iterator_without_sampler(loader, begins)
        name = "sampler" if loader.batch_sampler is None else "batch_sampler"
        if self._indices is None or self._indices.sampler is not getattr(loader, name):
            self._indices = Indices(getattr(loader, name))
            vars(loader)["_iterator"] = None
        before: dict[str, Any] = {}
        # The loader has the indices, and these what follows. A cycle would have the collector free
        # workers, whose queues it has ended before: they would be waited for in vain, 5 s each.
        alive = weakref.ref(loader)

        def begin(count: int) -> None:
            if count == 0 and saved is not None:
                before.update(_random_states(alive()))
            if count < len(begins):
                _set(alive(), begins[count])

        def draw_again(sampler: Iterator[Any]) -> deque[Any]:
            if saved is None:
                return deque()
            try:
                return _drawn_again(epoch.drawn, sampler, saved)
            finally:
                _set(alive(), before)

        self._indices.start(epoch.drawn, begin=begin, draw_again=draw_again)
        twin = _twin(loader, self.kind, {name: self._indices} | self._workers.watched(loader))
        iterator: Iterator[Any] = iter(twin)
        vars(loader)["_iterator"] = vars(twin)["_iterator"]  # persistent workers
        if saved is not None and self._indices.iterator is not None:  # a subclass makes it later
            self._indices.iterator.catch_up()
        return iterator

    def _iterator_without_sampler(
        self, loader: Any, begins: list[dict[str, Any] | None]
    ) -> Iterator[Any]:
        """The iterator over an iterable dataset, made in the first of these random states."""
        _set(loader, begins[0] if begins else None)
        twin = _twin(loader, self.kind, {})
        iterator: Iterator[Any] = iter(twin)
        vars(loader)["_iterator"] = vars(twin)["_iterator"]
        _set(loader, begins[1] if len(begins) > 1 else None)
        return iterator


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
            f"The epoch was interrupted after batch {saved['yielded']}. The sampler now gives "
            "other samples. Either the sampler or the dataset has changed, or the sampler "
            "draws from the random generators of the process as it goes: give it a generator of "
            f"its own. {ANEW}"
        )
    return waiting


def _warn_of_workers(loader: Any, saved: dict[str, Any]) -> None:
    """Warn where the batches that are left of an epoch cannot be what they would have been."""
    if loader.num_workers and saved["yielded"] and saved["workers_draw"]:
        warnings.warn(
            "The workers of the loader draw random numbers, which begin anew with the workers: the "
            "samples that are left of the epoch are the same, but not what is drawn for them. It "
            "is exact without workers, or if each sample is drawn from a generator that is seeded "
            "with its index and the epoch.",
            stacklevel=6,
        )
    if loader.num_workers and not getattr(loader, "in_order", True):
        warnings.warn(
            "With in_order=False nothing records which batches came first, so that a resumed epoch "
            "may repeat some samples and leave out others. It is exact with in_order=True.",
            stacklevel=6,
        )


def _is_at_end(saved: dict[str, Any]) -> bool:
    """Whether the sampler had no more, and the loop had all of it."""
    return bool(saved["is_exhausted"]) and saved["drawn"] == saved["yielded"]


def _is_over(saved: dict[str, Any] | None) -> bool:
    """Whether the next iterator begins an epoch."""
    if saved is None or saved["begin"] is None:
        return True
    return _is_at_end(saved) and not saved.get("stays")


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


def _keeps_workers(loader: Any) -> bool:
    return bool(loader.persistent_workers and loader.num_workers > 0)
