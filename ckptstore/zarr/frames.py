"""Frames: encoded chunks, checked before a codec decodes them.

Codecs written in C believe the sizes that a frame states: one that states more than it has is read
beyond its end, one that unpacks without end takes all memory. So every size is compared with the
one that follows from the array's document (`encoding`), and what states none is unpacked piece by
piece and counted first. Formats: Blosc 1 (README_HEADER.rst), RFC 8878 (Zstandard), Zarr's sharding
codec. See docs/adr/0040.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ckptstore.arrays.memory_limit import check_unpacked
from ckptstore.errors import CorruptError
from ckptstore.zarr.encoding import CHECKSUM_BYTES, COMPRESSORS, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.zarr.encoding import Encoding, Layer, Shards

PIECE_BYTES = 64 << 10
STREAMS_MAX = 10_000  # one after another in a frame
BLOCKS_MAX = 100_000  # of Zstandard in a frame
LZMA_BYTES_MAX = 128 << 20  # of memory to unpack; the highest preset needs 65 MiB
EMPTY_CHUNK = (1 << 64) - 1  # the place, and the length, of a chunk that a shard lacks

_BLOSC_HEADER_BYTES, _BLOSC_VERSION = 16, 2
_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_SKIPPABLE = 0x184D2A50  # and the next 15
_ZSTD_BLOCK_BYTES_MAX = 128 << 10
_RLE, _COMPRESSED = 1, 2  # kinds of blocks; 0 is raw


@dataclass(frozen=True, slots=True)
class Frame:
    """The bytes of an encoded chunk, or of one in a shard.

    Attributes:
        name: The key of the chunk, for errors.
        data: The bytes.
        bytes_max: What the caller has allowed them to take.
    """

    name: str
    data: memoryview
    bytes_max: int | None = None

    def check(self, encoding: Encoding) -> None:
        """Raise an error unless the bytes can be decoded as the document states.

        Raises:
            CorruptError: They contradict it.
            InvalidInputError: They would take much more memory than they have bytes.
        """
        if encoding.size is not None and len(self.data) != encoding.size:
            raise self.corrupt(f"has {len(self.data)} bytes instead of {encoding.size}")
        self.check_taken(encoding.chunk_bytes)
        if encoding.shards is not None:
            self._check_shards(encoding.shards)
        frame = self
        for position, layer in enumerate(encoding.layers):
            inner = encoding.layers[position + 1 :]
            if layer.codec in COMPRESSORS:
                size = frame.unpacked_size(layer)
                if not any(layer.codec in VARIABLE for layer in inner):
                    return
                frame.check_taken(size)
                frame = frame.unpacked(layer)
            elif layer.codec in VARIABLE:
                items = int.from_bytes(frame.data[:4], "little")
                if len(frame.data) < 4 or items != layer.items:
                    raise self.corrupt(f"states {items} values, and has {layer.items}")
                return
            elif not layer.codec:
                return
            else:
                frame = frame.without_checksum(layer)

    def unpacked_once(self, encoding: Encoding) -> memoryview:
        """Check the bytes, and return them for a decoder that shall have little to unpack.

        gzip and zlib have to be unpacked to be checked, so what they hold is returned in a frame
        that does not compress. All other bytes are returned as they are.

        Raises:
            CorruptError, InvalidInputError: As `check`.
        """
        layer = encoding.layers[0] if encoding.layers else None
        if layer is None or layer.codec not in _WRAPPERS or layer.size is None:
            self.check(encoding)
            return self.data
        self.check_taken(encoding.chunk_bytes)
        wrapper, pieces, size = _WRAPPERS[layer.codec], list[bytes](), 0
        with self._refused(layer):
            for piece in _pieces(self.data, wrapper.decompressor, wrapper.streams_max):
                pieces.append(piece)
                size += len(piece)
                if size > layer.size:
                    break
        self._check_size(layer, size)
        return memoryview(zlib.compress(b"".join(pieces), level=0, wbits=wrapper.bits))

    def corrupt(self, reason: str) -> CorruptError:
        """The error for this chunk."""
        return CorruptError(f"The Zarr chunk {self.name!r:.200} cannot be decoded: it {reason}.")

    def check_taken(self, size: int) -> None:
        """Raise InvalidInputError if it may not take this much memory."""
        name = f"The Zarr chunk {self.name!r:.200}"
        check_unpacked(name, size, stored=len(self.data), bytes_max=self.bytes_max)

    def _with(self, data: memoryview) -> Frame:
        return Frame(self.name, data, self.bytes_max)

    def without_checksum(self, layer: Layer) -> Frame:
        """What a checksum protects."""
        if len(self.data) < CHECKSUM_BYTES:
            raise self.corrupt(f"has no {layer.codec} checksum")
        start, stop = (CHECKSUM_BYTES, None) if layer.at_start else (0, -CHECKSUM_BYTES)
        return self._with(self.data[start:stop])

    def unpacked(self, layer: Layer) -> Frame:
        """What a compressor packed, whose size was checked."""
        import numcodecs  # type: ignore[import-untyped]

        try:
            data = numcodecs.get_codec({"id": layer.codec}).decode(bytes(self.data))
        except Exception as error:  # each codec has its own
            raise self.corrupt(f"is no {layer.codec}") from error
        return self._with(memoryview(data).cast("B"))

    def unpacked_size(self, layer: Layer) -> int:
        """The bytes that it unpacks to, or an upper bound of them."""
        with self._refused(layer):
            size = _SIZES[layer.codec](self.data, layer.size, self.check_taken)
        self._check_size(layer, size)
        return size

    @contextmanager
    def _refused(self, layer: Layer) -> Iterator[None]:
        """Raise CorruptError for whatever a decompressor raises."""
        try:
            yield
        except (ValueError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise self.corrupt(f"is no {layer.codec}: {error}") from error

    def _check_size(self, layer: Layer, size: int) -> None:
        """Check the bytes that a compressor packed, or a bound of them."""
        is_bound = layer.codec not in _EXACT
        if layer.size is not None and (size != layer.size if not is_bound else size < layer.size):
            raise self.corrupt(f"unpacks to {size} bytes instead of {layer.size}")

    def _check_shards(self, shards: Shards) -> None:
        """Check the index, and each chunk that it lists."""
        index = Index.read(shards, self.data, len(self.data), frame=self)
        for place in index.places:
            self.part(place, self.data[place.start : place.stop]).check(shards.inner)

    def part(self, place: Place, data: memoryview) -> Frame:
        """A chunk of this shard."""
        return Frame(f"{self.name}[{place.start}:{place.stop}]", data, self.bytes_max)


class Place(NamedTuple):
    """Where a chunk is in a shard."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Index:
    """The checked index of a shard.

    Attributes:
        places: Where its chunks are; those it lacks are left out.
        bytes: Where it is itself.
    """

    places: frozenset[Place]
    bytes: Place

    @classmethod
    def place(cls, shards: Shards, size: int, *, frame: Frame) -> Place:
        """Return where the index of a shard of `size` bytes is."""
        if size < shards.index_bytes:
            raise frame.corrupt(f"has {size} bytes, and its index {shards.index_bytes}")
        start = 0 if shards.at_start else size - shards.index_bytes
        return Place(start, start + shards.index_bytes)

    @classmethod
    def read(cls, shards: Shards, data: memoryview, size: int, *, frame: Frame) -> Index:
        """Read and check the index of a shard.

        Args:
            shards: What the document states.
            data: The bytes of the whole shard, or of its index.
            size: Bytes of the shard.
            frame: The shard, for errors.
        """
        place = cls.place(shards, size, frame=frame)
        if len(data) == size:
            data = data[place.start : place.stop]
        numbers = np.frombuffer(data, shards.word, count=2 * shards.count).reshape(-1, 2)
        numbers = numbers.astype(np.uint64)
        listed = numbers[(numbers != EMPTY_CHUNK).any(axis=1)]
        starts, lengths = listed[:, 0], listed[:, 1]
        if (starts > size).any() or (lengths > size - np.minimum(starts, size)).any():
            raise frame.corrupt("has an index with chunks beyond its end")
        stops = starts + lengths
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        return cls(frozenset(Place(*pair) for pair in pairs), place)


def _blosc(data: memoryview, expected: int | None, check: Callable[[int], None]) -> int:
    del expected, check
    if len(data) < _BLOSC_HEADER_BYTES or data[0] != _BLOSC_VERSION:
        raise ValueError("it has no header of Blosc 1")
    size, block, packed = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8, 12))
    if packed != len(data) or not data[3] or (size and not 0 < block <= size):
        raise ValueError("its header contradicts its length")
    return size


def _lz4(data: memoryview, expected: int | None, check: Callable[[int], None]) -> int:
    del expected, check
    if len(data) < 4:
        raise ValueError("it has no length")
    return int.from_bytes(data[:4], "little")


def _zstd(data: memoryview, expected: int | None, check: Callable[[int], None]) -> int:
    """The sum of what its frames state, or of the most that their blocks can hold."""
    del expected, check
    at = total = blocks = 0
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & ~0xF == _ZSTD_SKIPPABLE:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            blocks += 1
            continue
        if magic != _ZSTD_MAGIC or at + 5 > len(data):
            raise ValueError("it has no frame")
        stated, at, has_checksum = _zstd_header(data, at + 4)
        most, is_last = 0, False
        while not is_last:
            if at + 3 > len(data) or blocks > BLOCKS_MAX:
                raise ValueError("its blocks do not end")
            header = int.from_bytes(data[at : at + 3], "little")
            is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            most += _ZSTD_BLOCK_BYTES_MAX if kind == _COMPRESSED else size
            at += 3 + (1 if kind == _RLE else size)
            blocks += 1
        at += 4 * has_checksum
        total += most if stated is None else stated
    if at != len(data):
        raise ValueError("it is cut off")
    return total


def _zstd_header(data: memoryview, at: int) -> tuple[int | None, int, bool]:
    """The size that a frame states, where its blocks begin, and whether a checksum follows them."""
    descriptor = data[at]
    is_single = bool(descriptor & 0x20)
    size_bytes = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    at += 1 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    stated = None
    if size_bytes:
        stated = int.from_bytes(data[at : at + size_bytes], "little")
        stated += 256 if size_bytes == 2 else 0
    return stated, at + size_bytes, bool(descriptor & 4)


def _counted(make: Callable[[], Any]) -> Callable[..., int]:
    """A function that unpacks and counts, as far as more than that is not too much.

    make: a new decompressor of zlib, bz2 or lzma.
    """

    def size(data: memoryview, expected: int | None, check: Callable[[int], None]) -> int:
        total = 0
        for piece in _pieces(data, make):
            total += len(piece)
            if expected is None:
                check(total)
            elif total > expected:
                break
        return total

    return size


def _pieces(
    data: memoryview, make: Callable[[], Any], streams_max: int = STREAMS_MAX
) -> Iterator[bytes]:
    """Unpack piece by piece. Streams may follow each other."""
    stream, streams, is_begun = make(), 1, False
    for start in range(0, len(data), PIECE_BYTES):
        packed: bytes | None = bytes(data[start : start + PIECE_BYTES])
        while packed is not None:
            if streams > streams_max:
                raise ValueError("it has too many streams")
            piece, is_begun = stream.decompress(packed, PIECE_BYTES), True
            yield piece
            is_full = len(piece) == PIECE_BYTES
            packed = getattr(stream, "unconsumed_tail", b"") if is_full else None
            if stream.eof:
                packed = stream.unused_data.lstrip(b"\0") or None
                stream, streams, is_begun = make(), streams + 1, False
    if is_begun:
        raise ValueError("it is cut off")


class _Wrapper(NamedTuple):
    """A frame around Deflate, which may store bytes as they are.

    bits: for zlib. streams_max: how many its decoder takes, one after another.
    """

    bits: int
    streams_max: int

    def decompressor(self) -> Any:
        return zlib.decompressobj(self.bits)


_WRAPPERS = {
    "gzip": _Wrapper(zlib.MAX_WBITS | 16, STREAMS_MAX),
    "zlib": _Wrapper(zlib.MAX_WBITS, 1),
}
_SIZES: dict[str, Callable[..., int]] = {
    "blosc": _blosc,
    "bz2": _counted(bz2.BZ2Decompressor),
    "gzip": _counted(_WRAPPERS["gzip"].decompressor),
    "lz4": _lz4,
    "lzma": _counted(lambda: lzma.LZMADecompressor(memlimit=LZMA_BYTES_MAX)),
    "zlib": _counted(_WRAPPERS["zlib"].decompressor),
    "zstd": _zstd,
}
_EXACT = frozenset(_SIZES) - {"zstd"}
