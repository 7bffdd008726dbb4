"""Writer: a state becomes objects, pages and what a manifest says of them.

Chunks are hashed and written by a few threads straight from the arrays' own memory. What is there already with the right
size is not written again, but flushed unless the parent holds it, because whoever put it may not have come to that.
When `write` returns, everything the manifest will refer to is durable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, islice
from threading import Lock
from typing import TYPE_CHECKING

from ckptstore.collector import paused_collector
from ckptstore.digest import Digest
from ckptstore.errors import CorruptError, NotFoundError
from ckptstore.format import structure
from ckptstore.format.chunks import chunk_count, chunk_shape, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.manifest import PageRef
from ckptstore.format.page import SMALL_BYTES, ArrayEntry, Bundle, Page, cut
from ckptstore.parallel import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.arrays import ArraySource
    from ckptstore.catalog import Catalog
    from ckptstore.format.chunks import Chunk
    from ckptstore.objects import ObjectStore
    from ckptstore.state import Flat

WRITE_THREADS = 8  # most of a thread's time is spent waiting for its fsync
COPY_BYTES_MAX = 64 << 20  # all copies at once: of chunks that are not contiguous, of small arrays


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

    bundles: each bundle that was written by this handle, by the digests of the small arrays in it, in order: what another
    page says of its bundle may be a lie. is_sound: False when the parent could not be read; then nothing that is there
    already is relied upon, and what was damaged is healed.
    """

    digests: set[Digest] = field(default_factory=set)
    bundles: dict[tuple[Digest, ...], Bundle] = field(default_factory=dict)
    is_sound: bool = True


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
    sink = _Sink(objects, reached)
    pages = _write_arrays(flat, sink, chunk_bytes=chunk_bytes)
    documents = [*(page.encode() for page in pages), structure.encode(flat.root)]
    *digests, root = gather([partial(sink.put, data) for data in documents], threads=WRITE_THREADS)
    for digest, page in zip(digests, pages, strict=True):
        catalog.remember_page(digest, page)
    objects.flush(sink.relied - (reached.digests - sink.written))
    return Written(
        pages=tuple(map(_page_ref, pages, digests)),
        structure=root,
        new_bytes=sink.new_bytes,
        relied=frozenset(sink.relied),
    )


def _page_ref(page: Page, digest: Digest) -> PageRef:
    return PageRef(
        first=page.first, digest=digest, arrays=len(page.entries), bytes=page.array_bytes
    )


def reached_by(id: Digest, catalog: Catalog) -> Reached:
    """What a checkpoint reaches, from its pages alone. One that is damaged must not keep the next from being made."""
    try:
        manifest = catalog.manifest(id)
        reached = Reached(digests={manifest.structure, *(ref.digest for ref in manifest.pages)})
        for ref, page in zip(manifest.pages, catalog.pages(manifest), strict=True):
            reached.digests.update(digest for digest, _ in page.digests())
            if page.bundle and catalog.wrote_page(ref.digest):
                small = (entry.digests[0] for entry in page.entries if entry.offset is not None)
                reached.bundles[tuple(small)] = page.bundle
    except (CorruptError, NotFoundError):
        return Reached(is_sound=False)
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

    @property
    def chunk_count(self) -> int:
        """How many digests the page will list for it."""
        return 1 if self.is_small else chunk_count(self.source.shape, self.chunk_shape)

    def chunks(self) -> Iterator[Chunk]:
        """The chunks to hash; none for a small, an empty or a tied array."""
        if self.is_small or self.tied:
            return iter(())
        return chunks(self.source.shape, self.chunk_shape, item_bytes=ITEM_BYTES[self.source.dtype])


def _plan(flat: Flat[ArraySource], chunk_bytes: int) -> list[list[_Planned]]:
    """The arrays in path order, cut into pages."""
    planned = [_planned(path, flat, chunk_bytes) for path in sorted(flat.arrays)]
    return [planned[part] for part in cut([(item.path, item.chunk_count) for item in planned])]


def _planned(path: str, flat: Flat[ArraySource], chunk_bytes: int) -> _Planned:
    source = flat.arrays[path]
    if 0 < source.nbytes < SMALL_BYTES:
        return _Planned(path, source, (), None)
    shape = chunk_shape(source.shape, item_bytes=ITEM_BYTES[source.dtype], chunk_bytes=chunk_bytes)
    return _Planned(path, source, shape, flat.tied.get(path))


def _threads(flat: Flat[ArraySource], chunk_bytes: int) -> int:
    """As many threads as help, and no more than may hold a copy of a chunk at once."""
    if all(source.flat is not None for source in flat.arrays.values()):
        return WRITE_THREADS
    return max(1, min(WRITE_THREADS, COPY_BYTES_MAX // chunk_bytes))


def _write_arrays(flat: Flat[ArraySource], sink: _Sink, *, chunk_bytes: int) -> list[Page]:
    """Hash and put every chunk and bundle, and make the pages that list them."""
    with paused_collector():
        plans = _plan(flat, chunk_bytes)
        jobs = [
            partial(sink.put_chunk, item.source, chunk)
            for plan in plans
            for item in plan
            for chunk in item.chunks()
        ]
    digests = iter(gather(jobs, threads=_threads(flat, chunk_bytes)))
    bundled = _write_bundles(plans, sink)
    with paused_collector():
        large = {
            item.path: tuple(islice(digests, sum(1 for _ in item.chunks())))
            for plan in plans
            for item in plan
            if not item.is_small
        }
        return [
            Page(entries=tuple(_entries(plan, parts, large)), bundle=bundle)
            for plan, (parts, bundle) in zip(plans, bundled, strict=True)
        ]


def _write_bundles(
    plans: list[list[_Planned]], sink: _Sink
) -> list[tuple[list[_Part], Bundle | None]]:
    """Copy, hash and put the small arrays, some pages at a time.

    They are hashed on this thread: thousands of short calls on several would only wait for each other. And they are
    hashed from the copy that is stored, so that a digest is right even if somebody changes an array meanwhile.
    """
    bundled: list[tuple[list[_Part], Bundle | None]] = []
    for group in _groups(plans):
        with paused_collector():
            joined = [_join(plan) for plan in group]
        jobs = [partial(sink.put_bundle, data, parts) for data, parts in joined]
        bundles = gather(jobs, threads=WRITE_THREADS)
        bundled += zip((parts for _, parts in joined), bundles, strict=True)
        del jobs, joined  # before the next copies are made
    return bundled


def _groups(plans: list[list[_Planned]]) -> Iterator[list[list[_Planned]]]:
    """Pages whose small arrays may be copied at once."""
    group: list[list[_Planned]] = []
    held = 0
    for plan in plans:
        size = sum(item.source.nbytes for item in plan if item.is_small)
        if group and held + size > COPY_BYTES_MAX:
            yield group
            group, held = [], 0
        group.append(plan)
        held += size
    yield group


_Part = tuple[Digest, int]  # a small array: its digest, and where it begins in its bundle


def _join(plan: list[_Planned]) -> tuple[bytes, list[_Part]]:
    """The bundle of the small arrays of a page, and their digests and places in it."""
    sources = [item.source for item in plan if item.is_small]
    data = b"".join(source.whole() for source in sources)
    ends = list(accumulate(source.nbytes for source in sources))
    view = memoryview(data)
    return data, [
        (Digest.of(view[end - source.nbytes : end]), end - source.nbytes)
        for source, end in zip(sources, ends, strict=True)
    ]


def _entries(
    plan: list[_Planned], parts: list[_Part], large: Mapping[str, tuple[Digest, ...]]
) -> Iterator[ArrayEntry]:
    """The entries of one page."""
    small = iter(parts)
    for item in plan:
        describe = partial(
            ArrayEntry, path=item.path, dtype=item.source.dtype, shape=item.source.shape
        )
        if item.is_small:
            digest, offset = next(small)
            yield describe(digests=(digest,), offset=offset)
        else:
            yield describe(chunk_shape=item.chunk_shape, digests=large[item.tied or item.path])


class _Sink:
    """Puts objects that are not there yet, and remembers what it relies on."""

    def __init__(self, objects: ObjectStore, reached: Reached) -> None:
        self.objects, self.reached = objects, reached
        self.relied: set[Digest] = set()
        self.written: set[Digest] = set()
        self.new_bytes = 0
        self._buffers = Buffers()
        self._lock = Lock()

    def put(self, data: bytes | memoryview) -> Digest:
        """Put an object unless it is there."""
        digest = Digest.of(data)
        with self._lock:
            if digest in self.relied:
                return digest
            self.relied.add(digest)
        if not (self.reached.is_sound and self.objects.has(digest, size=len(data))):
            self.objects.put(digest, data)
            with self._lock:
                self.written.add(digest)
                self.new_bytes += len(data)
        return digest

    def put_chunk(self, source: ArraySource, chunk: Chunk) -> Digest:
        """Put one chunk of an array."""
        return self.put(source.chunk(chunk, self._buffers.of))

    def put_bundle(self, data: bytes, parts: list[_Part]) -> Bundle | None:
        """Put the small arrays of a page as one object; one that the parent holds is not even hashed."""
        if not data:
            return None
        bundle = self.reached.bundles.get(tuple(digest for digest, _ in parts))
        if bundle and self.objects.has(bundle.digest, size=bundle.size):
            with self._lock:
                self.relied.add(bundle.digest)
            return bundle
        return Bundle(digest=self.put(data), size=len(data))
