"""Put: hash the arrays of a plan, and store the chunks and bundles that are not there yet.

A few threads hash chunks from the arrays' own memory and write new ones to temporary files, which
the kernel begins to write to the disk at once. When no chunk is left, these threads hash shared
memory again, and more threads wait for the disk and give the files their names. The calling thread
copies and hashes small arrays, which other threads would only keep waiting; one thread hashes and
writes the bundles that they make. Objects that already exist with the right size are not rewritten.
Unless the parent references them they are still flushed: their writer may have died before its own
flush.

Where a look takes a round trip, the threads that put look too, right before they put, and there are
more of them; after many looks that found nothing, most are left out. Nothing is written ahead
there: a staged object is a copy in memory (ADR 0062).

Nothing here makes pages: what was put comes back as digests, which `ckptstore.commit.assemble`
takes from one process or from several. ADR 0009, ADR 0036; docs/reference/format.md, section 14.
"""

from __future__ import annotations

import sys
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from blake3 import blake3

from ckptstore.arrays import frameworks
from ckptstore.digest import Digest
from ckptstore.documents.page import Bundle
from ckptstore.errors import InvalidInputError, shown
from ckptstore.open_files import affordable
from ckptstore.python_gc import paused_collector
from ckptstore.threads import Buffers, Ring, Room, Workers, results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Future

    from ckptstore.arrays.source import ArraySource
    from ckptstore.commit.plan import ArrayPlan, Plan, Shape
    from ckptstore.documents.chunks import Chunk
    from ckptstore.store.objects import ObjectStore, StagedObject
    from ckptstore.store.reach import Reached

    SourceChunk = tuple[ArraySource, Chunk]
    Place = tuple[str, int]  # of a chunk: the path of its array, and its number there
    Part = tuple[Digest, int]  # of a small array: its digest, and where it begins in its bundle

Result = TypeVar("Result")

HASH_THREADS = 3  # more would only take turns
PUT_THREADS = 8  # they wait for fsync, which takes from 0.1 ms to many, as the disk is
FAR_PUT_THREADS = 48  # they wait for a network
COPY_THREADS = 8  # chunks that are read from a file or a device: a thread also waits for these
NEW_IN_A_ROW = 2  # chunks; after so many the next is expected to be new and written right away
WRITING_MAX = 16  # bundles and documents that are being written or wait for it
AHEAD = 4  # of these that are written and left to the disk before the first is put
RING_BYTES = 8 << 20  # for bundles, besides the largest: some are joined while others wait
PART_PAGES = 8  # pages that are prepared at once: pausing the collector has a cost too
STAGED_MAX = 64  # files that are written and not yet put; each is open
# The files that a process has to be allowed for each of these, with its share of all others.
FILES_PER_STAGED, FILES_PER_HASHER, FILES_PER_PUTTER, FILES_PER_FAR_PUTTER = 4, 12, 32, 2
JOB_BYTES = 4 << 20  # smaller chunks are hashed together: changing threads costs more than 96 KiB
COPY_BYTES_MAX = 64 << 20  # copies of chunks, all at once
FAR_BYTES_MAX = 128 << 20  # staged in memory, all at once, unless one object alone is larger
# After so many objects in a row that were not there, one of so many is looked for.
MISSED_MAX, LOOK_EVERY = 16, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PageDigests:
    """The digests that one process put for the arrays of a page.

    Attributes:
        small: Digest and offset of each small array, in path order; empty if another process puts
            the bundle.
        bundle: The object that holds them.
        chunks: Digests by path and number in the grid. It may list arrays of other pages too, since
            a tied array is stored under another path.
    """

    small: list[Part] = field(default_factory=list)
    bundle: Bundle | None = None
    chunks: Mapping[Place, Digest] = field(default_factory=dict)


class Putter:
    """Puts objects that are not there yet, and remembers what the commit relies on.

    Attributes:
        relied: Every object the manifest will reach, as far as known.
        new_bytes: Bytes of the objects that had to be written.
    """

    def __init__(
        self,
        objects: ObjectStore,
        reached: Reached,
        *,
        hashers: Workers,
        putters: Workers,
        writer: Workers,
    ) -> None:
        self.relied: set[Digest] = set()
        self.new_bytes = 0
        self._objects, self._reached = objects, reached
        self._hashers, self._putters, self._writer = hashers, putters, writer
        self._written: set[Digest] = set()
        self._durable: set[Digest] = set()
        self._unchecked: deque[StagedObject] = deque()
        self._staged: set[StagedObject] = set()
        self._is_far = objects.is_far
        self._looks_late = self._is_far and reached.is_sound
        # Looks in a row that found nothing, taken as many where all seems new; looks left out.
        self._missed, self._guessed = MISSED_MAX if reached.seems_new else 0, 0
        # Files that are written ahead are limited by number, copies in memory by their bytes.
        self._room = Room(FAR_BYTES_MAX) if self._is_far else None
        self._staged_max = (
            sys.maxsize if self._is_far else affordable(STAGED_MAX, files_each=FILES_PER_STAGED)
        )
        self._jobs: list[Future[None]] = []
        self._buffers = Buffers()
        self._new_in_a_row = 0  # chunks
        self._writing: deque[Future[Any]] = deque()
        self._ahead: deque[StagedObject] = deque()  # written, and no job puts them yet
        self._lock = Lock()

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Have a job done by one of the threads that hash."""
        return self._hashers.submit(job)

    def put(self, data: bytes | memoryview) -> Digest:
        """Write an object ahead on the writing thread unless it exists; `finish` puts it.

        data: must not change before the putter has ended.
        """
        digest = Digest.of(data)
        if self._is_needed(digest, len(data)):
            self._have_written(partial(self._write, digest, data))
        return digest

    def _write(self, digest: Digest, data: bytes | memoryview) -> None:
        """Write an object ahead, and have one put that the disk has had time for."""
        self._ahead.append(self._stage(data, digest))
        if self._is_far or len(self._ahead) > min(AHEAD, self._staged_max // 2):
            self._have_put(self._ahead.popleft())

    def _have_written(self, job: Callable[[], Result]) -> Future[Result]:
        """Give a job to the writing thread, and wait while it has many others left."""
        if len(self._writing) >= WRITING_MAX:
            self._writing.popleft().result()
        future = self._writer.submit(job)
        self._writing.append(future)
        return future

    def put_chunks(self, chunks: Iterable[SourceChunk]) -> list[Digest]:
        """Hash chunks, and have them written."""
        return [self._put_chunk(source, chunk) for source, chunk in chunks]

    def _put_chunk(self, source: ArraySource, chunk: Chunk) -> Digest:
        data = source.chunk(chunk, self._buffers.of)
        self._objects.meter.add("stored", len(data))
        is_shared = not source.is_private and source.has_run(chunk)
        if is_shared and self._new_in_a_row >= NEW_IN_A_ROW:
            return self._put_copy(data)
        digest = Digest.of(data)
        if self._is_needed(digest, len(data)):
            self._new_in_a_row += 1
            self._keep(self._stage(data, digest, is_shared=is_shared))
        else:
            self._new_in_a_row = 0
        return digest

    def _put_copy(self, data: memoryview) -> Digest:
        """Write a chunk that is expected to be new, like those before it."""
        staged = self._stage(data)
        if self._is_needed(staged.digest, len(data)):
            self._keep(staged)
        else:
            self._new_in_a_row = 0
            self._drop(staged)
            if self._room:
                self._room.give(staged.size)
        return staged.digest

    def _stage(
        self, data: bytes | memoryview, digest: Digest | None = None, *, is_shared: bool = False
    ) -> StagedObject:
        """Write an object ahead, once there is room. Without a digest, a copy is hashed for it."""
        if self._room:
            self._room.take(len(data))
        if digest is None:
            staged = self._objects.stage_copy(data)
        else:
            staged = self._objects.stage(digest, data, is_shared=is_shared)
        self._staged.add(staged)  # before anything can fail, so that `drop` removes it
        return staged

    def _keep(self, staged: StagedObject) -> None:
        """Have a staged object checked when no chunk is left to hash; now if there are too many.

        Where the threads that put look too, they check as well.
        """
        if self._is_far:
            self._have_put(staged)
            return
        self._unchecked.append(staged)
        if len(self._staged) > self._staged_max:
            self._check_next()
        self._jobs.append(self._hashers.submit(self._check_next))

    def _check_next(self) -> None:
        """Check the object that was staged first, unless another thread has; then have it put."""
        try:
            staged = self._unchecked.popleft()
        except IndexError:
            return
        staged.check()
        self._have_put(staged)

    def _have_put(self, staged: StagedObject) -> None:
        """Have an object put by another thread, or put it now if too many are staged."""
        if len(self._staged) > self._staged_max:
            self._put_staged(staged)
            return
        job = self._putters.submit(partial(self._put_staged, staged))
        if self._room:  # also if the job is never begun, because another one failed
            job.add_done_callback(partial(_give, self._room, staged.size))
        self._jobs.append(job)

    def _put_staged(self, staged: StagedObject) -> None:
        if self._looks_late and self._is_found(staged):
            self._drop(staged)
            return
        staged.put()
        self._staged.discard(staged)
        with self._lock:
            self._written.add(staged.digest)
            self.new_bytes += staged.size

    def _is_found(self, staged: StagedObject) -> bool:
        """Look for an object that is to be put, unless it seems to be new like those before it."""
        with self._lock:
            if self._missed >= MISSED_MAX:
                self._guessed += 1
                if self._guessed % LOOK_EVERY:
                    return False
        is_there = self._objects.has(staged.digest, size=staged.size)
        with self._lock:
            self._missed = 0 if is_there else self._missed + 1
        return is_there

    def _drop(self, staged: StagedObject) -> None:
        staged.drop()
        self._staged.discard(staged)

    def put_bundle(self, data: memoryview, parts: list[Part]) -> Future[Bundle]:
        """Put the small arrays of a page; the data must not change before the future is done."""
        self._objects.meter.add("stored", len(data))
        return self._have_written(partial(self._put_bundle, data, parts))

    def _put_bundle(self, data: memoryview, parts: list[Part]) -> Bundle:
        """Write a bundle ahead. A bundle of the parent is not even hashed."""
        bundle = self._reached.bundles.get(tuple([digest for digest, _ in parts]))
        if bundle and self._is_there(bundle.digest, bundle.size):
            with self._lock:
                self.relied.add(bundle.digest)
            return bundle
        bundle = Bundle(digest=Digest.of(data), size=len(data))
        if self._is_needed(bundle.digest, bundle.size):
            self._write(bundle.digest, data)
        return bundle

    def rely(self, digests: Iterable[Digest]) -> None:
        """Rely on objects that are durable already: another process put them, or a checkpoint."""
        listed = set(digests)
        self._durable |= listed
        self.relied |= listed

    def finish(self) -> None:
        """Return once everything relied upon is durable."""
        results(self._writing)
        while self._ahead:
            self._have_put(self._ahead.popleft())
        results(self._jobs)  # a job that stages adds its put before it is done
        durable = (self._reached.digests | self._durable) - self._written
        self._objects.flush(self.relied - durable)

    def drop(self) -> None:
        """Remove what was staged and not put, after an error."""
        for staged in self._staged:
            staged.drop()

    def _is_needed(self, digest: Digest, size: int) -> bool:
        """Rely on an object: True, for one caller, when it has to be staged."""
        with self._lock:
            if digest in self.relied:
                return False
            self.relied.add(digest)
        return not self._is_there(digest, size)

    def _is_there(self, digest: Digest, size: int) -> bool:
        """True for an object that need not be staged.

        The parent's objects are looked for too, so that a lost one is put again. Where a look takes
        a round trip they are not, and other objects are looked for when they are to be put.
        """
        if self._is_far:
            return digest in self._reached.digests
        return self._reached.is_sound and self._objects.has(digest, size=size)


@contextmanager
def putting(
    objects: ObjectStore, reached: Reached, *, threads: int | None = None
) -> Iterator[Putter]:
    """A putter with its threads, which have ended afterwards, and left no temporary file.

    threads: the number of threads that hash; by default as many as help. With one, the caller
    hashes and writes.
    """
    with objects.batch() as batch:
        if objects.is_far:
            put_threads = affordable(FAR_PUT_THREADS, files_each=FILES_PER_FAR_PUTTER)
        else:
            put_threads = affordable(PUT_THREADS, files_each=FILES_PER_PUTTER)
        putters = Workers(put_threads)
        hash_threads = affordable(threads or HASH_THREADS, files_each=FILES_PER_HASHER)
        hashers, writer = Workers(hash_threads), Workers(1, is_ahead=hash_threads > 1)
        putter = Putter(batch, reached, hashers=hashers, putters=putters, writer=writer)
        try:
            with putters, hashers, writer:
                yield putter
        finally:
            putter.drop()


def _give(room: Room, size: int, _: Future[None]) -> None:
    room.give(size)


def hash_threads(plan: Plan, sources: Iterable[ArraySource]) -> int:
    """As many threads as help, and no more than may hold a copy of a chunk at once."""
    if plan.is_contiguous and all(source.has_memory for source in sources):
        return HASH_THREADS
    return max(1, min(COPY_THREADS, COPY_BYTES_MAX // plan.chunk_bytes))


def put_arrays(
    plan: Plan,
    sources: Mapping[str, ArraySource],
    putter: Putter,
    *,
    corners: Mapping[str, Shape] | None = None,
) -> Iterator[Mapping[int, PageDigests]]:
    """Have every chunk and bundle put that this process holds.

    Other threads hash chunks from the start. Meanwhile this one copies and hashes small arrays:
    thousands of short calls on several threads would only wait for each other.

    Args:
        plan: How the arrays are stored.
        sources: The arrays by path, or what of them this process has to put. A process puts the
            bundle of a page if it has all of its small arrays.
        putter: Where to put them.
        corners: For each array of which `sources` has a shard, where that begins in the array.

    Yields:
        The stored chunks and bundles of each page, by the number of the page, in two parts: first
        the pages with small arrays only, while chunks are still being hashed, then the others.
    """
    with paused_collector():
        hashing = [
            (places, putter.submit(partial(putter.put_chunks, job)))
            for places, job in _jobs(plan, sources, corners or {})
        ]
        small = [_small(arrays, sources) for arrays in plan.pages]
        sizes = [sum([source.nbytes for source in held]) for held in small]
    ring = Ring(min(sum(sizes), max(sizes, default=0) + RING_BYTES))
    chunks: dict[Place, Digest] = {}
    waiting: dict[int, PageDigests] = {}
    before: list[tuple[int, list[Part], Future[Bundle] | None]] = []
    for pages in (*_parts_of(range(len(plan.pages))), ()):
        with paused_collector():
            bundled = [(number, *_put_bundle(small[number], putter, ring)) for number in pages]
        ready: dict[int, PageDigests] = {}
        for number, parts, written in before:  # whose bundles are written by now
            is_ready = all(array.chunk_shape is None for array in plan.pages[number])
            (ready if is_ready else waiting)[number] = PageDigests(
                small=parts, bundle=written.result() if written else None, chunks=chunks
            )
        yield ready
        before = bundled
    for places, future in hashing:
        chunks.update(zip(places, future.result(), strict=True))
    for pages in _parts_of(list(waiting)):
        yield {number: waiting[number] for number in pages}


def _parts_of(pages: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split pages into groups that are prepared during one pause of the collector each."""
    return (pages[start : start + PART_PAGES] for start in range(0, len(pages), PART_PAGES))


def _jobs(
    plan: Plan, sources: Mapping[str, ArraySource], corners: Mapping[str, Shape]
) -> Iterator[tuple[list[Place], list[SourceChunk]]]:
    """The chunks to hash, in path order; in one job as many as are worth a thread's turn."""
    places: list[Place] = []
    job: list[SourceChunk] = []
    size = 0
    for arrays in plan.pages:
        for array in arrays:
            if array.chunk_shape is None or array.tied or array.path not in sources:
                continue
            source = sources[array.path]
            for number, chunk in array.chunks(source.shape, corners.get(array.path)):
                places.append((array.path, number))
                job.append((source, chunk))
                size += chunk.size
                if size >= JOB_BYTES:
                    yield places, job
                    places, job, size = [], [], 0
    if job:
        yield places, job


def _small(arrays: Iterable[ArrayPlan], sources: Mapping[str, ArraySource]) -> list[ArraySource]:
    """The small arrays of a page, or none of them if another process puts its bundle."""
    paths = [array.path for array in arrays if array.chunk_shape is None]
    held = [sources[path] for path in paths if path in sources]
    if held and len(held) < len(paths):
        missing = next(path for path in paths if path not in sources)
        raise InvalidInputError(
            f"{shown(missing)} shares a bundle with {len(paths) - 1} other arrays. The process "
            "that puts these must put it too."
        )
    return held


def _put_bundle(
    sources: list[ArraySource], putter: Putter, ring: Ring
) -> tuple[list[Part], Future[Bundle] | None]:
    """Have the small arrays of a page put as one object.

    They are hashed from the copy that is stored, so a digest is right even if an array changes
    meanwhile.
    """
    if not sources:
        return [], None
    *starts, size = accumulate([source.nbytes for source in sources], initial=0)
    data = ring.of(size)
    frameworks.join(sources, data)
    parts = _parts(starts, data)
    written = putter.put_bundle(data, parts)
    ring.lend(written)
    return parts, written


def _parts(starts: list[int], data: memoryview) -> list[Part]:
    """The digests and positions of arrays that were joined in a buffer."""
    ends = pairwise([*starts, len(data)])
    return [(Digest(blake3(data[i:j]).hexdigest()), i) for i, j in ends]
