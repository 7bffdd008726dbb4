"""How far arrays moved between two checkpoints: norms, cosine, shares, from their bytes, in bounded memory.

Only arrays that differ are read, chunk by chunk, every byte checked against its digest. Relative L2 and
cosine need the norms of the whole arrays, so a chunk that both sides share is read too, but once and from one side. Two
chunks of equal digests are equal, so nothing else is computed of them.

Blocks that fit into a processor's cache are summed row by row in float32 where that holds the elements, and the rows in
double precision. A block that float32 cannot sum (too large, too small, not finite) is taken again in wider floats.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ckptstore.checkout.reader import read_bundle
from ckptstore.diff.changes import Numbers
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.page import chunk_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.diff.changes import ArrayChange, Diff
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import StoredArray
    from ckptstore.store.objects import ObjectStore

    Array = np.ndarray[Any, np.dtype[Any]]
    Key = tuple[Any, ...]

READ_THREADS = 1 if (os.cpu_count() or 1) <= 2 else 2  # besides the one that computes
AHEAD_MAX = 1  # pairs of chunks that are read while one is computed; fresh memory for more costs more than it gains
BUFFERS_BYTES_MAX = 64 << 20  # of all pairs together, unless a single one needs more
BLOCK_ITEMS = 1 << 16  # in float32 three blocks (before, after, difference) take 768 KiB of cache
ROW_ITEMS = 1 << 10  # summed in float32, which loses 1e-6 at the very most
NORMS_RATIO_MAX = 4.0  # of norms further apart the product would drown in rounding
INTEGER_MAX = 2.0**53  # up to here doubles hold every integer
_SQUARES_MIN = {"float32": 1e-27, "float64": 1e-290}  # sums below lose digits to underflow


def measure(
    diff: Diff,
    *,
    before: ObjectStore,
    after: ObjectStore,
    openers: tuple[ArrayOpener, ArrayOpener],
) -> Diff:
    """The diff with the numbers of every array of the same dtype and shape that changed, or may have.

    openers: of the arrays of each side, for those that came in through Zarr.
    """
    pairs: dict[Key, _Pair] = {}
    keys: dict[str, Key] = {}
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
    totals = {key: _Sums() for key in pairs}
    for key, sums in _computed(list(_jobs(pairs.values(), before, after))):
        totals[key].add(sums)
    numbers = {
        key: total.numbers(math.prod(pairs[key].before.shape)) for key, total in totals.items()
    }
    return diff.with_numbers({path: numbers[key] for path, key in keys.items()} | decoded)


def _decoded(pair: _Pair, openers: tuple[ArrayOpener, ArrayOpener]) -> Numbers:
    """The numbers of an array of which a side cannot be read run by run, a piece at a time."""
    before, after = openers[0].bytes_of(pair.before), openers[1].bytes_of(pair.after)
    total = _Sums()
    for start, size in (after if pair.before.is_contiguous else before).pieces():
        one, other = (memoryview(bytearray(size)) for _ in range(2))
        before.read_into(one, start)
        after.read_into(other, start)
        total.add(sums_of(before.dtype, one, other))
    return total.numbers(math.prod(before.shape))


@dataclass(slots=True)
class _Sums:
    """What is known of a part of two arrays; longdouble holds the square of any double."""

    before: Any = 0.0
    after: Any = 0.0
    difference: Any = 0.0
    product: Any = 0.0
    max_abs: float = 0.0
    changed: int = 0
    new_nan: int = 0
    new_inf: int = 0

    def add(self, other: _Sums) -> None:
        """Take in the sums of another part."""
        self.before += other.before
        self.after += other.after
        self.difference += other.difference
        self.product += other.product
        self.max_abs = max(self.max_abs, other.max_abs)
        self.changed += other.changed
        self.new_nan += other.new_nan
        self.new_inf += other.new_inf

    def numbers(self, count: int) -> Numbers:
        """What follows for a whole array of so many elements."""
        norm_before, norm_after = np.sqrt(self.before), np.sqrt(self.after)
        distance = np.sqrt(self.difference)
        relative = distance / norm_before if norm_before else (math.inf if distance else 0.0)
        both = norm_before * norm_after
        cosine = max(-1.0, min(1.0, float(self.product / both))) if both else math.nan
        return Numbers(
            relative_l2=float(relative),
            max_abs=self.max_abs,
            cosine=cosine,
            changed_share=self.changed / count if count else 0.0,
            new_nan=self.new_nan,
            new_inf=self.new_inf,
            norm_before=float(norm_before),
            norm_after=float(norm_after),
        )


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two forms of an array."""

    before: StoredArray
    after: StoredArray

    @classmethod
    def of(cls, change: ArrayChange) -> _Pair:
        """The two forms of an array that is on both sides."""
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
    """Something to read and then to compute. read: fills two buffers of `size` bytes, and returns what computes."""

    size: int
    read: Callable[[memoryview, memoryview], Callable[[], list[tuple[Key, _Sums]]]]


def _computed(jobs: Sequence[_Job]) -> Iterator[tuple[Key, _Sums]]:
    """The sums of all jobs: another thread reads ahead, this one computes.

    Not several that compute: numpy's calls on a block take some microseconds, and threads that all make such calls spend
    their time handing each other the interpreter (measured: the same work took 1.5 times as long on two as on one).
    """
    largest = max((job.size for job in jobs), default=0)
    ahead = min(AHEAD_MAX, BUFFERS_BYTES_MAX // (2 * max(1, largest)) - 1)
    idle = [(bytearray(largest), bytearray(largest)) for _ in range(max(1, ahead + 1))]
    waiting: deque[tuple[Future[Callable[[], list[tuple[Key, _Sums]]]], Any]] = deque()

    def finish() -> list[tuple[Key, _Sums]]:
        future, pair = waiting.popleft()
        found = future.result()()
        idle.append(pair)
        return found

    with ThreadPoolExecutor(READ_THREADS, "ckptstore") as readers:
        for job in jobs:
            if not idle:
                yield from finish()
            pair = idle.pop()
            one, other = (memoryview(buffer)[: job.size] for buffer in pair)
            waiting.append((readers.submit(partial(job.read, one, other)), pair))
        while waiting:
            yield from finish()


def _jobs(pairs: Iterable[_Pair], before: ObjectStore, after: ObjectStore) -> Iterator[_Job]:
    """Jobs that each hold two chunks at a time at most, or two bundles."""
    objects = before, after
    small: defaultdict[Any, list[_Pair]] = defaultdict(list)
    for pair in pairs:
        one, other = pair.before.entry, pair.after.entry
        if one.offset is not None and other.offset is not None:
            small[pair.before.bundle, pair.after.bundle].append(pair)
        elif one.cut == other.cut and one.offset is None and other.offset is None:
            digests = zip(chunk_sizes(one), other.digests, strict=True)
            for (digest, size), other_digest in digests:
                yield _Job(size, partial(_read_chunk, pair, digest, other_digest, objects))
        else:
            yield _Job(pair.chunk_bytes, partial(_read_as_needed, pair, objects))
    for found in small.values():
        yield _Job(0, partial(_read_bundles, found, objects))


def _read_chunk(
    pair: _Pair,
    digest: Digest,
    other: Digest,
    objects: tuple[ObjectStore, ObjectStore],
    data: memoryview,
    other_data: memoryview,
) -> Callable[[], list[tuple[Key, _Sums]]]:
    """Two chunks that lie at the same place; one is enough when they are equal."""
    objects[0].read_into(digest, data)
    if digest == other:
        return lambda: [(pair.key, sums_of_equal(pair.before.dtype, data))]
    objects[1].read_into(other, other_data)
    return lambda: [(pair.key, sums_of(pair.before.dtype, data, other_data))]


def _read_bundles(
    pairs: list[_Pair], objects: tuple[ObjectStore, ObjectStore], *_: memoryview
) -> Callable[[], list[tuple[Key, _Sums]]]:
    """Small arrays of one bundle on each side."""
    sides = ([pair.before for pair in pairs], [pair.after for pair in pairs])
    before, after = (
        list(read_bundle(side[0].bundle, [array.entry for array in side], store))
        for side, store in zip(sides, objects, strict=True)
        if side[0].bundle
    )
    return lambda: [
        (pair.key, sums_of(pair.before.dtype, data, other))
        for pair, (_, data), (_, other) in zip(pairs, before, after, strict=True)
    ]


def _read_as_needed(
    pair: _Pair, objects: tuple[ObjectStore, ObjectStore], *buffers: memoryview
) -> Callable[[], list[tuple[Key, _Sums]]]:
    """An array that is cut in different ways: piece by piece, one chunk of each side at a time, when it is computed."""

    def compute() -> list[tuple[Key, _Sums]]:
        total = _Sums()
        sides = [
            _Side(array, store, buffer)
            for array, store, buffer in zip(
                (pair.before, pair.after), objects, buffers, strict=True
            )
        ]
        position = 0
        while position < pair.before.nbytes:
            found = [side.at(position) for side in sides]
            size = min(map(len, found))
            total.add(sums_of(pair.before.dtype, *(data[:size] for data in found)))
            position += size
        return [(pair.key, total)]

    return compute


class _Side:
    """An array that is read from its begin to its end, one chunk at a time."""

    def __init__(self, array: StoredArray, objects: ObjectStore, buffer: memoryview) -> None:
        self._array, self._objects, self._buffer = array, objects, buffer
        self._runs = _runs(array)
        self._start, self._data = 0, memoryview(b"")

    def at(self, position: int) -> memoryview:
        """The bytes from a position to the end of its chunk; positions only grow."""
        while position >= self._start + len(self._data):
            self._start, size, digest = next(self._runs)
            self._data = self._buffer[:size]
            offset, bundle = self._array.entry.offset, self._array.bundle
            if offset is not None and bundle:
                self._objects.read_range(bundle.digest, self._data, start=offset, expected=digest)
            else:
                self._objects.read_into(digest, self._data)
        return self._data[position - self._start :]


def _runs(array: StoredArray) -> Iterator[tuple[int, int, Digest]]:
    """Where each chunk of an array begins, its bytes and its digest."""
    entry = array.entry
    if len(entry.digests) == 1:
        yield 0, entry.nbytes, entry.digests[0]
        return
    for digest, chunk in entry.grid():
        yield chunk.start or 0, chunk.size, digest


def sums_of(dtype: str, before: memoryview, after: memoryview) -> _Sums:
    """The sums of two parts of the same size."""
    form = _form(dtype)
    total = _Sums()
    scratch = np.empty(BLOCK_ITEMS, np.float32)
    is_other = np.empty(BLOCK_ITEMS, np.bool_)
    raw, other = (np.frombuffer(data, form.bits) for data in (before, after))
    with np.errstate(all="ignore"):
        for start in range(0, len(raw), BLOCK_ITEMS):
            one, two = (array[start : start + BLOCK_ITEMS] for array in (raw, other))
            differs = np.not_equal(one, two, out=is_other[: len(one)])
            if form.words > 1:
                differs = differs.reshape(-1, form.words).any(axis=1)
            changed = int(np.count_nonzero(differs))
            if changed:
                sums = _block(form, form.floats(one), form.floats(two), scratch)
                sums.changed = changed
            else:
                sums = _equal_block(form, form.floats(one))
            total.add(sums)
    return total


def sums_of_equal(dtype: str, data: memoryview) -> _Sums:
    """The sums of a part that both sides have."""
    form = _form(dtype)
    total = _Sums()
    raw = np.frombuffer(data, form.bits)
    with np.errstate(all="ignore"):
        for start in range(0, len(raw), BLOCK_ITEMS):
            total.add(_equal_block(form, form.floats(raw[start : start + BLOCK_ITEMS])))
    return total


def _block(form: _Form, before: Array, after: Array, scratch: Array) -> _Sums:
    fits = before.dtype == after.dtype == scratch.dtype and len(before) <= len(scratch)
    sums = _sums(form, before, after, scratch[: len(before)] if fits else None)
    return sums or _wide_block(form, before, after)


def _equal_block(form: _Form, floats: Array) -> _Sums:
    squares = _dot(floats, floats)
    if not _is_sound(squares, floats):
        return _wide_block(form, floats, floats)
    exact = np.longdouble(squares)
    return _Sums(before=exact, after=exact, product=exact)


def _sums(form: _Form, before: Array, after: Array, out: Array | None = None) -> _Sums | None:
    """The sums of a block in the floats that it is given in; None when these cannot hold them."""
    difference = np.subtract(after, before, out=out)
    squares = [_dot(array, array) for array in (before, after, difference)]
    for value, array in zip(squares, (before, after, difference), strict=True):
        if not _is_sound(value, array):
            return None
    if form.is_complex:
        largest = float(np.hypot(difference[::2], difference[1::2]).max())
    else:
        largest = max(float(difference.max()), -float(difference.min()))
    one, other, distance = map(np.longdouble, squares)
    if max(one, other) <= NORMS_RATIO_MAX**2 * min(one, other):
        product = (one + other - distance) / 2  # one pass over the block less
    else:
        product = np.longdouble(_dot(before, after))
    return _Sums(one, other, distance, product, max_abs=largest)


def _wide_block(form: _Form, before: Array, after: Array) -> _Sums:
    """The sums of a block of any floats at all: those that are not finite are counted and left out."""
    parts = (-1, form.parts)
    nan, other_nan = (np.isnan(array).reshape(parts).any(axis=1) for array in (before, after))
    inf, other_inf = (np.isinf(array).reshape(parts).any(axis=1) for array in (before, after))
    left_out = (nan | other_nan | inf | other_inf).repeat(form.parts)
    before, after = (np.where(left_out, 0, array) for array in (before, after))
    sums = None
    for wide in (np.float64, np.longdouble):
        if sums is None and np.can_cast(before.dtype, wide) and np.can_cast(after.dtype, wide):
            sums = _sums(form, before.astype(wide), after.astype(wide))
    sums = sums or _Sums()
    sums.new_nan = int(np.count_nonzero(other_nan & ~nan))
    sums.new_inf = int(np.count_nonzero(other_inf & ~inf))
    return sums


def _dot(one: Array, other: Array) -> Any:
    """The sum of products: of short rows as they are, of the rows in doubles.

    Not np.dot: BLAS starts threads of its own for it, which fight with ours.
    """
    end = len(one) - len(one) % ROW_ITEMS
    rows, other_rows = (array[:end].reshape(-1, ROW_ITEMS) for array in (one, other))
    sums = np.vecdot(rows, other_rows)
    rest = np.vecdot(one[end:], other[end:])
    return sums.sum(dtype=np.longdouble if sums.dtype == np.longdouble else np.float64) + rest


def _is_sound(squares: Any, array: Array) -> bool:
    """True when the sum of squares neither overflowed nor lost digits to underflow."""
    if squares >= _SQUARES_MIN.get(array.dtype.name, 0.0):
        return bool(np.isfinite(squares)) or array.dtype == np.longdouble
    return array.dtype == np.longdouble or (squares == 0 and not array.any())


@dataclass(frozen=True, slots=True)
class _Form:
    """How the elements of a dtype become floats. bits: words that are equal when their bits are.

    floats: makes floats of words, with no digit lost. words, parts: words and floats to an element.
    """

    bits: str
    floats: Callable[[Array], Array]
    words: int = 1
    parts: int = 1
    is_complex: bool = False


@cache
def _form(dtype: str) -> _Form:
    if dtype.startswith("float8"):
        table = _values(dtype, np.arange(256))
        return _Form("u1", table.__getitem__)
    if dtype == "float4_e2m1fn_x2":
        pairs = _pairs()
        return _Form("u1", lambda words: pairs[words].reshape(-1), parts=2)
    if dtype.startswith("complex"):
        item = ITEM_BYTES[dtype]
        part = np.dtype(f"f{item // 2}")
        word = min(item, 8)
        return _Form(
            f"u{word}",
            lambda words: _at_least_single(words.view(part)),
            words=item // word,
            parts=2,
            is_complex=True,
        )
    bits = f"u{ITEM_BYTES[dtype]}"
    if dtype == "bfloat16":
        return _Form(bits, lambda words: (words.astype(np.uint32) << 16).view(np.float32))
    if dtype in ("int64", "uint64"):
        return _Form(bits, lambda words: _from_integers(words.view(dtype)))
    return _Form(bits, lambda words: _at_least_single(words.view(_STORED.get(dtype, dtype))))


def _at_least_single(array: Array) -> Array:
    """Numbers as float32 where that holds all of them, else as float64."""
    wide = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    return array.astype(wide, copy=False)


def _from_integers(array: Array) -> Array:
    """Integers as doubles while these hold them; those beyond as longdouble."""
    floats = array.astype(np.float64)
    if max(float(floats.max()), -float(floats.min())) <= INTEGER_MAX:
        return floats
    return array.astype(np.longdouble)


def _values(dtype: str, codes: Array) -> Array:
    """The value of each code of a float of 8 bits or fewer; float32 holds all of them."""
    values: Array = codes.astype(np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    return values


def _pairs() -> Array:
    """The two values of each byte of 4-bit floats, the lower half first."""
    codes = np.arange(256)
    return np.stack([_values("float4_e2m1fn", half) for half in (codes & 15, codes >> 4)], axis=1)


_STORED = {"bool": "uint8"}
