"""Refill: what a model does not hold yet of a checkpoint, read and checked, then copied in.

Reading changes nothing, and applying reads nothing: a model never holds a part of a checkpoint.
See docs/adr/0015 and 0023. What a model holds is the business of `ckptstore.follow.known`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.source import NDARRAY
from ckptstore.checkout.checkout import fresh
from ckptstore.checkout.handover import Handing, Refused
from ckptstore.checkout.opener import unlisted
from ckptstore.checkout.reader import bundled, read_small, reading_threads
from ckptstore.checkout.slots import read_slots
from ckptstore.documents.page import ArrayEntry
from ckptstore.follow.known import Fill, Load, location_of
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.arrays.pytrees import PytreeState, Slot, Tree
    from ckptstore.checkout.placement import Placement
    from ckptstore.checkout.proposal import Remedy
    from ckptstore.checkout.stored_state import StoredState
    from ckptstore.digest import Digest
    from ckptstore.documents.chunks import Chunk
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.page import Page
    from ckptstore.errors import Incompatible
    from ckptstore.follow.known import Known
    from ckptstore.store.objects import ObjectReader, Part


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A chunk to read, and where it goes."""

    fill: Fill
    chunk: Chunk
    digest: Digest

    @property
    def is_small(self) -> bool:
        """True for an array in a bundle."""
        return self.fill.entry.offset is not None

    def read(self, objects: ObjectReader) -> tuple[Change, memoryview]:
        """The checked bytes of the chunk."""
        data = self._buffer()
        objects.read_into(self.digest, data)
        return self, data

    def _buffer(self) -> memoryview:
        return arrays.allocate(NDARRAY, "uint8", (self.chunk.size,))[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refill:
    """The changes of an update, all of them read.

    fills, loads: the whole of what goes into the model. changes: the chunks that it does not hold,
    in the order of the destination; chunks: their bytes. states: what it was not handed yet.
    pytrees: the objects that get new ones; slots: the arrays of these, filled if they are new.
    """

    fills: list[Fill]
    loads: list[Load]
    changes: list[Change]
    chunks: list[tuple[Change, memoryview]]
    states: list[tuple[Load, Any]]
    pytrees: Sequence[tuple[PytreeState, Tree]]
    slots: list[tuple[Slot, ArrayEntry]]

    @classmethod
    def read(
        cls,
        stored: StoredState,
        placement: Placement,
        entries: Mapping[str, Entry],
        memory: Known,
    ) -> Self:
        """Read and check everything that the destination does not hold yet."""
        fills = [
            Fill(path, target, _listed(entries[path])) for path, target in placement.targets.items()
        ]
        loads = [Load.of(handover, entries) for handover in placement.handovers]
        slots = [(slot, _listed(entries[path])) for path, slot in placement.slots.items()]
        new_slots = {entry.path: slot for slot, entry in slots if not _holds(slot, entry, memory)}
        read_slots(stored.pages, new_slots, objects=stored.objects)
        changes = changes_of(fills, memory)
        chunks = read_changes(changes, stored.pages, stored.objects)
        new = [load for load in loads if not memory.was_handed(load)]
        states = [
            (load, fresh(stored, load.handover.node, layouts=load.handover.layouts)) for load in new
        ]
        return cls(
            fills=fills,
            loads=loads,
            changes=changes,
            chunks=chunks,
            states=states,
            pytrees=placement.pytrees,
            slots=slots,
        )

    @property
    def changed(self) -> tuple[str, ...]:
        """The paths of the arrays that were read, each once."""
        filled = (change.fill.path for change in self.changes)
        handed = chain.from_iterable(load.paths for load, _ in self.states)
        made = (entry.path for slot, entry in self.slots if slot.is_filled)
        return tuple(dict.fromkeys(chain(filled, made, handed)))

    @property
    def whole_bytes(self) -> int:
        """Bytes of all arrays that go into the model; tied ones count once."""
        wholes = {fill.key: fill.entry.nbytes for fill in self.fills}
        slots = sum(entry.nbytes for _, entry in self.slots)
        return sum(wholes.values()) + slots + sum(load.nbytes for load in self.loads)

    @arrays.outside_inference_mode()
    def apply(self, memory: Known, advise: Callable[[Incompatible], Remedy]) -> None:
        """Change the model: objects that load their own state first, then arrays, then the rest.

        Where one of the objects refuses, those before it are put back and no array has changed.
        Arrays are copied to the end where only copying was interrupted. `advise` returns what to
        add to the error of one that refuses.
        """
        objects = [item for item in self.states if item[0].handover.may_refuse]
        objects.sort(key=lambda item: item[0].handover.is_last)
        memory.forget(owners=[load.owner for load, _ in self.states])
        handing = Handing()
        for load, value in objects:
            try:
                handing.give(load.handover, value)
            except Refused as refused:
                found = advise(refused.differences)
                error = handing.refusal(refused, hint=found.text, rename=found.rename)
                raise error from refused.__cause__
            except BaseException:
                handing.undo()
                raise
        memory.forget(keys=[change.fill.key for change in self.changes])
        try:
            _copy(self.chunks)
            for load, value in self.states:
                if not load.handover.may_refuse:
                    load.handover.assign(value)
        except BaseException:
            _copy(self.chunks)
            raise
        for owner, tree in self.pytrees:
            owner.adopt(tree.result())
        made = [
            Fill(entry.path, slot.value, entry)
            for slot, entry in self.slots
            if slot.is_filled and slot.codec is None
        ]
        memory.remember([*(change.fill for change in self.changes), *made], self.loads)


class CountedObjects:
    """Reads objects, and counts the bytes."""

    def __init__(self, objects: ObjectReader) -> None:
        self._objects = objects
        self.read_bytes: list[int] = []

    @property
    def is_far(self) -> bool:
        """True where each read takes a round trip."""
        return self._objects.is_far

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

    def read_parts(
        self, digest: Digest, buffer: memoryview, *, start: int, parts: Sequence[Part]
    ) -> None:
        """Read a range of an object."""
        self._objects.read_parts(digest, buffer, start=start, parts=parts)
        self.read_bytes.append(buffer.nbytes)


def _listed(entry: Entry) -> ArrayEntry:
    """The entry of an array that goes into one of the model's, which a page has to list."""
    if not isinstance(entry, ArrayEntry):
        raise unlisted(entry.path)
    return entry


def _holds(slot: Slot, entry: ArrayEntry, memory: Known) -> bool:
    """Whether the array of a pytree is the stored one, so that it can stay."""
    location = None if slot.like is None else location_of(slot.like)
    known = None if location is None else memory.entry(location)
    return known is not None and known.content == entry.content


def changes_of(fills: Iterable[Fill], memory: Known) -> list[Change]:
    """The chunks that differ from what the arrays hold; tied arrays are the same memory."""
    filled: dict[object, ArrayEntry] = {}
    changes: list[Change] = []
    for fill in fills:
        new = fill.entry
        first = filled.setdefault(fill.key, new)
        old = memory.entry(fill.key) if first is new else first
        if old is None or old.content != new.content:
            changes += _changes(fill, old if first is new else None)
    return changes


def _changes(fill: Fill, old: ArrayEntry | None) -> Iterator[Change]:
    """The chunks of one array that differ from what it holds; all of them when that is unknown."""
    new = fill.entry
    is_alike = old is not None and old.cut == new.cut
    known = old.digests if old is not None and is_alike else (None,) * len(new.digests)
    for (digest, chunk), known_digest in zip(new.grid(), known, strict=True):
        if digest != known_digest:
            yield Change(fill, chunk, digest)


def read_changes(
    changes: Sequence[Change], pages: Iterable[Page], objects: ObjectReader
) -> list[tuple[Change, memoryview]]:
    """The checked bytes of all changes; a bundle is read once where most of it is wanted."""
    small = {change.fill.path: change for change in changes if change.is_small}
    jobs = [partial(change.read, objects) for change in changes if not change.is_small]
    chunks = gather(jobs, threads=reading_threads(objects))
    parts = read_small(bundled(pages, small), objects)
    return [*chunks, *((small[entry.path], data) for entry, data in parts)]


def _copy(chunks: Sequence[tuple[Change, memoryview]]) -> None:
    targets = {id(change.fill.target): change.fill.target for change, _ in chunks}
    with arrays.opened(targets) as memory:
        for change, data in chunks:
            target = memory[id(change.fill.target)]
            arrays.copy_chunk(arrays.in_order(target, change.fill.entry.order), change.chunk, data)
