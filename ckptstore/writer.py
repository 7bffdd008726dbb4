"""Writer: a state becomes objects, pages and what a manifest says of them.

Chunks are hashed and written by a few threads straight from the arrays' own memory. What is there already with the right
size is not written again, but flushed unless the parent holds it, because whoever put it may not have come to that.
When `write` returns, everything the manifest will refer to is durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, Any

from ckptstore.digest import Digest
from ckptstore.format import structure
from ckptstore.format.chunks import chunk_count, chunk_shape, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.manifest import PageRef
from ckptstore.format.page import SMALL_BYTES, ArrayEntry, Bundle, Page, cut
from ckptstore.parallel import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.arrays import ArraySource
    from ckptstore.catalog import Catalog
    from ckptstore.format.chunks import Chunk
    from ckptstore.format.manifest import Manifest
    from ckptstore.objects import ObjectStore
    from ckptstore.state import Flat

WRITE_THREADS = 8  # most of a thread's time is spent waiting for its fsync
COPY_BYTES_MAX = (
    64 << 20
)  # what all threads together may hold as copies of arrays that are not contiguous


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a manifest needs to know of a state that is now durable.

    relied: the digest of every object that the manifest reaches.
    """

    pages: tuple[PageRef, ...]
    structure: Digest
    new_bytes: int
    relied: frozenset[Digest]


@dataclass(slots=True)
class Reached:
    """What a parent checkpoint reaches: durable, and not to be put again.

    bundles: each bundle by the digests of the small arrays in it, in order.
    """

    digests: set[Digest] = field(default_factory=set)
    bundles: dict[tuple[Digest, ...], Bundle] = field(default_factory=dict)


def write(
    flat: Flat[ArraySource],
    *,
    objects: ObjectStore,
    catalog: Catalog,
    parent: Manifest | None,
    chunk_bytes: int,
) -> Written:
    """Store a state; durable when this returns."""
    reached = reached_by(parent, catalog) if parent else Reached()
    sink = _Sink(objects, reached)
    plans = _plan(flat, chunk_bytes)
    refs = []
    for page in _write_arrays(plans, sink, threads=_threads(flat, chunk_bytes)):
        digest = sink.put(page.encode())
        catalog.remember_page(digest, page)
        refs.append(
            PageRef(
                first=page.first, digest=digest, arrays=len(page.entries), bytes=page.array_bytes
            )
        )
    root = sink.put(structure.encode(flat.root))
    objects.flush(sink.relied - reached.digests)
    return Written(
        pages=tuple(refs), structure=root, new_bytes=sink.new_bytes, relied=frozenset(sink.relied)
    )


def reached_by(manifest: Manifest, catalog: Catalog) -> Reached:
    """What a checkpoint reaches, from its pages alone."""
    reached = Reached(digests={manifest.structure, *(ref.digest for ref in manifest.pages)})
    for page in catalog.pages(manifest):
        reached.digests.update(digest for digest, _ in page.digests())
        if page.bundle:
            small = tuple(entry.digests[0] for entry in page.entries if entry.offset is not None)
            reached.bundles[small] = page.bundle
    return reached


@dataclass(frozen=True, slots=True)
class _Planned:
    """One array to write; `tied` names the large array that holds the same bytes and comes before it."""

    path: str
    source: ArraySource
    chunk_shape: tuple[int, ...]
    tied: str | None

    @property
    def is_small(self) -> bool:
        return 0 < self.source.nbytes < SMALL_BYTES

    def chunks(self) -> Iterator[Chunk]:
        """The chunks to hash; none for a small, an empty or a tied array."""
        if self.is_small or self.tied:
            return iter(())
        return chunks(self.source.shape, self.chunk_shape, item_bytes=ITEM_BYTES[self.source.dtype])


def _plan(flat: Flat[ArraySource], chunk_bytes: int) -> list[list[_Planned]]:
    """The arrays in path order, cut into pages."""
    planned = [_planned(path, flat, chunk_bytes) for path in sorted(flat.arrays)]
    counts = [(item.path, chunk_count(item.source.shape, item.chunk_shape)) for item in planned]
    return [planned[part] for part in cut(counts)]


def _planned(path: str, flat: Flat[ArraySource], chunk_bytes: int) -> _Planned:
    source = flat.arrays[path]
    shape = chunk_shape(source.shape, item_bytes=ITEM_BYTES[source.dtype], chunk_bytes=chunk_bytes)
    tied = flat.tied.get(path) if source.nbytes >= SMALL_BYTES else None
    return _Planned(path, source, shape, tied)


def _threads(flat: Flat[ArraySource], chunk_bytes: int) -> int:
    """As many threads as help, and no more than may hold a copy of a chunk at once."""
    if all(source.flat is not None for source in flat.arrays.values()):
        return WRITE_THREADS
    return max(1, min(WRITE_THREADS, COPY_BYTES_MAX // chunk_bytes))


def _write_arrays(plans: list[list[_Planned]], sink: _Sink, *, threads: int) -> Iterator[Page]:
    """Hash and put every chunk and bundle, and make the pages that list them."""
    chunk_jobs: list[Callable[[], Digest]] = [
        partial(sink.put_chunk, item.source, chunk)
        for plan in plans
        for item in plan
        for chunk in item.chunks()
    ]
    bundle_jobs: list[Callable[[], _Bundled]] = [
        partial(sink.put_bundle, [item.source for item in plan if item.is_small]) for plan in plans
    ]
    jobs: list[Callable[[], Any]] = [*chunk_jobs, *bundle_jobs]
    results = gather(jobs, threads=threads)
    digests = iter(results[: len(chunk_jobs)])
    large = {
        item.path: tuple(islice(digests, sum(1 for _ in item.chunks())))
        for plan in plans
        for item in plan
        if not item.is_small
    }
    for plan, bundled in zip(plans, results[len(chunk_jobs) :], strict=True):
        yield _page(plan, bundled, large)


def _page(plan: list[_Planned], bundled: _Bundled, large: Mapping[str, tuple[Digest, ...]]) -> Page:
    """The page of one part of the array list."""
    small = iter(zip(bundled.digests, bundled.offsets, strict=True))
    entries = []
    for item in plan:
        entry = ArrayEntry(path=item.path, dtype=item.source.dtype, shape=item.source.shape)
        if item.is_small:
            digest, offset = next(small)
            entries.append(replace(entry, digests=(digest,), offset=offset))
        else:
            entries.append(
                replace(entry, chunk_shape=item.chunk_shape, digests=large[item.tied or item.path])
            )
    return Page(entries=tuple(entries), bundle=bundled.bundle)


@dataclass(frozen=True, slots=True)
class _Bundled:
    """The small arrays of a page: their digests and offsets, and the bundle that holds them."""

    digests: tuple[Digest, ...]
    offsets: tuple[int, ...]
    bundle: Bundle | None


class _Sink:
    """Puts objects that are not there yet, and remembers what it relies on."""

    def __init__(self, objects: ObjectStore, reached: Reached) -> None:
        self.objects, self.reached = objects, reached
        self.relied: set[Digest] = set()
        self.new_bytes = 0
        self._lock = Lock()

    def put(self, data: bytes | memoryview) -> Digest:
        """Put an object unless it is there."""
        digest = Digest.of(data)
        with self._lock:
            if digest in self.relied:
                return digest
            self.relied.add(digest)
        if not self.objects.has(digest, size=len(data)):
            self.objects.put(digest, data)
            with self._lock:
                self.new_bytes += len(data)
        return digest

    def put_chunk(self, source: ArraySource, chunk: Chunk) -> Digest:
        """Put one chunk of an array."""
        return self.put(source.chunk(chunk))

    def put_bundle(self, sources: list[ArraySource]) -> _Bundled:
        """Put the small arrays of a page as one object; one that the parent holds is not even joined."""
        if not sources:
            return _Bundled((), (), None)
        parts = [source.whole() for source in sources]
        digests = tuple(map(Digest.of, parts))
        offsets, size = [], 0
        for part in parts:
            offsets.append(size)
            size += len(part)
        bundle = self.reached.bundles.get(digests)
        if bundle and self.objects.has(bundle.digest, size=bundle.size):
            with self._lock:
                self.relied.add(bundle.digest)
        else:
            bundle = Bundle(digest=self.put(b"".join(parts)), size=size)
        return _Bundled(digests, tuple(offsets), bundle)
