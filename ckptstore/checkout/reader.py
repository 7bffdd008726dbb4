"""Reader: arrays of a checkpoint into memory, every byte checked against its digest first.

New arrays are filled straight from storage where a chunk is one run of their bytes, and handed out
only when all of them proved right. All other chunks (of arrays that exist already, and of grids
that are not contiguous) go through a small buffer for each thread: a chunk is read, checked and
then copied, so no wrong byte ever reaches an existing array.

Which arrays are read is decided by the caller; arrays committed through Zarr are not read here.
ADR 0005, ADR 0022; docs/reference/format.md, section 13.
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.memory_limit import check_memory
from ckptstore.documents.chunks import Chunk
from ckptstore.python_gc import paused_collector
from ckptstore.threads import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle, Page
    from ckptstore.store.objects import ObjectReader

    Bundled = tuple[Bundle, list[ArrayEntry]]  # arrays that are wanted of a bundle

READ_THREADS, FAR_READ_THREADS = 4, 48  # the latter wait for a network
BUNDLES_BYTES_MAX = 8 << 20  # bundles held at once; most have about 1 MB
# The buffers of all threads together.
BUFFER_BYTES_MAX, FAR_BUFFER_BYTES_MAX = 32 << 20, 128 << 20


def reading_threads(objects: ObjectReader, largest: int = 1) -> int:
    """Return how many threads read at once, each with a buffer of the largest size needed."""
    threads, room = READ_THREADS, BUFFER_BYTES_MAX
    if objects.is_far:
        threads, room = FAR_READ_THREADS, FAR_BUFFER_BYTES_MAX
    return max(1, min(threads, room // largest))


def read_fresh(
    pages: Sequence[Page], kinds: Mapping[str, str], *, objects: ObjectReader
) -> dict[str, Any]:
    """Read new arrays for the paths of `kinds` ("tensor" or "ndarray"), and nothing else."""
    large, small = _large(pages, kinds), list(bundled(pages, kinds))
    check_memory(entry.nbytes for entry in chain(large, *(entries for _, entries in small)))
    first, *later = _batches(small) or [[]]
    fresh: dict[str, Any] = {}
    jobs: list[Callable[[], Any]] = []
    copies = _Copies(objects)
    for entry in large:
        array, memory = arrays.allocate(kinds[entry.path], entry.dtype, entry.shape, entry.order)
        fresh[entry.path] = array
        for digest, chunk in entry.grid():
            if chunk.start is None:
                copies.add(digest, chunk, arrays.in_order(array, entry.order))
            else:
                run = memory[chunk.start : chunk.start + chunk.size]
                jobs.append(partial(objects.read_into, digest, run))
    bundles: list[Callable[[], Any]] = [partial(read_bundle, *each, objects) for each in first]
    done = gather([*bundles, *jobs], threads=reading_threads(objects))
    copies.run()
    with paused_collector():
        for entry, data in chain(*done[: len(bundles)], read_small(chain(*later), objects)):
            fresh[entry.path] = arrays.from_bytes(
                kinds[entry.path], entry.dtype, entry.shape, data, entry.order
            )
            del data
    return fresh


def read_into(pages: Sequence[Page], targets: Mapping[str, Any], *, objects: ObjectReader) -> None:
    """Fill existing arrays of the right dtype and shape.

    On an error some of them may already hold new values.
    """
    copies = _Copies(objects)
    with arrays.opened(targets) as memory:
        for entry in _large(pages, memory):
            target = arrays.in_order(memory[entry.path], entry.order)
            for digest, chunk in entry.grid():
                copies.add(digest, chunk, target)
        copies.run()
        for entry, data in read_small(bundled(pages, memory), objects):
            target = arrays.in_order(memory[entry.path], entry.order)
            arrays.copy_chunk(target, Chunk(0, entry.nbytes, ()), data)
            del data


class _Copies:
    """Chunks to read, each through a buffer of its thread."""

    def __init__(self, objects: ObjectReader) -> None:
        self._objects = objects
        self._buffers = Buffers()
        self._jobs: list[Callable[[], object]] = []
        self._largest = 1

    def add(self, digest: Digest, chunk: Chunk, target: Any) -> None:
        """Have a chunk copied to its place in an array."""
        self._jobs.append(partial(self._copy, digest, chunk, target))
        self._largest = max(self._largest, chunk.size)

    def run(self) -> None:
        """Copy them all, on as many threads as there is room for buffers."""
        gather(self._jobs, threads=reading_threads(self._objects, self._largest))

    def _copy(self, digest: Digest, chunk: Chunk, target: Any) -> None:
        data = self._buffers.of(chunk.size)
        self._objects.read_into(digest, data)
        arrays.copy_chunk(target, chunk, data)


def _large(pages: Iterable[Page], paths: Container[str]) -> list[ArrayEntry]:
    """The arrays in chunks that have one of these paths."""
    return [
        entry
        for page in pages
        for entry in page.entries
        if entry.offset is None and entry.path in paths
    ]


def bundled(pages: Iterable[Page], paths: Container[str]) -> Iterator[Bundled]:
    """The small arrays that have one of these paths, by bundle."""
    for page in pages:
        entries = [
            entry for entry in page.entries if entry.offset is not None and entry.path in paths
        ]
        if entries and page.bundle:
            yield page.bundle, entries


def read_small(
    small: Iterable[Bundled], objects: ObjectReader
) -> Iterator[tuple[ArrayEntry, memoryview]]:
    """Yield the checked bytes of small arrays; threads read a few bundles at a time.

    Bytes that the caller still holds when it asks for more keep their bundle in memory, beside
    those that are read then: a loop deletes them.
    """
    for batch in _batches(small):
        reads = (partial(read_bundle, bundle, entries, objects) for bundle, entries in batch)
        yield from chain.from_iterable(gather(reads, threads=reading_threads(objects)))


def _batches(small: Iterable[Bundled]) -> list[list[Bundled]]:
    """Split bundles into groups that may be in memory at once."""
    batches: list[list[Bundled]] = []
    held = 0
    for bundle, entries in small:
        if not batches or held + bundle.size > BUNDLES_BYTES_MAX:
            batches.append([])
            held = 0
        batches[-1].append((bundle, entries))
        held += bundle.size
    return batches


def read_bundle(
    bundle: Bundle, small: list[ArrayEntry], objects: ObjectReader
) -> list[tuple[ArrayEntry, memoryview]]:
    """Read small arrays of a page: the whole bundle if most of it is wanted, else ranges.

    Where each read takes a round trip, several arrays are one range, with all between them.
    """
    if 2 * _wanted_bytes(small, objects) < bundle.size:
        if objects.is_far and len(small) > 1:
            return _read_span(bundle, small, objects)
        return [(entry, read_bundled(bundle, entry, objects)) for entry in small]
    data = memoryview(bytearray(bundle.size))
    objects.read_into(bundle.digest, data)
    return [(entry, data[_start(entry) : _start(entry) + entry.nbytes]) for entry in small]


def _wanted_bytes(small: list[ArrayEntry], objects: ObjectReader) -> int:
    """The bytes to read of a bundle if not all are read."""
    if objects.is_far:
        begin, end = _span(small)
        return end - begin
    return sum(entry.nbytes for entry in small)


def _span(small: Iterable[ArrayEntry]) -> tuple[int, int]:
    """From where to where small arrays lie in their bundle."""
    places = [(_start(entry), _start(entry) + entry.nbytes) for entry in small]
    return min(places)[0], max(end for _, end in places)


def _read_span(
    bundle: Bundle, small: list[ArrayEntry], objects: ObjectReader
) -> list[tuple[ArrayEntry, memoryview]]:
    """Read small arrays by one read from the first to the last of them."""
    begin, end = _span(small)
    data = memoryview(bytearray(end - begin))
    parts = [
        (entry, slice(_start(entry) - begin, _start(entry) - begin + entry.nbytes))
        for entry in small
    ]
    objects.read_parts(
        bundle.digest, data, start=begin, parts=[(entry.digests[0], part) for entry, part in parts]
    )
    return [(entry, data[part]) for entry, part in parts]


def read_bundled(bundle: Bundle, entry: ArrayEntry, objects: ObjectReader) -> memoryview:
    """Read one small array, and nothing else of its bundle."""
    data = memoryview(bytearray(entry.nbytes))
    objects.read_range(bundle.digest, data, start=_start(entry), expected=entry.digests[0])
    return data


def _start(entry: ArrayEntry) -> int:
    return entry.offset or 0
