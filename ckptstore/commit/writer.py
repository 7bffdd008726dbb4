"""Writer: a state becomes objects, pages and what a manifest says of them.

Chunks are hashed straight from the arrays' own memory by a few threads, which keep the processors busy; what is new is
written by more threads, which mostly wait for fsync. What is there already with the right size is not written again,
but flushed unless the parent holds it, because whoever put it may not have come to that. When `write` returns,
everything the manifest will refer to is durable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents import structure
from ckptstore.documents.chunks import chunk_count, chunk_shape, chunks
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.page import SMALL_BYTES, ArrayEntry, Bundle, Page, cut
from ckptstore.python_gc import paused_collector
from ckptstore.store.objects import PUT_THREADS
from ckptstore.store.reach import Reached, Written, page_ref, reached_by
from ckptstore.threads import Buffers, LentBuffers, Workers, results

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Future

    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.chunks import Chunk
    from ckptstore.state.flatten import Flat
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore

HASH_THREADS = 3  # more would only take turns
# Chunks that have to be copied are hashed and put by the thread that holds the copy.
COPY_THREADS = 8
JOB_BYTES = 4 << 20  # smaller chunks are hashed together: changing threads costs more than 96 KiB
COPY_BYTES_MAX = 64 << 20  # copies of chunks that are not contiguous, all at once
BUNDLES_BYTES_MAX = 32 << 20  # bundles that are being written, all at once


def write(
    flat: Flat[ArraySource],
    *,
    objects: ObjectStore,
    catalog: Catalog,
    parent: Digest | None,
    chunk_bytes: int,
) -> Written:
    """Store a state; durable when this returns."""
    reached = reached_by(parent, catalog) if parent else Reached()
    with (
        Workers(PUT_THREADS) as putters,
        Workers(_hash_threads(flat.arrays.values(), chunk_bytes)) as hashers,
    ):
        sink = _Sink(objects, reached, putters)
        with paused_collector():
            root, _ = sink.put(structure.encode(flat.root))
            plans = _plan(flat, chunk_bytes)
        pages = _write_pages(plans, sink, hashers)
        sink.wait()
    for page, digest in pages:
        catalog.remember_page(digest, page)
    objects.flush(sink.relied - (reached.digests - sink.written))
    return Written(
        pages=tuple(page_ref(page, digest) for page, digest in pages),
        structure=root,
        new_bytes=sink.new_bytes,
        relied=frozenset(sink.relied),
    )


@dataclass(slots=True)
class _Planned:
    """One array to write; `tied` names the large array that holds the same bytes and comes before it."""

    path: str
    source: ArraySource
    is_small: bool
    chunk_shape: tuple[int, ...] = ()
    tied: str | None = None

    @property
    def chunk_count(self) -> int:
        """How many digests the page will list for it."""
        return 1 if self.is_small else chunk_count(self.source.shape, self.chunk_shape)

    def chunks(self) -> Iterator[Chunk]:
        """The chunks to hash; none for an empty or a tied array."""
        if self.tied:
            return iter(())
        return chunks(self.source.shape, self.chunk_shape, item_bytes=ITEM_BYTES[self.source.dtype])


def _plan(flat: Flat[ArraySource], chunk_bytes: int) -> list[list[_Planned]]:
    """The arrays in path order, cut into pages."""
    planned = [_planned(path, flat, chunk_bytes) for path in sorted(flat.arrays)]
    return [planned[part] for part in cut([(item.path, item.chunk_count) for item in planned])]


def _planned(path: str, flat: Flat[ArraySource], chunk_bytes: int) -> _Planned:
    source = flat.arrays[path]
    if 0 < source.nbytes < SMALL_BYTES:
        return _Planned(path, source, is_small=True)
    shape = chunk_shape(source.shape, item_bytes=ITEM_BYTES[source.dtype], chunk_bytes=chunk_bytes)
    return _Planned(path, source, is_small=False, chunk_shape=shape, tied=flat.tied.get(path))


def _hash_threads(sources: Iterable[ArraySource], chunk_bytes: int) -> int:
    """As many threads as help, and no more than may hold a copy of a chunk at once."""
    if all(source.flat is not None for source in sources):
        return HASH_THREADS
    return max(1, min(COPY_THREADS, COPY_BYTES_MAX // chunk_bytes))


def _write_pages(
    plans: list[list[_Planned]], sink: _Sink, hashers: Workers
) -> list[tuple[Page, Digest]]:
    """Have every chunk, bundle and page put: the pages in path order, with their digests.

    Workers hash chunks from the start. Meanwhile this thread copies and hashes small arrays: thousands of short calls on
    several threads would only wait for each other. A page of small arrays alone is put while the next are prepared.
    """
    with paused_collector():
        chunked = [
            (paths, hashers.submit(partial(sink.put_chunks, chunks)))
            for paths, chunks in _jobs(plans)
        ]
        buffers = LentBuffers(BUNDLES_BYTES_MAX)
        pages: dict[int, tuple[Page, Digest]] = {}
        waiting: dict[int, tuple[list[_Part], Bundle | None]] = {}
        for number, plan in enumerate(plans):
            parts, bundle = _write_bundle(plan, sink, buffers)
            if all(item.is_small for item in plan):
                pages[number] = _write_page(plan, parts, bundle, {}, sink)
            else:
                waiting[number] = parts, bundle
    large: dict[str, list[Digest]] = {}
    for paths, future in chunked:
        for path, digest in zip(paths, future.result(), strict=True):
            large.setdefault(path, []).append(digest)
    with paused_collector():
        for number, (parts, bundle) in waiting.items():
            pages[number] = _write_page(plans[number], parts, bundle, large, sink)
    return [pages[number] for number in range(len(plans))]


def _jobs(plans: list[list[_Planned]]) -> Iterator[tuple[list[str], list[_SourceChunk]]]:
    """The chunks to hash and the paths of their arrays, in path order; as many in one job as are worth a thread's turn."""
    paths: list[str] = []
    job: list[_SourceChunk] = []
    size = 0
    for plan in plans:
        for item in plan:
            for chunk in () if item.is_small else item.chunks():
                paths.append(item.path)
                job.append((item.source, chunk))
                size += chunk.size
                if size >= JOB_BYTES:
                    yield paths, job
                    paths, job, size = [], [], 0
    if job:
        yield paths, job


def _write_page(
    plan: list[_Planned],
    parts: list[_Part],
    bundle: Bundle | None,
    large: Mapping[str, list[Digest]],
    sink: _Sink,
) -> tuple[Page, Digest]:
    """Make a page, and have it put."""
    page = Page(entries=tuple(_entries(plan, parts, large)), bundle=bundle)
    return page, sink.put(page.encode())[0]


_SourceChunk = tuple["ArraySource", "Chunk"]
_Part = tuple[Digest, int]  # a small array: its digest, and where it begins in its bundle


def _write_bundle(
    plan: list[_Planned], sink: _Sink, buffers: LentBuffers
) -> tuple[list[_Part], Bundle | None]:
    """Have the small arrays of a page put as one object.

    They are hashed from the copy that is stored, so that a digest is right even if somebody changes an array meanwhile.
    """
    sources = [item.source for item in plan if item.is_small]
    if not sources:
        return [], None
    buffer = buffers.of(sum(source.nbytes for source in sources))
    parts = _join(sources, buffer)
    bundle, put = sink.put_bundle(buffer, parts)
    buffers.lend(buffer, until=put)
    return parts, bundle


def _join(sources: list[ArraySource], buffer: memoryview) -> list[_Part]:
    """Copy arrays to a buffer, one behind the other: their digests and places in it."""
    parts = []
    ends = accumulate(source.nbytes for source in sources)
    for source, end in zip(sources, ends, strict=True):
        start = end - source.nbytes
        part = buffer[start:end]
        part[:] = source.whole()
        parts.append((Digest.of(part), start))
    return parts


def _entries(
    plan: list[_Planned], parts: list[_Part], large: Mapping[str, list[Digest]]
) -> Iterator[ArrayEntry]:
    """The entries of one page."""
    small = iter(parts)
    for item in plan:
        source = item.source
        if item.is_small:
            digest, offset = next(small)
            yield ArrayEntry(
                path=item.path,
                dtype=source.dtype,
                shape=source.shape,
                digests=(digest,),
                offset=offset,
            )
        else:
            yield ArrayEntry(
                path=item.path,
                dtype=source.dtype,
                shape=source.shape,
                chunk_shape=item.chunk_shape,
                digests=tuple(large.get(item.tied or item.path, ())),
            )


class _Sink:
    """Puts objects that are not there yet, and remembers what it relies on."""

    def __init__(self, objects: ObjectStore, reached: Reached, putters: Workers) -> None:
        self.objects, self.reached, self.putters = objects, reached, putters
        self.relied: set[Digest] = set()
        self.written: set[Digest] = set()
        self.new_bytes = 0
        self._puts: list[Future[None]] = []
        self._buffers = Buffers()
        self._lock = Lock()

    def put(
        self, data: bytes | memoryview, *, is_shared: bool = False
    ) -> tuple[Digest, Future[None] | None]:
        """Have an object put unless it is there; None when it is, else a future of when its memory is free again.

        is_shared: others may write to this memory meanwhile.
        """
        digest = Digest.of(data)
        if not self._is_needed(digest, len(data)):
            return digest, None
        put = self.putters.submit(partial(self.objects.put, digest, data, is_shared=is_shared))
        with self._lock:
            self._puts.append(put)
        return digest, put

    def put_chunks(self, chunks: Iterable[_SourceChunk]) -> list[Digest]:
        """Hash chunks, and have them put."""
        return [self._put_chunk(source, chunk) for source, chunk in chunks]

    def _put_chunk(self, source: ArraySource, chunk: Chunk) -> Digest:
        """Hash one chunk of an array, and have it put; at once when it is a copy, whose memory is wanted again."""
        data = source.chunk(chunk, self._buffers.of)
        if source.flat is not None:
            return self.put(data, is_shared=not source.is_private)[0]
        digest = Digest.of(data)
        if self._is_needed(digest, len(data)):
            self.objects.put(digest, data)
        return digest

    def put_bundle(
        self, data: memoryview, parts: list[_Part]
    ) -> tuple[Bundle, Future[None] | None]:
        """The same for the small arrays of a page; a bundle that the parent holds is not even hashed."""
        bundle = self.reached.bundles.get(tuple(digest for digest, _ in parts))
        if bundle and self.objects.has(bundle.digest, size=bundle.size):
            with self._lock:
                self.relied.add(bundle.digest)
            return bundle, None
        digest, put = self.put(data)
        return Bundle(digest=digest, size=len(data)), put

    def wait(self) -> None:
        """Return once everything is put."""
        results(self._puts)

    def _is_needed(self, digest: Digest, size: int) -> bool:
        """Rely on an object: True, for one caller, when it has to be put."""
        with self._lock:
            if digest in self.relied:
                return False
            self.relied.add(digest)
        if self.reached.is_sound and self.objects.has(digest, size=size):
            return False
        with self._lock:
            self.written.add(digest)
            self.new_bytes += size
        return True
