"""Slots: arrays of a checkpoint that are made anew where a template of JAX has its own.

Each part of an array is read to host memory, checked, and put on its device. A part that several
devices share is read once. At most HOST_BYTES_MAX wait in host memory at once, or one part
if that is larger. On the CPU the array takes over the memory it was read to. ADR 0075.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.memory_limit import check_memory
from ckptstore.arrays.source import JAX, NDARRAY
from ckptstore.checkout.boxes import Wanted, read_boxes
from ckptstore.checkout.reader import read_fresh
from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.arrays.pytrees import Slot
    from ckptstore.documents.page import ArrayEntry, Page
    from ckptstore.store.objects import ObjectReader

HOST_BYTES_MAX = 512 << 20


def read_slots(pages: Sequence[Page], slots: Mapping[str, Slot], *, objects: ObjectReader) -> None:
    """Make the array of each slot.

    Args:
        pages: Those that list the arrays.
        slots: The slots by the paths of the arrays, whose shapes and dtypes are theirs.
        objects: Reads the chunks.
    """
    if not slots:
        return
    entries = {e.path: e for page in pages for e in page.entries if e.path in slots}
    wholes = [entry for path, entry in entries.items() if not slots[path].is_spread]
    for batch in _batches((entry.nbytes, entry) for entry in wholes):
        kinds = {entry.path: JAX if slots[entry.path].is_jax else NDARRAY for entry in batch}
        place(read_fresh(pages, kinds, objects=objects), slots)
    spread = {path: slots[path] for path in entries if slots[path].is_spread}
    if spread:
        _read_spread(pages, spread, entries, objects)


def place(fresh: Mapping[str, Any], slots: Mapping[str, Slot]) -> None:
    """Give arrays of host memory, which nothing else uses, to their slots."""
    from ckptstore.arrays.jax import placed

    placed(fresh, slots)


def place_slot(slot: Slot, array: Any) -> None:
    """Give an array of numpy or torch to a slot."""
    import numpy as np

    place({"": np.asarray(array)}, {"": slot})


def number_for(slot: Slot, number: Any) -> Any:
    """The array of numpy that a number becomes in a slot; None where it would be another one."""
    from ckptstore.arrays.jax import of_number

    return of_number(number, slot.dtype)


def take_number(slot: Slot, value: Any) -> None:
    """Give a slot a plain value: as it is in the place of a number, else as an array."""
    if slot.is_number:
        slot.fill(value)
    else:
        place_slot(slot, number_for(slot, value))


def _read_spread(
    pages: Sequence[Page],
    slots: Mapping[str, Slot],
    entries: Mapping[str, ArrayEntry],
    objects: ObjectReader,
) -> None:
    """Make arrays of which each device holds a part."""
    from ckptstore.arrays.jax import boxes_of, joined, put_box

    devices = {path: boxes_of(slot) for path, slot in slots.items()}
    parts: dict[str, dict[Any, Any]] = {path: {} for path in slots}
    boxes = (
        (box.size * ITEM_BYTES[entries[path].dtype], (path, box))
        for path, found in devices.items()
        for box in found
    )
    for batch in _batches(boxes):
        wanted: dict[str, list[Wanted]] = {}
        check_memory(box.size * ITEM_BYTES[entries[path].dtype] for path, box in batch)
        for path, box in batch:
            memory, _ = arrays.allocate(JAX, entries[path].dtype, box.shape)
            wanted.setdefault(path, []).append(Wanted(box, memory))
        read_boxes(pages, wanted, objects=objects)
        for path, found in wanted.items():
            for box, memory in found:
                parts[path] |= put_box(memory, devices[path][box])
    for path, slot in slots.items():
        slot.fill(joined(slot, parts[path]))


def _batches(items: Iterable[tuple[int, Any]]) -> Iterator[list[Any]]:
    """Split what takes so many bytes of host memory into groups that may take it at once."""
    batch: list[Any] = []
    held = 0
    for size, item in items:
        if batch and held + size > HOST_BYTES_MAX:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size
    if batch:
        yield batch
