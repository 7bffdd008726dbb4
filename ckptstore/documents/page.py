"""Page: a part of a checkpoint's array list, in path order, and the rule for where pages end.

A hash of each array's path decides where a page ends. The same architecture is therefore always cut
in the same places, and a page in which nothing changed is the same object in every checkpoint.

ADR 0003 (bundles), ADR 0013 (`reached`), ADR 0022 (chunk grids), ADR 0048 (`order`);
docs/reference/format.md, sections 10.1 to 10.4.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

from blake3 import blake3

from ckptstore.documents import canonical
from ckptstore.documents.canonical import Fields, check_digest, check_integer, legal
from ckptstore.documents.chunks import (
    DIMENSIONS_MAX,
    LENGTH_MAX,
    chunk_count,
    chunks,
    is_grid,
    reversed_order,
    stored_order,
    whole,
)
from ckptstore.documents.dtypes import ITEM_BYTES, item_bytes
from ckptstore.documents.marker import CHUNK_BYTES_MAX
from ckptstore.documents.names import check_path
from ckptstore.errors import CorruptError, InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.chunks import Chunk
    from ckptstore.documents.manifest import PageRef

PAGE_BYTES_MAX = 32 << 20
PAGE_ARRAYS_MIN = 32
PAGE_ARRAYS_MAX = 512
PAGE_CHUNKS_MAX = 65_536  # digests a page may list before it ends: 65,536 x 67 bytes is 4.4 MB
PAGE_CUT_MODULUS = 160  # one path in 160 ends a page once 32 are in it: 180 on average
CACHED_PATHS = 1 << 15  # 3 MB besides the paths, which the pages in memory hold
SMALL_BYTES = 64 << 10  # smaller arrays share one object for each page, its bundle
BUNDLE_BYTES_MAX = PAGE_ARRAYS_MAX * SMALL_BYTES

_DIGEST = re.compile(r'"([0-9a-f]{64})"')
# The digest of a small array: it names bytes in the bundle, not an object.
_SMALL = re.compile(r'"digest":"[0-9a-f]{64}","dtype":')


@dataclass(slots=True)  # neither frozen nor kw_only: these cost 1 us and 0.2 us for each array
class ArrayEntry:
    """One array: its path, dtype, shape and chunks, and the digests of its bytes.

    Attributes:
        path: Its path in the state.
        dtype: Name of its dtype.
        shape: Its lengths.
        chunk_shape: Lengths of its chunks, in stored order; empty for a small array.
        digests: Of its chunks, in C order of the grid, or of the bytes of a small array. An empty
            array has none.
        offset: Where a small array begins in the bundle of its page.
        order: Its dimensions in the order in which its bytes are stored, which is that of the
            memory it came from; None for C order.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...] = ()
    digests: tuple[Digest, ...] = ()
    offset: int | None = None
    order: tuple[int, ...] | None = None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Its lengths in the order in which its bytes are stored."""
        return stored_order(self.shape, self.order)

    @property
    def stored_chunk_shape(self) -> tuple[int, ...]:
        """The lengths of its chunks in that order; a small array is one chunk."""
        return self.chunk_shape if self.offset is None else whole(self.stored_shape)

    @property
    def shown_chunk_shape(self) -> tuple[int, ...]:
        """The lengths of its chunks in the order of the shape."""
        stored = self.stored_chunk_shape
        return stored if self.order is None else stored_order(stored, reversed_order(self.order))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def cut(self) -> tuple[int, ...]:
        """How its bytes are divided among its digests: the shape of a chunk, and the order."""
        cut = self.chunk_shape if len(self.digests) > 1 else self.shape
        return cut if self.order is None else (*cut, *self.order)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for arrays of the same dtype and shape only if these hold the same bytes."""
        return self.cut, self.digests

    def grid(self) -> Iterator[tuple[Digest, Chunk]]:
        """Each chunk, in stored order, with its digest, in C order of the grid."""
        item = ITEM_BYTES[self.dtype]
        grid = chunks(self.stored_shape, self.stored_chunk_shape, item_bytes=item)
        return zip(self.digests, grid, strict=True)

    def sized_digests(self) -> Iterable[tuple[Digest, int]]:
        """Each digest with the bytes that it stands for."""
        if len(self.digests) == 1:
            return [(self.digests[0], self.nbytes)]
        return ((digest, chunk.size) for digest, chunk in self.grid())

    @property
    def canonical(self) -> str:
        """The canonical JSON of an entry. Its keys are known, so no encoder has to sort them."""
        path = canonical.string(self.path)
        dtype, shape = self.dtype, _listed(self.shape)
        order = "" if self.order is None else f'"order":[{_listed(self.order)}],'
        if self.offset is not None:
            return (
                f'{{"digest":"{self.digests[0]}","dtype":"{dtype}","offset":{self.offset},'
                f'{order}"path":{path},"shape":[{shape}]}}'
            )
        steps, digests = _listed(self.chunk_shape), '","'.join(self.digests)
        listed = f'"{digests}"' if digests else ""
        return (
            f'{{"chunk_shape":[{steps}],"digests":[{listed}],"dtype":"{dtype}",'
            f'{order}"path":{path},"shape":[{shape}]}}'
        )

    @classmethod
    def from_json(cls, document: object, *, name: str, bundle_bytes: int) -> Self:
        """Check every claim of an entry before anything is allocated for it.

        Raises:
            CorruptError: A field is missing, wrong, or does not fit the others.
        """
        fields = Fields(document, name=name)
        path = legal(check_path, fields.text("path"), name=name)
        name = f"{name}, array {path[:100]!r}"
        dtype, shape = fields.get("dtype"), _shape(fields.array("shape"), name=name)
        nbytes = math.prod(shape) * item_bytes(dtype, name=name)
        if max((nbytes, *shape)) > LENGTH_MAX:
            raise CorruptError(f"{name} claims {nbytes} bytes in the shape {shown(shape)}.")
        order = None
        if "order" in fields.document:
            order = _order(fields.array("order"), dimensions=len(shape), name=name)
        if "offset" in fields.document:
            offset = fields.integer("offset", high=bundle_bytes)
            if not 0 < nbytes < SMALL_BYTES or offset + nbytes > bundle_bytes:
                raise CorruptError(f"{name} does not fit in its bundle.")
            digest = fields.digest("digest")
            return cls(path, dtype, shape, (), (digest,), offset, order)
        chunk_shape = _shape(fields.array("chunk_shape"), name=name)
        listed = fields.array("digests")
        stored = stored_order(shape, order)
        if not is_grid(stored, chunk_shape) or len(listed) != chunk_count(stored, chunk_shape):
            raise CorruptError(
                f"{name}: {len(listed)} chunks of {chunk_shape} do not make {stored}."
            )
        largest = math.prod(map(min, stored, chunk_shape)) * item_bytes(dtype, name=name)
        if largest > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"{name} claims chunks of {largest} bytes; at most {CHUNK_BYTES_MAX} are allowed."
            )
        digests = tuple(check_digest(text, name=name) for text in listed)
        return cls(path, dtype, shape, chunk_shape, digests, None, order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """The object that contains the small arrays of a page, one after the other in path order."""

    digest: Digest
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form inside a page."""
        return {"digest": self.digest, "size": self.size}

    @classmethod
    def of_page(cls, fields: Fields) -> Self | None:
        """Return the bundle that a page names, checked; None for a page without one."""
        if "bundle" not in fields.document:
            return None
        inner = Fields(fields.get("bundle"), name=f"{fields.name}, bundle")
        size = inner.integer("size", low=1, high=BUNDLE_BYTES_MAX)
        return cls(digest=inner.digest("digest"), size=size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Arrays in path order, and the bundle of the small ones among them."""

    entries: tuple[ArrayEntry, ...]
    bundle: Bundle | None = None

    @property
    def first(self) -> str:
        """The path of the first array."""
        return self.entries[0].path

    @property
    def begin(self) -> str:
        """The path of the first array, where the page stands among others."""
        return self.first

    @property
    def end(self) -> str:
        """The path of the last array."""
        return self.entries[-1].path

    @property
    def array_bytes(self) -> int:
        """Bytes of all arrays of this page."""
        return sum([entry.nbytes for entry in self.entries])

    @property
    def has_orders(self) -> bool:
        """True when an array is not stored in C order."""
        return any(entry.order is not None for entry in self.entries)

    def is_as_claimed(self, ref: PageRef) -> bool:
        """Return True for a page that matches its reference in a manifest."""
        claimed = ref.first, ref.arrays, ref.bytes
        return (self.first, len(self.entries), self.array_bytes) == claimed

    def digests(self) -> Iterator[tuple[Digest, int]]:
        """Every object that this page refers to, with its size in bytes."""
        if self.bundle:
            yield self.bundle.digest, self.bundle.size
        for entry in self.entries:
            if entry.offset is None:
                yield from entry.sized_digests()

    def objects(self) -> set[Digest]:
        """Every object that this page refers to, without sizes, which take most of the time."""
        bundle = () if self.bundle is None else (self.bundle.digest,)
        chunks = (entry.digests for entry in self.entries if entry.offset is None)
        return set(bundle).union(*chunks)

    def bundled(self) -> Iterator[tuple[str, Digest, slice]]:
        """The path, the digest and the position in the bundle of each small array."""
        for entry in self.entries:
            if entry.offset is not None:
                place = slice(entry.offset, entry.offset + entry.nbytes)
                yield entry.path, entry.digests[0], place

    def encode(self) -> bytes:
        """Return the canonical bytes whose digest names the page."""
        listed = ",".join([entry.canonical for entry in self.entries])
        bundle = f',"bundle":{canonical.text_of(self.bundle)}' if self.bundle else ""
        data = f'{{"arrays":[{listed}]{bundle}}}'.encode("ascii")
        name = f"The page from {self.first!r:.100} on (use a repository with larger chunks)"
        try:
            canonical.check_size(data, name=name, bytes_max=PAGE_BYTES_MAX)
        except CorruptError as error:
            raise InvalidInputError(str(error)) from error
        return data

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode a page and check every entry; CorruptError if one is wrong."""
        fields = Fields(canonical.decode(data, name=name, bytes_max=PAGE_BYTES_MAX), name=name)
        bundle = Bundle.of_page(fields)
        listed = fields.array("arrays", low=1, high=PAGE_ARRAYS_MAX)
        bundle_bytes = bundle.size if bundle else 0
        entries = tuple(
            ArrayEntry.from_json(item, name=name, bundle_bytes=bundle_bytes) for item in listed
        )
        if any(a.path >= b.path for a, b in itertools.pairwise(entries)):
            raise CorruptError(f"{name} does not list its arrays in path order.")
        return cls(entries=entries, bundle=bundle)


def _order(listed: list[object], *, dimensions: int, name: str) -> tuple[int, ...]:
    """The dimensions in stored order; C order has no such field."""
    order = tuple(check_integer(axis, name=name, high=DIMENSIONS_MAX) for axis in listed)
    axes = tuple(range(dimensions))
    if order == axes or tuple(sorted(order)) != axes:
        raise CorruptError(f"{name} is not stored in an order of its {dimensions} dimensions.")
    return order


def reached(data: bytes, *, name: str, decode: Callable[..., Any]) -> set[str]:
    """Find the digests of the objects that a page refers to, without decoding it.

    Ten times as fast as decoding. Bytes that are not a page are not examined closely, so there may
    be digests too many, but never one too few.

    Args:
        data: The page, of arrays or of Zarr nodes.
        name: What it is, for errors.
        decode: Decodes such a page.
    """
    text = canonical.text(data, name=name, bytes_max=PAGE_BYTES_MAX)
    if "\\u00" in text:  # a digest could be spelled so that no pattern finds it
        return {digest for digest, _ in decode(data, name=name).digests()}
    if '"offset":' in text:
        text = _SMALL.sub("", text)
    return set(_DIGEST.findall(text))


def ends_page(path: str, *, arrays: int, chunks: int) -> bool:
    """True when a page that has these many arrays and chunks with this path ends after it."""
    if arrays >= PAGE_ARRAYS_MAX or chunks >= PAGE_CHUNKS_MAX:
        return True
    if arrays < PAGE_ARRAYS_MIN:
        return False
    return _may_end_page(path)


@lru_cache(maxsize=CACHED_PATHS)  # the next commit has mostly the same paths
def _may_end_page(path: str) -> bool:
    hashed = int.from_bytes(blake3(path.encode("utf-8")).digest(4), "little")
    return hashed % PAGE_CUT_MODULUS == 0


def cut(arrays: Sequence[tuple[str, int]]) -> list[slice]:
    """Where pages begin and end in a list of (path, number of chunks) in path order."""
    parts: list[slice] = []
    start = chunks_so_far = 0
    for position, (path, count) in enumerate(arrays, start=1):
        chunks_so_far += count
        if position == len(arrays) or ends_page(
            path, arrays=position - start, chunks=chunks_so_far
        ):
            parts.append(slice(start, position))
            start, chunks_so_far = position, 0
    return parts


def _listed(numbers: tuple[int, ...]) -> str:
    """Numbers as a JSON array lists them; most arrays that are small have one dimension."""
    return str(numbers[0]) if len(numbers) == 1 else ",".join(map(str, numbers))


def _shape(values: list[Any], *, name: str) -> tuple[int, ...]:
    if len(values) > DIMENSIONS_MAX:
        raise CorruptError(
            f"{name} has {len(values)} dimensions; at most {DIMENSIONS_MAX} are allowed."
        )
    return tuple(check_integer(value, name=f"{name}: shape") for value in values)
