"""Copying: objects from one repository to another, in parallel, in bounded memory, each verified.

An object is read whole, compared with its digest, and then put. What fails is never put, and what
was put is whole: a transfer that is killed leaves only objects that the next one finds in place.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from threading import Condition
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, first_line
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    memory = Memory(COPY_BYTES_MAX)
    ordered = sorted(sizes, key=lambda digest: (-sizes[digest], digest))
    with sides.target.objects.batch() as target:
        copy = partial(_copy, sizes, held, memory, sides, target, meter)
        gather((partial(copy, digest) for digest in ordered), threads=sides.threads)


def _copy(
    sizes: Mapping[Digest, int],
    held: Mapping[Digest, bytes],
    memory: Memory,
    sides: Sides,
    target: ObjectStore,
    meter: Meter,
    digest: Digest,
) -> None:
    size = sizes[digest]
    if digest in held:
        target.put(digest, held[digest])
    else:
        with memory.of(size):
            buffer = memoryview(bytearray(size))
            try:
                sides.source.objects.read_into(digest, buffer)
            except CorruptError as error:
                raise CorruptError(f"In {sides.source.place}: {first_line(error)}.") from error
            target.put(digest, buffer)
    meter.add("stored", size)


class Memory:
    """A number of bytes that jobs on several threads share."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._used = bytes_max, 0
        self._changed = Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Wait until there is room for so many bytes, or nothing else is in memory."""
        with self._changed:
            while self._used and self._used + size > self._bytes_max:
                self._changed.wait()
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
