"""Copying: objects from one repository to another, in parallel, in bounded memory, each verified.

An object is read whole, compared with its digest, and then put. What fails is never put, and what
was put is whole: a transfer that is killed leaves only objects that the next one finds in place.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, StorageError, first_line
from ckptstore.threads import Room, gather, is_abandoned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.digest import Digest
    from ckptstore.store.meter import Meter
    from ckptstore.store.objects import ObjectStore
    from ckptstore.transfer.side import Sides

COPY_BYTES_MAX = 128 << 20  # in memory, all at once, unless one object alone is larger


def copy_objects(
    sizes: Mapping[Digest, int], held: Mapping[Digest, bytes], sides: Sides, meter: Meter
) -> None:
    """Copy objects of known sizes, the largest first; durable once they are flushed.

    Args:
        sizes: The objects.
        held: The bytes of some of them, checked.
        sides: The repositories.
        meter: Counts the bytes.

    Raises:
        CorruptError: One is damaged or missing at the source.
    """
    meter.begin("stored", sum(sizes.values()))
    room = Room(COPY_BYTES_MAX)
    ordered = sorted(sizes, key=lambda digest: (-sizes[digest], digest))
    with sides.target.objects.batch() as target:
        copy = partial(_copy, sizes, held, room, sides, target, meter)
        gather((partial(copy, digest) for digest in ordered), threads=sides.threads)


def _copy(
    sizes: Mapping[Digest, int],
    held: Mapping[Digest, bytes],
    room: Room,
    sides: Sides,
    target: ObjectStore,
    meter: Meter,
    digest: Digest,
) -> None:
    if is_abandoned():
        raise StorageError("The transfer was interrupted.")
    size = sizes[digest]
    if digest in held:
        target.put(digest, held[digest])
    else:
        with room.of(size):
            buffer = memoryview(bytearray(size))
            try:
                sides.source.objects.read_into(digest, buffer)
            except CorruptError as error:
                raise CorruptError(f"In {sides.source.place}: {first_line(error)}.") from error
            target.put(digest, buffer)
    meter.add("stored", size)
