"""Refill: what of a checkpoint a model does not hold yet, read and checked, then copied to where it belongs.

What an array holds is remembered by where it lies in memory, and for as long as that memory lives: what was put in its
place holds nothing, whichever model it belongs to.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import source as arrays
from ckptstore.checkout.reader import READ_THREADS, read_bundle
from ckptstore.documents.chunks import Chunk, chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.structure import array_path
from ckptstore.documents.zarr_page import EncodedEntry
from ckptstore.errors import CorruptError, InvalidInputError, UnsupportedValueError
from ckptstore.state import tree as state
from ckptstore.store.objects import ObjectStore
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ckptstore.checkout.placement import Placement
    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle, Page
    from ckptstore.documents.structure import Node


@dataclass(slots=True, eq=False)
class Fill:
    """An array of a model, and what of a checkpoint goes into it. key: where the array lies in memory."""

    path: str
    target: Any
    entry: ArrayEntry
    key: object = None

    def __post_init__(self) -> None:
        self.key = place_of(self.target) or id(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """Bytes to read, and where they go."""

    fill: Fill
    chunk: Chunk
    digest: Digest

    @property
    def is_small(self) -> bool:
        """True for an array that lies in a bundle."""
        return self.fill.entry.offset is not None

    def read(self, objects: ObjectStore) -> list[tuple[Change, memoryview]]:
        """The checked bytes of a chunk."""
        data = self._buffer()
        objects.read_into(self.digest, data)
        return [(self, data)]

    def copy(self) -> memoryview:
        """The bytes that are there now."""
        data, target = self._buffer(), self.fill.target
        target = target if arrays.is_ndarray(target) else target.detach()
        arrays.copy_out(target[self.chunk.index] if self.chunk.index else target, data)
        return data

    def _buffer(self) -> memoryview:
        return arrays.allocate(arrays.NDARRAY, "uint8", (self.chunk.size,))[1]


def changes_of(fills: Iterable[Fill], memory: Memory) -> list[Change]:
    """The chunks of what goes into a model that differ from what it holds; tied arrays are the same memory."""
    filled: dict[object, ArrayEntry] = {}
    changes: list[Change] = []
    for fill in fills:
        new = fill.entry
        first = filled.setdefault(fill.key, new)
        if first is not new and first.digests == new.digests:
            continue
        held = memory.entry(fill.key) if first is new else None
        if held is not None and held.chunk_shape != new.chunk_shape:
            held = None
        if held is not None and held.digests == new.digests:
            continue
        if new.offset is not None:
            everything = tuple(slice(0, length) for length in new.shape)
            changes.append(Change(fill, Chunk(0, new.nbytes, everything), new.digests[0]))
            continue
        known = (None,) * len(new.digests) if held is None else held.digests
        grid = chunks(new.shape, new.chunk_shape, item_bytes=ITEM_BYTES[new.dtype])
        changes += [
            Change(fill, chunk, digest)
            for digest, old, chunk in zip(new.digests, known, grid, strict=True)
            if digest != old
        ]
    return changes


def read_changes(
    changes: Iterable[Change], pages: Iterable[Page], objects: ObjectStore
) -> list[tuple[Change, memoryview]]:
    """The checked bytes of all changes; small arrays of a page come together where most of its bundle is wanted."""
    small: dict[str, Change] = {}
    jobs = []
    for change in changes:
        if change.is_small:
            small[change.fill.path] = change
        else:
            jobs.append(partial(change.read, objects))
    for page in pages:
        found = [small[entry.path] for entry in page.entries if entry.path in small]
        if found and page.bundle:
            jobs.append(partial(_read_small, page.bundle, found, objects))
    return list(chain.from_iterable(gather(jobs, threads=READ_THREADS)))


def _read_small(
    bundle: Bundle, changes: list[Change], objects: ObjectStore
) -> list[tuple[Change, memoryview]]:
    found = read_bundle(bundle, [change.fill.entry for change in changes], objects)
    return [(change, data) for change, (_, data) in zip(changes, found, strict=True)]


def copy_all(staged: Iterable[tuple[Change, memoryview]]) -> None:
    """Put everything where it belongs."""
    for change, data in staged:
        arrays.copy_chunk(change.fill.target, change.chunk, data)


class CountedObjects(ObjectStore):
    """Objects, and the bytes of each read of them."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.read_bytes: list[int] = []

    def read_into(self, digest: Digest, buffer: memoryview) -> None:
        """Read a whole object."""
        self._objects.read_into(digest, buffer)
        self.read_bytes.append(buffer.nbytes)

    def read_range(
        self, digest: Digest, buffer: memoryview, *, start: int, expected: Digest
    ) -> None:
        """Read a part of an object."""
        self._objects.read_range(digest, buffer, start=start, expected=expected)
        self.read_bytes.append(buffer.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """What is handed over whole (plain values, optimizers), and to whom, where that can be told.

    content: equal for what is the same to the last bit; None for what is handed over every time: what holds no array costs
    nothing, and an array from Zarr goes into an array that may lie elsewhere by now. may_refuse: False for what is only put in
    its place.
    """

    node: Node
    assign: Callable[[Any], object]
    may_refuse: bool
    owner: object
    paths: tuple[str, ...]
    nbytes: int
    content: object

    @property
    def is_own(self) -> bool:
        """True for an object with a state of its own, such as an optimizer; it knows nothing of the arrays."""
        return hasattr(self.assign, "__self__")


def hand_over(loads: Iterable[tuple[Load, Any]]) -> None:
    """Give each object what is its own; its load_state_dict may refuse that in any way it likes."""
    for load, value in loads:
        try:
            load.assign(value)
        except Exception as error:
            raise InvalidInputError(
                f"A load_state_dict refused what the checkpoint holds for it ({type(error).__name__}: {error}). "
                "Arrays are as they were before."
            ) from error


def loads_of(placement: Placement, model: object, entries: Mapping[str, ArrayEntry]) -> list[Load]:
    """What is handed over."""
    loads = []
    for found in placement.loads:
        node, assign = found.node, found.assign
        paths = tuple(path for _, leaf in state.leaves(node) if (path := array_path(leaf)))
        unlisted = next((path for path in paths if path not in entries), None)
        if unlisted is not None:
            raise CorruptError(
                f"The structure names {unlisted!r:.200}, which no page lists. Run verify."
            )
        is_known = paths and not any(isinstance(entries[path], EncodedEntry) for path in paths)
        load = Load(
            node=node,
            assign=assign,
            may_refuse=found.may_refuse,
            owner=getattr(assign, "__self__", model if arrays.is_module(model) else None),
            paths=paths,
            nbytes=sum(entries[path].nbytes for path in paths),
            content=(repr(node), *(entries[path].digests for path in paths)) if is_known else None,
        )
        loads.append(load)
    return loads


class Memory:
    """What arrays were filled with, by where they lie, and what objects were handed last; both weakly."""

    def __init__(self) -> None:
        self._filled: dict[object, tuple[Callable[[], bool], ArrayEntry]] = {}
        self._handed: dict[int, tuple[Callable[[], bool], set[object]]] = {}
        self._lock = threading.Lock()

    def entry(self, key: object) -> ArrayEntry | None:
        """What lies at this place in memory; None when nobody knows."""
        is_gone, entry = self._filled.get(key, (None, None))
        return None if is_gone is None or is_gone() else entry

    def was_handed(self, load: Load) -> bool:
        """True when an object got just this from the last update that had anything for it."""
        is_gone, contents = self._handed.get(id(load.owner), (None, set()))
        return is_gone is not None and not is_gone() and load.content in contents

    def remember(self, fills: Iterable[Fill], loads: Iterable[Load]) -> None:
        """Remember what was filled and what was handed over, and let go of what is gone."""
        filled: dict[object, tuple[Callable[[], bool], ArrayEntry]] = {}
        handed: dict[int, tuple[Callable[[], bool], set[object]]] = {}
        disputed = set()  # memory that two arrays share and that got two different things
        for fill in fills:
            if (is_gone := _end_of(fill.target)) is not None:
                _, entry = filled.setdefault(fill.key, (is_gone, fill.entry))
                disputed |= {fill.key} if entry.digests != fill.entry.digests else set()
        for load in loads:
            if load.content is not None and (is_gone := _end_of(load.owner)) is not None:
                handed.setdefault(id(load.owner), (is_gone, set()))[1].add(load.content)
        with self._lock:
            self._filled = {key: held for key, held in self._filled.items() if not held[0]()}
            self._filled |= {key: held for key, held in filled.items() if key not in disputed}
            self._handed = {key: held for key, held in self._handed.items() if not held[0]()}
            self._handed |= handed

    def forget(self, *, keys: Iterable[object], owners: Iterable[object]) -> None:
        """Know nothing more of what lies at places in memory, and of objects."""
        with self._lock:
            for key in keys:
                self._filled.pop(key, None)
            for owner in owners:
                self._handed.pop(id(owner), None)


def place_of(array: Any) -> object:
    """Equal for the same memory read in the same way, while that lives; None where that cannot be told."""
    try:
        source = arrays.describe_only(array)
    except UnsupportedValueError:
        return None
    return None if source is None else source.identity


def _end_of(holder: Any) -> Callable[[], bool] | None:
    """A function that tells whether something is gone: of a tensor its memory, which views share. None if that cannot be told."""
    if arrays.is_array(holder) and not arrays.is_ndarray(holder):
        if place_of(holder) is None:
            return None
        reductions = import_module("torch.multiprocessing.reductions")
        expired: Callable[[], bool] = reductions.StorageWeakRef(holder.untyped_storage()).expired
        return expired
    try:
        found = weakref.ref(holder)
    except TypeError:
        return None
    return lambda: found() is None


def holders(value: Any, seen: dict[int, object]) -> Iterator[Any]:
    """The arrays and objects of a model, which may hold itself."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if arrays.is_module(value):
        yield value
        named: Any = arrays.in_place(value)
        yield from holders(value.state_dict(keep_vars=True) if named is value else named, seen)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from holders(item, seen)
    else:
        yield value
