"""Reader: arrays of a checkpoint into memory, every byte checked against its digest before anybody sees it.

Fresh arrays are filled straight from storage and handed out only when all of them proved right. Existing arrays are
filled through a small buffer for each thread: a chunk is read, checked, then copied, so no wrong byte ever reaches them.
"""

from __future__ import annotations

import math
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore import arrays
from ckptstore.errors import StorageError
from ckptstore.format.chunks import Chunk, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.parallel import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.format.page import ArrayEntry, Page
    from ckptstore.objects import ObjectStore

READ_THREADS = 4
BUFFER_BYTES_MAX = 40 << 20  # all threads' buffers together, when existing arrays are filled


def read_fresh(
    pages: Iterable[Page], kinds: Mapping[str, str], *, objects: ObjectStore
) -> dict[str, Any]:
    """New arrays for the paths of `kinds` ("tensor" or "ndarray"), and nothing else read."""
    wanted = [(page, [entry for entry in page.entries if entry.path in kinds]) for page in pages]
    _check_memory(entry.nbytes for _, entries in wanted for entry in entries)
    made: dict[str, Any] = {}
    jobs: list[Callable[[], object]] = []
    for page, entries in wanted:
        small = [entry for entry in entries if entry.offset is not None]
        if small:
            jobs.append(partial(_read_bundle, page, small, _keep_small(made, kinds), objects))
        for entry in entries:
            if entry.offset is None:
                made[entry.path], memory = arrays.allocate(
                    kinds[entry.path], entry.dtype, entry.shape
                )
                jobs += [
                    partial(
                        objects.read_into, digest, memory[chunk.start : chunk.start + chunk.size]
                    )
                    for digest, chunk in _chunks(entry)
                ]
    gather(jobs, threads=READ_THREADS)
    return made


def read_into(pages: Iterable[Page], targets: Mapping[str, Any], *, objects: ObjectStore) -> None:
    """Fill existing arrays of the right dtype and shape. On an error some of them may hold their new values already."""
    jobs: list[Callable[[], object]] = []
    largest = 1
    buffers = _Buffers()
    for page in pages:
        entries = [entry for entry in page.entries if entry.path in targets]
        small = [entry for entry in entries if entry.offset is not None]
        if small:
            jobs.append(partial(_read_bundle, page, small, _copy_small(targets), objects))
        for entry in entries:
            if entry.offset is None:
                for digest, chunk in _chunks(entry):
                    largest = max(largest, chunk.size)
                    jobs.append(
                        partial(_copy_chunk, objects, buffers, digest, chunk, targets[entry.path])
                    )
    gather(jobs, threads=max(1, min(READ_THREADS, BUFFER_BYTES_MAX // largest)))


def _chunks(entry: ArrayEntry) -> Iterator[tuple[Digest, Chunk]]:
    grid = chunks(entry.shape, entry.chunk_shape, item_bytes=ITEM_BYTES[entry.dtype])
    return zip(entry.digests, grid, strict=True)


def _read_bundle(
    page: Page,
    small: list[ArrayEntry],
    take: Callable[[ArrayEntry, memoryview], None],
    objects: ObjectStore,
) -> None:
    """Read the small arrays of a page: the whole bundle when most of it is wanted, else one range each."""
    bundle = page.bundle
    if bundle is None:
        return
    if 2 * sum(entry.nbytes for entry in small) >= bundle.size:
        data = memoryview(bytearray(bundle.size))
        objects.read_into(bundle.digest, data)
        for entry in small:
            offset = entry.offset or 0
            take(entry, data[offset : offset + entry.nbytes])
        return
    for entry in small:
        data = memoryview(bytearray(entry.nbytes))
        objects.read_range(bundle.digest, data, start=entry.offset or 0, expected=entry.digests[0])
        take(entry, data)


def _keep_small(
    made: dict[str, Any], kinds: Mapping[str, str]
) -> Callable[[ArrayEntry, memoryview], None]:
    def keep(entry: ArrayEntry, data: memoryview) -> None:
        made[entry.path] = arrays.from_bytes(kinds[entry.path], entry.dtype, entry.shape, data)

    return keep


def _copy_small(targets: Mapping[str, Any]) -> Callable[[ArrayEntry, memoryview], None]:
    def copy(entry: ArrayEntry, data: memoryview) -> None:
        everything = tuple(slice(0, length) for length in entry.shape)
        arrays.copy_chunk(targets[entry.path], Chunk(0, entry.nbytes, everything), data)

    return copy


def _copy_chunk(
    objects: ObjectStore, buffers: _Buffers, digest: Digest, chunk: Chunk, target: Any
) -> None:
    data = buffers.of(chunk.size)
    objects.read_into(digest, data)
    arrays.copy_chunk(target, chunk, data)


class _Buffers(threading.local):
    """One buffer for each thread, as large as the largest chunk it met."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def of(self, size: int) -> memoryview:
        """Writable memory of this size, until the thread asks again."""
        if len(self.buffer) < size:
            self.buffer = bytearray(size)
        return memoryview(self.buffer)[:size]


def _check_memory(sizes: Iterable[int]) -> None:
    """Refuse what this machine cannot hold before anything is allocated."""
    needed = math.fsum(sizes)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > physical:
        raise StorageError(
            f"These arrays need {needed / 1e9:.1f} GB and this machine has {physical / 1e9:.1f} GB of memory. "
            "Choose some of them with include."
        )
