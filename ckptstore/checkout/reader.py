"""Reader: arrays of a checkpoint into memory, every byte checked against its digest first.

New arrays are filled straight from storage where a chunk is one run of their bytes, and handed out
only when all of them proved right. All other chunks (of arrays that exist already, and of grids
that are not contiguous) go through a small buffer for each thread: a chunk is read, checked and
then copied, so no wrong byte ever reaches an existing array.

Which arrays are read is decided by the caller; arrays committed through Zarr are not read here.
ADR 0005, ADR 0022; docs/reference/format.md, section 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.memory import check_memory
from ckptstore.documents.chunks import Chunk
from ckptstore.python_gc import paused_collector
from ckptstore.threads import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.page import ArrayEntry, Bundle, Page
    from ckptstore.store.objects import ObjectReader

READ_THREADS = 4
BUNDLES_BYTES_MAX = 8 << 20  # bundles held at once; most have about 1 MB
BUFFER_BYTES_MAX = 32 << 20  # the buffers of all threads together


def read_fresh(
    pages: Iterable[Page], kinds: Mapping[str, str], *, objects: ObjectReader
) -> dict[str, Any]:
    """Read new arrays for the paths of `kinds` ("tensor" or "ndarray"), and nothing else."""
    wanted = [_Wanted.of(page, kinds) for page in pages]
    check_memory(entry.nbytes for part in wanted for entry in (*part.small, *part.large))
    made: dict[str, Any] = {}
    jobs: list[Callable[[], object]] = []
    copies = _Copies(objects)
    for part in wanted:
        for entry in part.large:
            array, memory = arrays.allocate(kinds[entry.path], entry.dtype, entry.shape)
            made[entry.path] = array
            for digest, chunk in entry.grid():
                if chunk.start is None:
                    copies.add(digest, chunk, array)
                else:
                    run = memory[chunk.start : chunk.start + chunk.size]
                    jobs.append(partial(objects.read_into, digest, run))
    gather(jobs, threads=READ_THREADS)
    copies.run()
    with paused_collector():
        for entry, data in _read_small(wanted, objects):
            made[entry.path] = arrays.from_bytes(kinds[entry.path], entry.dtype, entry.shape, data)
    return made


def read_into(pages: Iterable[Page], targets: Mapping[str, Any], *, objects: ObjectReader) -> None:
    """Fill existing arrays of the right dtype and shape.

    On an error some of them may already hold new values.
    """
    wanted = [_Wanted.of(page, targets) for page in pages]
    copies = _Copies(objects)
    for part in wanted:
        for entry in part.large:
            for digest, chunk in entry.grid():
                copies.add(digest, chunk, targets[entry.path])
    copies.run()
    for entry, data in _read_small(wanted, objects):
        arrays.copy_chunk(targets[entry.path], Chunk(0, entry.nbytes, ()), data)


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
        """Copy them all, on as many threads as `BUFFER_BYTES_MAX` has room for."""
        gather(self._jobs, threads=max(1, min(READ_THREADS, BUFFER_BYTES_MAX // self._largest)))

    def _copy(self, digest: Digest, chunk: Chunk, target: Any) -> None:
        data = self._buffers.of(chunk.size)
        self._objects.read_into(digest, data)
        arrays.copy_chunk(target, chunk, data)


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


def _read_small(
    wanted: Iterable[_Wanted], objects: ObjectReader
) -> Iterator[tuple[ArrayEntry, memoryview]]:
    """Yield the checked bytes of small arrays; threads read a few bundles at a time."""
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
    """Read small arrays of a page: the whole bundle if most of it is wanted, else ranges."""
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
