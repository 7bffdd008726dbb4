"""Known: what a follower knows of the contents of arrays, and which objects were last passed.

Contents are remembered by where an array is in memory, for as long as that memory lives: an array
that takes its place is unknown, whichever model it belongs to. Nothing here keeps a model alive.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.keras import ModelState
from ckptstore.checkout.opener import unlisted
from ckptstore.documents import structure
from ckptstore.documents.zarr_page import EncodedEntry
from ckptstore.errors import UnsupportedValueError
from ckptstore.forks import free_in_child
from ckptstore.state import tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ckptstore.checkout.handover import Handover
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.page import ArrayEntry

    IsGone = Callable[[], bool]


@dataclass(slots=True, eq=False)
class Fill:
    """An array of a model, and the stored array that goes into it.

    key: its location in memory, or the array itself where that is unknown. is_located: False there,
    as the array may have other memory by the next update: what was copied is not remembered.
    """

    path: str
    target: Any
    entry: ArrayEntry
    key: object = None
    is_located: bool = False

    def __post_init__(self) -> None:
        location = location_of(self.target)
        self.is_located = location is not None
        self.key = location if self.is_located else id(self.target)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """A value that is handed over, and the arrays in it.

    content: equal for states that are the same to the last bit; None for one that is handed over
    every time, because it holds no array and costs nothing, or because it goes into an array that
    may have been replaced.
    """

    handover: Handover
    paths: tuple[str, ...]
    nbytes: int
    content: object

    @classmethod
    def of(cls, handover: Handover, entries: Mapping[str, Entry]) -> Self:
        """Look up the arrays of a handover."""
        paths = tuple(node.path for node in tree.arrays(handover.node))
        for path in paths:
            if path not in entries:
                raise unlisted(path)
        is_known = paths and not any(isinstance(entries[path], EncodedEntry) for path in paths)
        contents = (entries[path].content for path in paths)
        return cls(
            handover=handover,
            paths=paths,
            nbytes=sum(entries[path].nbytes for path in paths),
            content=(structure.encode(handover.node), *contents) if is_known else None,
        )

    @property
    def owner(self) -> object:
        """The object or module that loads it, None for a value that is only put in its place."""
        return self.handover.owner


class Known:
    """The last contents of arrays, by location, and the last values handed to objects."""

    def __init__(self) -> None:
        self._filled: dict[object, tuple[IsGone, ArrayEntry]] = {}
        self._handed: dict[int, tuple[IsGone, set[object]]] = {}
        self._lock = free_in_child(threading.Lock())

    def entry(self, key: object) -> ArrayEntry | None:
        """The array that was copied to a location; None when its contents are unknown."""
        is_gone, entry = self._filled.get(key, (None, None))
        return None if is_gone is None or is_gone() else entry

    def was_handed(self, load: Load) -> bool:
        """True when its owner got exactly this from the last update that had anything for it."""
        is_gone, contents = self._handed.get(id(load.owner), (None, set()))
        return is_gone is not None and not is_gone() and load.content in contents

    def remember(self, fills: Iterable[Fill], loads: Iterable[Load]) -> None:
        """Remember what was filled and handed over, and drop what is gone."""
        filled: dict[object, tuple[IsGone, ArrayEntry]] = {}
        handed: dict[int, tuple[IsGone, set[object]]] = {}
        disputed = set()  # locations that two arrays share, and that got two different contents
        for fill in fills:
            if fill.is_located and (is_gone := _end_of(fill.target)) is not None:
                _, entry = filled.setdefault(fill.key, (is_gone, fill.entry))
                disputed |= {fill.key} if entry.content != fill.entry.content else set()
        for load in loads:
            if load.content is not None and (is_gone := _end_of(load.owner)) is not None:
                handed.setdefault(id(load.owner), (is_gone, set()))[1].add(load.content)
        with self._lock:
            self._filled = {key: value for key, value in self._filled.items() if not value[0]()}
            self._filled |= {key: value for key, value in filled.items() if key not in disputed}
            self._handed = {key: value for key, value in self._handed.items() if not value[0]()}
            self._handed |= handed

    def forget(self, *, keys: Iterable[object] = (), owners: Iterable[object] = ()) -> None:
        """Forget the contents of locations, and what owners were handed."""
        with self._lock:
            for key in keys:
                self._filled.pop(key, None)
            for owner in owners:
                self._handed.pop(id(owner), None)

    def forget_model(self, model: object) -> None:
        """Forget all arrays and objects of a model."""
        holders = list(_holders(model, {}))
        self.forget(
            keys=[location_of(holder) for holder in holders if arrays.is_array(holder)],
            owners=holders,
        )


def location_of(array: Any) -> object:
    """Equal for the same memory read in the same way, while it lives; None where unknown."""
    try:
        source = arrays.describe(array)
    except UnsupportedValueError:
        return None
    return None if source is None else source.identity


def _end_of(holder: Any) -> IsGone | None:
    """A function that is true once the holder is gone; None where that cannot be observed."""
    framework = arrays.framework_of(holder)
    if framework is not None:
        return framework.end_of(holder)
    try:
        reference = weakref.ref(holder)
    except TypeError:
        return None
    return lambda: reference() is None


def _holders(value: Any, seen: dict[int, object]) -> Iterator[Any]:
    """The arrays and objects of a model, which may contain itself."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if arrays.is_keras(value):
        yield value
        yield from _holders(ModelState(value).targets(), seen)
    elif arrays.is_module(value):
        yield value
        yield from _holders(value.state_dict(keep_vars=True), seen)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item, seen)
    else:
        yield value
