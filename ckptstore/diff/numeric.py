"""How far arrays moved between two checkpoints, measured from their bytes with bounded memory.

Only arrays that differ are read, chunk by chunk, and every byte is compared with its digest.
Relative L2 and cosine need the norms of the whole arrays, so a chunk that both sides share is read,
too, but once and from one side. Chunks of equal digests are equal, so only their norms are summed.
The sums themselves are in `ckptstore.diff.sums`.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore.checkout.reader import read_bundle
from ckptstore.diff.sums import Sums, sums_of, sums_of_equal
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.page import ArrayEntry
from ckptstore.threads import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.diff.changes import ArrayChange, Diff, Numbers
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import StoredArray
    from ckptstore.store.objects import ObjectStore

    Key = tuple[Any, ...]

READ_THREADS = 1 if (os.cpu_count() or 1) <= 2 else 2  # besides the one that computes
AHEAD_MAX = 1  # pairs of chunks read while one is computed; fresh memory for more is slower
BUFFERS_BYTES_MAX = 64 << 20  # of all pairs together, unless a single one needs more


def measure(
    diff: Diff,
    *,
    before: ObjectStore,
    after: ObjectStore,
    openers: tuple[ArrayOpener, ArrayOpener],
) -> Diff:
    """Return the diff with numbers for every array of the same dtype and shape that may differ.

    Args:
        diff: The diff without numbers.
        before: The objects of the first checkpoint.
        after: The objects of the second checkpoint.
        openers: Open the arrays of each side that were committed through Zarr.
    """
    pairs: dict[Key, _Pair] = {}
    keys: dict[str, Key] = {}
    read_bytes: dict[Key, int] = {}
    decoded: dict[str, Numbers] = {}
    for change in diff.arrays:
        if change.kind in ("changed", "undecided"):
            pair = _Pair.of(change)
            if not pair.has_common_runs:
                if change.after and change.after.dtype in ITEM_BYTES:
                    decoded[change.path] = _decoded(pair, openers)
                continue
            keys[change.path] = pair.key  # tied arrays are measured once
            pairs.setdefault(pair.key, pair)
            both = pair.before.nbytes + pair.after.nbytes
            read_bytes[pair.key] = both - change.shared_bytes  # shared bytes are read once
    before.meter.begin("read", sum(read_bytes.values()))
    after = after.counted_by(before.meter)
    totals = {key: Sums() for key in pairs}
    for key, sums in _computed(list(_jobs(pairs.values(), before, after))):
        totals[key].add(sums)
    numbers = {
        key: total.numbers(math.prod(pairs[key].before.shape)) for key, total in totals.items()
    }
    return diff.with_numbers({path: numbers[key] for path, key in keys.items()} | decoded)


def _decoded(pair: _Pair, openers: tuple[ArrayOpener, ArrayOpener]) -> Numbers:
    """The numbers of an array of which one side cannot be read run by run."""
    before, after = openers[0].bytes_of(pair.before), openers[1].bytes_of(pair.after)
    total = Sums()
    for start, size in (after if pair.before.is_contiguous else before).pieces():
        one, other = (memoryview(bytearray(size)) for _ in range(2))
        before.read_into(one, start)
        after.read_into(other, start)
        total.add(sums_of(before.dtype, one, other))
    return total.numbers(math.prod(before.shape))


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two forms of an array."""

    before: StoredArray
    after: StoredArray

    @classmethod
    def of(cls, change: ArrayChange) -> _Pair:
        """Return the two forms of an array that both sides have."""
        assert change.before
        assert change.after
        return cls(change.before, change.after)

    @property
    def has_common_runs(self) -> bool:
        """True when both are cut in the same way, or each into runs of its bytes in C order."""
        if self.before.is_encoded or self.after.is_encoded:
            return False
        if self.before.is_contiguous and self.after.is_contiguous:
            return True
        return self.before.entry.cut == self.after.entry.cut

    @property
    def key(self) -> Key:
        """Equal for pairs that hold the same bytes."""
        one, other = self.before.entry, self.after.entry
        return one.dtype, one.shape, one.content, other.content

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the largest chunk on either side."""
        found = (next(_runs(side), (0, 0, None)) for side in (self.before, self.after))
        return max(size for _, size, _ in found)


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to read and then to compute.

    `read` fills two buffers of `size` bytes and returns a function that computes.
    """

    size: int
    read: Callable[[memoryview, memoryview], Callable[[], list[tuple[Key, Sums]]]]


def _computed(jobs: Sequence[_Job]) -> Iterator[tuple[Key, Sums]]:
    """The sums of all jobs. Another thread reads ahead, this one computes.

    Only one computes: numpy's calls on a block take some microseconds, and several threads with
    such calls spend their time waiting for the interpreter (measured: the same work took 1.5 times
    as long on two as on one).
    """
    largest = max((job.size for job in jobs), default=0)
    ahead = min(AHEAD_MAX, BUFFERS_BYTES_MAX // (2 * max(1, largest)) - 1)
    idle = [(bytearray(largest), bytearray(largest)) for _ in range(max(1, ahead + 1))]
    waiting: deque[tuple[Future[Callable[[], list[tuple[Key, Sums]]]], Any]] = deque()

    def finish() -> list[tuple[Key, Sums]]:
        future, pair = waiting.popleft()
        sums = future.result()()
        idle.append(pair)
        return sums

    with Workers(READ_THREADS, is_ahead=True) as readers:
        for job in jobs:
            if not idle:
                yield from finish()
            pair = idle.pop()
            one, other = (memoryview(buffer)[: job.size] for buffer in pair)
            waiting.append((readers.submit(partial(job.read, one, other)), pair))
        while waiting:
            yield from finish()


def _jobs(pairs: Iterable[_Pair], before: ObjectStore, after: ObjectStore) -> Iterator[_Job]:
    """Jobs that hold at most two chunks, or two bundles, at a time."""
    objects = before, after
    small: defaultdict[Any, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        one, other = _listed(pair.before), _listed(pair.after)
        if one.offset is not None and other.offset is not None:
            small[pair.before.bundle, pair.after.bundle].append(pair)
        elif one.cut == other.cut and one.offset is None and other.offset is None:
            digests = zip(one.sized_digests(), other.digests, strict=True)
            for (digest, size), other_digest in digests:
                yield _Job(size, partial(_read_chunk, pair, digest, other_digest, objects))
        else:
            yield _Job(pair.chunk_bytes, partial(_read_as_needed, pair, objects))
    for group in small.values():
        yield _Job(0, partial(_read_bundles, group, objects))


def _read_chunk(
    pair: _Pair,
    digest: Digest,
    other: Digest,
    objects: tuple[ObjectStore, ObjectStore],
    data: memoryview,
    other_data: memoryview,
) -> Callable[[], list[tuple[Key, Sums]]]:
    """Read two chunks of the same place; only one if they are equal."""
    objects[0].read_into(digest, data)
    if digest == other:
        return lambda: [(pair.key, sums_of_equal(pair.before.dtype, data))]
    objects[1].read_into(other, other_data)
    return lambda: [(pair.key, sums_of(pair.before.dtype, data, other_data))]


def _read_bundles(
    pairs: list[_Pair], objects: tuple[ObjectStore, ObjectStore], *_: memoryview
) -> Callable[[], list[tuple[Key, Sums]]]:
    """Read small arrays of one bundle on each side."""
    sides = ([pair.before for pair in pairs], [pair.after for pair in pairs])
    before, after = (
        list(read_bundle(side[0].bundle, [_listed(array) for array in side], store))
        for side, store in zip(sides, objects, strict=True)
        if side[0].bundle
    )
    return lambda: [
        (pair.key, sums_of(pair.before.dtype, data, other))
        for pair, (_, data), (_, other) in zip(pairs, before, after, strict=True)
    ]


def _read_as_needed(
    pair: _Pair, objects: tuple[ObjectStore, ObjectStore], *buffers: memoryview
) -> Callable[[], list[tuple[Key, Sums]]]:
    """Read an array with different chunks piece by piece, as it is computed.

    It holds one chunk of each side at a time.
    """

    def compute() -> list[tuple[Key, Sums]]:
        total = Sums()
        sides = [
            _Side(array, store, buffer)
            for array, store, buffer in zip(
                (pair.before, pair.after), objects, buffers, strict=True
            )
        ]
        position = 0
        while position < pair.before.nbytes:
            parts = [side.at(position) for side in sides]
            size = min(map(len, parts))
            total.add(sums_of(pair.before.dtype, *(part[:size] for part in parts)))
            position += size
        return [(pair.key, total)]

    return compute


class _Side:
    """An array that is read from its beginning to its end, one chunk at a time."""

    def __init__(self, array: StoredArray, objects: ObjectStore, buffer: memoryview) -> None:
        self._array, self._objects, self._buffer = array, objects, buffer
        self._runs = _runs(array)
        self._start, self._data = 0, memoryview(b"")

    def at(self, position: int) -> memoryview:
        """Return the bytes from a position to the end of its chunk. Positions only grow."""
        while position >= self._start + len(self._data):
            self._start, size, digest = next(self._runs)
            self._data = self._buffer[:size]
            offset, bundle = _listed(self._array).offset, self._array.bundle
            if offset is not None and bundle:
                self._objects.read_range(bundle.digest, self._data, start=offset, expected=digest)
            else:
                self._objects.read_into(digest, self._data)
        return self._data[position - self._start :]


def _runs(array: StoredArray) -> Iterator[tuple[int, int, Digest]]:
    """The position of each chunk of an array, its size in bytes and its digest."""
    entry = _listed(array)
    if len(entry.digests) == 1:
        yield 0, entry.nbytes, entry.digests[0]
        return
    for digest, chunk in entry.grid():
        yield chunk.start or 0, chunk.size, digest


def _listed(array: StoredArray) -> ArrayEntry:
    """The entry of an array that was not committed through Zarr."""
    assert isinstance(array.entry, ArrayEntry)
    return array.entry
