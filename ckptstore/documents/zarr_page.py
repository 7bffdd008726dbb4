"""NodePage: what was committed through Zarr, node by node: which value each key of a node has.

A node is an array or a group of a Zarr hierarchy. Its keys are "zarr.json" and, for an array, the
keys of its chunks. Values are kept as they were set, whatever their codecs, and are not interpreted
here. Small values share the bundle of their page, one after the other. Larger ones are objects, cut
into segments so that a part of a shard can be read and checked by itself. A node with more values
than one page should list continues on the next pages.

ADR 0016; docs/reference/format.md, section 10.5.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from blake3 import blake3

from ckptstore.documents import canonical
from ckptstore.documents.canonical import Fields, check_digest, check_integer, legal
from ckptstore.documents.marker import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from ckptstore.documents.names import PATH_LENGTH_MAX, check_path
from ckptstore.documents.page import PAGE_BYTES_MAX, SMALL_BYTES, Bundle, cut
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import PageRef

PAGE_NODES_MAX = 512
# 16 TB, in at least 65,536 segments: far more than a page can list.
VALUE_BYTES_MAX = 1 << 44

PART_WEIGHT_MAX = 65_536  # of a node on one page; 7 MB
PART_WEIGHT_MIN = 4_096
PART_CUT_MODULUS = 8_192  # one key in 8,192 ends a part: 12,000 values on average


@dataclass(frozen=True, slots=True)
class Value:
    """The value of one key.

    Attributes:
        size: Its bytes.
        digests: Of its segments, or of all its bytes if it is in the page's bundle.
        offset: Where it begins in the bundle; None for a value in segments.
    """

    size: int
    digests: tuple[Digest, ...] = ()
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class ZarrNode:
    """One array or group, and its values by key relative to `path`, which is "" for the root."""

    path: str
    values: tuple[tuple[str, Value], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return sum(value.size for _, value in self.values)

    @property
    def end(self) -> tuple[str, str]:
        """The path and the last key; the next node, or the rest of this one, comes after it."""
        return self.path, self.values[-1][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedEntry:
    """An array that was committed through Zarr, as its document describes it.

    Attributes:
        path: Path of its node.
        dtype: Name of its dtype, "" for one that no state can hold.
        shape: Lengths of its dimensions.
        chunk_shape: Lengths of its chunks.
        digests: Digests of all its values, the document among them.
        sizes: Bytes of each.
        chunks: Number of chunks that are stored.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    digests: tuple[Digest, ...]
    sizes: tuple[int, ...]
    chunks: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its values as encoded."""
        return sum(self.sizes)

    @property
    def cut(self) -> tuple[int, ...]:
        """Unlike that of any array of a state: only its codecs know what its values hold."""
        return (-1,)

    @property
    def content(self) -> tuple[object, ...]:
        """Equal for arrays of the same dtype and shape only if these hold the same elements."""
        return self.cut, self.digests

    def sized_digests(self) -> Iterable[tuple[Digest, int]]:
        """Each digest with the bytes that it stands for."""
        return zip(self.digests, self.sizes, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePage:
    """Nodes in path order. segment_bytes: the size of the segments of larger values."""

    nodes: tuple[ZarrNode, ...]
    segment_bytes: int
    bundle: Bundle | None = None

    @property
    def first(self) -> str:
        """The path of the first node."""
        return self.nodes[0].path

    @property
    def begin(self) -> tuple[str, str]:
        """The path of the first node, and its first key."""
        return self.first, self.nodes[0].values[0][0]

    @property
    def end(self) -> tuple[str, str]:
        """The path of the last node, and its last key."""
        return self.nodes[-1].end

    def is_as_claimed(self, ref: PageRef) -> bool:
        """Return True for a page that matches its reference in a manifest."""
        is_same = (self.first, self.nbytes) == (ref.first, ref.bytes)
        return is_same and ref.arrays <= len(self.nodes)

    @property
    def nbytes(self) -> int:
        """Bytes of all values of this page."""
        return sum(node.nbytes for node in self.nodes)

    def digests(self) -> Iterator[tuple[Digest, int]]:
        """Every object that this page refers to, with its size in bytes."""
        if self.bundle:
            yield self.bundle.digest, self.bundle.size
        for node in self.nodes:
            for _, value in node.values:
                yield from segments(value, self.segment_bytes)

    def bundled(self) -> Iterator[tuple[str, Digest, slice]]:
        """The key, the digest and the position in the bundle of each small value."""
        for node in self.nodes:
            for key, value in node.values:
                if value.offset is not None:
                    place = slice(value.offset, value.offset + value.size)
                    yield f"{node.path}/{key}", value.digests[0], place

    def encode(self) -> bytes:
        """Return the canonical bytes whose digest names the page."""
        document: dict[str, Any] = {
            "nodes": [
                {"path": node.path, "values": [_to_json(*item) for item in node.values]}
                for node in self.nodes
            ],
            "segment_bytes": self.segment_bytes,
        }
        if self.bundle:
            document["bundle"] = self.bundle
        name = f"The list of Zarr chunks from {'/'.join(self.begin)!r:.100} on"
        return canonical.encode(document, name=name, bytes_max=PAGE_BYTES_MAX)

    @classmethod
    def decode(cls, data: bytes, *, name: str) -> Self:
        """Decode a page and check every value; CorruptError if one is wrong."""
        fields = Fields(canonical.decode(data, name=name, bytes_max=PAGE_BYTES_MAX), name=name)
        bundle = Bundle.of_page(fields)
        segment_bytes = fields.integer("segment_bytes", low=CHUNK_BYTES_MIN, high=CHUNK_BYTES_MAX)
        listed = fields.array("nodes", low=1, high=PAGE_NODES_MAX)
        nodes = tuple(
            _node(item, name=name, bundle=bundle, segment_bytes=segment_bytes) for item in listed
        )
        if any(a.path >= b.path for a, b in itertools.pairwise(nodes)):
            raise CorruptError(f"{name} does not list its nodes in path order.")
        return cls(nodes=nodes, segment_bytes=segment_bytes, bundle=bundle)


class Weighed(NamedTuple):
    """A node to be put on pages, with the weight of each of its values."""

    path: str
    keys: Sequence[str]
    weights: Sequence[int]


def weight(key: str, digests: int) -> int:
    """The weight of a value, by its number of segments, in deciding where pages end."""
    return max(1, digests) + len(key.encode()) // 32


def cut_nodes(nodes: Sequence[Weighed]) -> Iterator[list[tuple[int, slice]]]:
    """Yield the contents of each page: the numbers of nodes, and which of their values."""
    totals = [(node.path, sum(node.weights)) for node in nodes]
    large = [total > PART_WEIGHT_MAX for _, total in totals]
    for is_large, group in itertools.groupby(range(len(nodes)), key=large.__getitem__):
        numbers = list(group)
        if is_large:
            for number in numbers:
                yield from ([(number, part)] for part in _parts(nodes[number]))
        else:
            for part in cut([totals[number] for number in numbers]):
                yield [(number, slice(0, len(nodes[number].keys))) for number in numbers[part]]


def _parts(node: Weighed) -> Iterator[slice]:
    start = total = 0
    for position, (key, weighs) in enumerate(zip(node.keys, node.weights, strict=True), start=1):
        total += weighs
        if position == len(node.keys) or ends_part(key, total):
            yield slice(start, position)
            start, total = position, 0


def ends_part(key: str, weight: int) -> bool:
    """True when a part of a node that has this weight with this key ends after it."""
    if weight >= PART_WEIGHT_MAX:
        return True
    if weight < PART_WEIGHT_MIN:
        return False
    hashed = int.from_bytes(blake3(key.encode()).digest(4), "little")
    return hashed % PART_CUT_MODULUS == 0


def segments(value: Value, segment_bytes: int) -> Iterator[tuple[Digest, int]]:
    """The digest and byte size of each object of a value; nothing for one in a bundle."""
    if value.offset is None:
        for position, digest in enumerate(value.digests):
            yield digest, min(segment_bytes, value.size - position * segment_bytes)


def check_key(key: str) -> str:
    """Return a legal key of a Zarr store, or raise InvalidInputError."""
    return check_path(key, kind="key of a Zarr store")


def _to_json(key: str, value: Value) -> list[Any]:
    return [key, value.size, value.offset, *value.digests]


def _node(document: object, *, name: str, bundle: Bundle | None, segment_bytes: int) -> ZarrNode:
    fields = Fields(document, name=name)
    path = fields.text("path", length_max=PATH_LENGTH_MAX)
    if path:
        _checked_key(path, name=name)
    values = tuple(
        _value(item, name=name, bundle=bundle, segment_bytes=segment_bytes)
        for item in fields.array("values")
    )
    if not values or any(a[0] >= b[0] for a, b in itertools.pairwise(values)):
        raise CorruptError(f"{name} does not list the keys of {path!r:.100} in order.")
    return ZarrNode(path, values)


def _value(
    item: object, *, name: str, bundle: Bundle | None, segment_bytes: int
) -> tuple[str, Value]:
    if not isinstance(item, list) or len(item) < 3:
        raise CorruptError(f"{name} holds a value that is not [key, size, offset, digest, …].")
    key = _checked_key(item[0], name=name)
    size = check_integer(item[1], name=f"{name}: size", high=VALUE_BYTES_MAX)
    digests = tuple(check_digest(text, name=name) for text in item[3:])
    if item[2] is None:
        if len(digests) != -(-size // segment_bytes):
            raise CorruptError(f"{name}: {len(digests)} segments do not make {size} bytes.")
        return key, Value(size, digests)
    end = bundle.size if bundle else 0
    offset = check_integer(item[2], name=f"{name}: offset", high=end)
    if not 0 < size < SMALL_BYTES or offset + size > end or len(digests) != 1:
        raise CorruptError(f"{name}: {key!r:.100} does not fit in its bundle.")
    return key, Value(size, digests, offset)


def _checked_key(key: object, *, name: str) -> str:
    return legal(check_key, key if isinstance(key, str) else "", name=name)
