"""Reader: arrays of a checkpoint into memory, every byte checked against its digest before anybody sees it.

Fresh arrays are filled straight from storage and handed out only when all of them proved right. Existing arrays are
filled through a small buffer for each thread: a chunk is read, checked, then copied, so no wrong byte ever reaches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.memory import check_memory
from ckptstore.documents.chunks import Chunk, chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.python_gc import paused_collector
from ckptstore.threads import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle, Page
    from ckptstore.store.objects import ObjectReader

READ_THREADS = 4
BUNDLES_BYTES_MAX = 8 << 20  # bundles that are held at once, of about 1 MB each as a rule
BUFFER_BYTES_MAX = 32 << 20  # all threads' buffers together, when existing arrays are filled


def read_fresh(
    pages: Iterable[Page], kinds: Mapping[str, str], *, objects: ObjectReader
) -> dict[str, Any]:
    """New arrays for the paths of `kinds` ("tensor" or "ndarray"), and nothing else read."""
    wanted = [_Wanted.of(page, kinds) for page in pages]
    check_memory(entry.nbytes for part in wanted for entry in (*part.small, *part.large))
    made: dict[str, Any] = {}
    jobs: list[Callable[[], object]] = []
    for part in wanted:
        for entry in part.large:
            array, memory = arrays.allocate(kinds[entry.path], entry.dtype, entry.shape)
            made[entry.path] = array
            jobs += [
                partial(objects.read_into, digest, memory[chunk.start : chunk.start + chunk.size])
                for digest, chunk in _chunks(entry)
            ]
    gather(jobs, threads=READ_THREADS)
    with paused_collector():
        for entry, data in _read_small(wanted, objects):
            made[entry.path] = arrays.from_bytes(kinds[entry.path], entry.dtype, entry.shape, data)
    return made


def read_into(pages: Iterable[Page], targets: Mapping[str, Any], *, objects: ObjectReader) -> None:
    """Fill existing arrays of the right dtype and shape. On an error some of them may hold new values already."""
    wanted = [_Wanted.of(page, targets) for page in pages]
    buffers = Buffers()
    chunked = [
        (entry, *found) for part in wanted for entry in part.large for found in _chunks(entry)
    ]
    jobs = [
        partial(_copy_chunk, objects, buffers, digest, chunk, targets[entry.path])
        for entry, digest, chunk in chunked
    ]
    largest = max((chunk.size for _, _, chunk in chunked), default=1)
    gather(jobs, threads=max(1, min(READ_THREADS, BUFFER_BYTES_MAX // largest)))
    for entry, data in _read_small(wanted, objects):
        everything = tuple(slice(0, length) for length in entry.shape)
        arrays.copy_chunk(targets[entry.path], Chunk(0, entry.nbytes, everything), data)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The arrays of one page that are to be read."""

    bundle: Bundle | None
    small: list[ArrayEntry]
    large: list[ArrayEntry]

    @classmethod
    def of(cls, page: Page, paths: Container[str]) -> Self:
        """Choose the arrays of a page by their paths."""
        entries = [entry for entry in page.entries if entry.path in paths]
        small = [entry for entry in entries if entry.offset is not None]
        return cls(page.bundle, small, [entry for entry in entries if entry.offset is None])


def _chunks(entry: ArrayEntry) -> Iterator[tuple[Digest, Chunk]]:
    grid = chunks(entry.shape, entry.chunk_shape, item_bytes=ITEM_BYTES[entry.dtype])
    return zip(entry.digests, grid, strict=True)


def _read_small(
    wanted: Iterable[_Wanted], objects: ObjectReader
) -> Iterator[tuple[ArrayEntry, memoryview]]:
    """The checked bytes of small arrays; threads read a few bundles at a time."""
    batch: list[Callable[[], list[tuple[ArrayEntry, memoryview]]]] = []
    held = 0
    for part in wanted:
        if part.small and part.bundle:
            if batch and held + part.bundle.size > BUNDLES_BYTES_MAX:
                yield from chain.from_iterable(gather(batch, threads=READ_THREADS))
                batch, held = [], 0
            batch.append(partial(read_bundle, part.bundle, part.small, objects))
            held += part.bundle.size
    yield from chain.from_iterable(gather(batch, threads=READ_THREADS))


def read_bundle(
    bundle: Bundle, small: list[ArrayEntry], objects: ObjectReader
) -> list[tuple[ArrayEntry, memoryview]]:
    """Small arrays of a page: from the whole bundle when most of it is wanted, else one range each."""
    if 2 * sum(entry.nbytes for entry in small) < bundle.size:
        return [(entry, _read_range(bundle, entry, objects)) for entry in small]
    data = memoryview(bytearray(bundle.size))
    objects.read_into(bundle.digest, data)
    return [(entry, data[_start(entry) : _start(entry) + entry.nbytes]) for entry in small]


def _read_range(bundle: Bundle, entry: ArrayEntry, objects: ObjectReader) -> memoryview:
    data = memoryview(bytearray(entry.nbytes))
    objects.read_range(bundle.digest, data, start=_start(entry), expected=entry.digests[0])
    return data


def _start(entry: ArrayEntry) -> int:
    return entry.offset or 0


def _copy_chunk(
    objects: ObjectReader, buffers: Buffers, digest: Digest, chunk: Chunk, target: Any
) -> None:
    data = buffers.of(chunk.size)
    objects.read_into(digest, data)
    arrays.copy_chunk(target, chunk, data)
