"""Encoding: how the chunks of a Zarr array are encoded, checked before anything may decode them.

A document of a few bytes can make a decoder end the process, run for ever or take all memory. So
only the dtypes and codecs listed here are decoded, with settings within named limits. `frames`
compares the chunks themselves with the sizes that follow from a document. See docs/adr/0040.

A program may allow further codecs by name (`allow_codec`), whose output cannot be checked. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.documents.chunks import DIMENSIONS_MAX, chunk_counts
from ckptstore.documents.dtypes import (
    DATE_STEP_MAX,
    DATE_UNITS,
    ELEMENT_BYTES_MAX,
    ITEM_BYTES,
    NUMPY_DTYPES,
    TextDtype,
)
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

CODECS_MAX = 16  # of an array, one after another
FIELDS_MAX = 256  # of a record
RECORD_DEPTH_MAX = 3
SHARD_DEPTH_MAX = 2  # shards in shards
SHARD_CHUNKS_MAX = 1 << 17  # whose index has 2 MiB
LENGTH_MAX = 1 << 62  # of a dimension
OBJECT_BYTES = 64  # of memory for an object such as a text, beside its letters
CHECKSUM_BYTES = 4
INDEX_ENTRY_BYTES = 16  # place and length of a chunk in a shard

COMPRESSORS = frozenset({"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"})
VARIABLE = frozenset({"vlen-utf8", "vlen-bytes"})
_CHECKSUMS = frozenset({"adler32", "crc32", "crc32c", "fletcher32"})
_CASTS = {  # the settings that name the dtypes of decoded and of encoded elements
    "astype": ("decode_dtype", "encode_dtype"),
    "delta": ("dtype", "astype"),
    "fixedscaleoffset": ("dtype", "astype"),
    "quantize": ("dtype", "astype"),
}
_SIMPLE = frozenset({"bitround", "bytes", "endian", "packbits", "shuffle", "transpose"})
_KNOWN = COMPRESSORS | VARIABLE | _CHECKSUMS | _CASTS.keys() | _SIMPLE
_PREFIX = "numcodecs."  # of codecs of Zarr v2 in documents of Zarr v3
_TEXTS = frozenset({"string", "variable_length_utf8", "variable_length_bytes", "bytes"})
_FIXED = frozenset({"fixed_length_utf32", "null_terminated_bytes", "raw_bytes"})
_DATES = frozenset({"numpy.datetime64", "numpy.timedelta64"})
_RECORDS = frozenset({"struct", "structured"})
_LZMA_FORMATS = (0, 1, 2)  # not raw data, whose filters claim any memory
_allowed: set[str] = set()


class UnknownCodecError(InvalidInputError):
    """A codec that is neither listed here nor allowed: chunks are stored, but not decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A codec to undo.

    Attributes:
        codec: Its name; "" for one that a program has allowed.
        size: Bytes of the result; None where they depend on the values.
        at_start: Whether a checksum precedes what it protects.
        items: The number of values in the chunk.
    """

    codec: str
    size: int | None = None
    at_start: bool = False
    items: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Chunks within a chunk, with an index of their places.

    Attributes:
        inner: The encoding of each.
        count: Their number.
        index_bytes: Bytes of the index.
        at_start: Whether the index comes first.
        word: The numpy dtype of the numbers in the index.
    """

    inner: Encoding
    count: int
    index_bytes: int
    at_start: bool
    word: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """A checked description of encoded chunks.

    Attributes:
        chunk_shape: The shape of a chunk.
        chunk_bytes: The memory that a decoded chunk takes.
        size: Bytes of every encoded chunk, where they are all the same; else None.
        layers: The codecs that change sizes, in the order in which they are undone.
        shards: The inner chunks, if a chunk consists of some.
    """

    chunk_shape: tuple[int, ...]
    chunk_bytes: int
    size: int | None = None
    layers: tuple[Layer, ...] = ()
    shards: Shards | None = None

    @classmethod
    def of(cls, document: Mapping[str, Any], *, name: str, is_v2: bool) -> Encoding:
        """Check the document of an array.

        Args:
            document: A `zarr.json` of an array, or a `.zarray`.
            name: The path of the array, for errors.
            is_v2: Whether it is a `.zarray`.

        Raises:
            UnknownCodecError: A codec is neither listed here nor allowed.
            InvalidInputError: It has anything else that is not listed here.
        """
        return _Check(name).document(document, is_v2=is_v2)


def allow_codec(name: str) -> None:
    """Let a further codec decode chunks in this process, because its code can be trusted.

    Args:
        name: Its name in the documents of arrays.

    Raises:
        InvalidInputError: It reads pickles, which can run code.

    Example:
        >>> from ckptstore.zarr import allow_codec
        >>> allow_codec("numcodecs.zfpy")
    """
    if not isinstance(name, str) or "pickle" in name.lower():
        raise InvalidInputError(
            f"The codec {shown(name)} cannot be allowed: a name is expected, and a pickle could "
            "run code."
        )
    _allowed.add(name)


class _Check:
    """Checks the parts of one document. name: of the array, for errors."""

    def __init__(self, name: str) -> None:
        self.name = name

    def invalid(self, reason: str) -> InvalidInputError:
        return InvalidInputError(
            f"The Zarr array {shown(self.name or '/', 200)} cannot be decoded: {reason}."
        )

    def document(self, document: Mapping[str, Any], *, is_v2: bool) -> Encoding:
        shape = self.lengths("shape", document.get("shape"))
        if is_v2:
            steps = self.steps(document.get("chunks"), shape)
            filters, compressor = document.get("filters"), document.get("compressor")
            codecs = [
                *([] if filters is None else self.listed("filters", filters)),
                *([] if compressor is None else [compressor]),
            ]
            return self.chunk(steps, self.dtype_v2(document.get("dtype")), codecs, key="id")
        grid, settings = self.named("chunk grid", document.get("chunk_grid"))
        if grid != "regular":
            raise self.invalid(f"its chunk grid is {shown(grid)}")
        steps = self.steps(settings.get("chunk_shape"), shape)
        return self.chunk(steps, self.dtype_v3(document.get("data_type")), document.get("codecs"))

    def chunk(
        self,
        steps: tuple[int, ...],
        element: int | None,
        codecs: object,
        *,
        key: str = "name",
        depth: int = 0,
    ) -> Encoding:
        """The encoding of a chunk.

        steps: its shape. element: bytes of each, None for objects. key: of the name of a codec.
        depth: the number of shards around it.
        """
        chain = _Chain(self, steps, element)
        known = self.listed("codecs", codecs)
        if len(known) > CODECS_MAX:
            raise self.invalid(f"it has {len(known)} codecs; at most {CODECS_MAX} are expected")
        for number, codec in enumerate(known, start=1):
            name, settings = self.named("codec", codec, key=key)
            if name == "sharding_indexed" and number == len(known):
                return chain.sharded(self.shards(settings, chain.steps, element, depth))
            chain.add(name, settings)
        return chain.encoding()

    def shards(
        self, settings: Mapping[str, Any], steps: tuple[int, ...], element: int | None, depth: int
    ) -> Shards:
        if depth == SHARD_DEPTH_MAX:
            raise self.invalid(f"its shards are nested more than {SHARD_DEPTH_MAX} times")
        inner = self.lengths("shape of chunks in shards", settings.get("chunk_shape"))
        is_grid = len(inner) == len(steps) and all(
            part and not step % part for step, part in zip(steps, inner, strict=True)
        )
        count = math.prod(chunk_counts(steps, inner)) if is_grid else 0
        if not 0 < count <= SHARD_CHUNKS_MAX:
            raise self.invalid(f"its shards of shape {steps} have chunks of shape {inner}")
        index = [
            self.named("codec", codec)
            for codec in self.listed("index codecs", settings.get("index_codecs"))
        ]
        names = [name for name, _ in index]
        if names not in (["bytes"], ["bytes", "crc32c"]):
            raise self.invalid(f"the index of its shards has the codecs {shown(names)}")
        is_big = index[0][1].get("endian") == "big"
        return Shards(
            inner=self.chunk(inner, element, settings.get("codecs"), depth=depth + 1),
            count=count,
            index_bytes=count * INDEX_ENTRY_BYTES + CHECKSUM_BYTES * (len(names) - 1),
            at_start=settings.get("index_location", "end") == "start",
            word=">u8" if is_big else "<u8",
        )

    def lengths(self, what: str, value: object) -> tuple[int, ...]:
        lengths = self.listed(what, value)
        if len(lengths) > DIMENSIONS_MAX or not all(
            type(length) is int and 0 <= length <= LENGTH_MAX for length in lengths
        ):
            raise self.invalid(f"its {what} is {shown(value)}")
        return tuple(lengths)

    def steps(self, value: object, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The chunk shape, of which only a dimension without elements may be 0."""
        steps = self.lengths("chunk shape", value)
        if len(steps) != len(shape) or any(
            length and not step for length, step in zip(shape, steps, strict=True)
        ):
            raise self.invalid(f"its chunk shape is {shown(value)}, its shape {shown(shape)}")
        return tuple(max(1, step) for step in steps)

    def listed(self, what: str, value: object) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise self.invalid(f"its {what} is {shown(value)}")
        return list(value)

    def named(
        self, what: str, value: object, *, key: str = "name"
    ) -> tuple[str, Mapping[str, Any]]:
        """The name and the settings of something. key: "id" where the settings are beside it."""
        if key == "name" and isinstance(value, str):
            return value, {}
        name = value.get(key) if isinstance(value, dict) else None
        settings = value if key == "id" else isinstance(value, dict) and value.get("configuration")
        if not isinstance(name, str) or not isinstance(settings or {}, dict):
            raise self.invalid(f"its {what} is {shown(value)}")
        return name, dict(settings) if isinstance(settings, dict) else {}

    def dtype_v2(self, value: object, depth: int = 0) -> int | None:
        """Bytes of an element; None for objects."""
        if isinstance(value, list):
            return self.record("dtype", value, depth, self.dtype_v2)
        dtype = TextDtype.parse(value)
        if dtype is None or (dtype.kind == "O" and depth):
            raise self.invalid(f"its dtype is {shown(value)}")
        return None if dtype.kind == "O" else self.element(dtype.element_bytes, value)

    def dtype_v3(self, value: object, depth: int = 0) -> int | None:
        """Bytes of an element; None for objects."""
        name, settings = self.named("data type", value)
        if name in ITEM_BYTES:
            return ITEM_BYTES[name]
        if name in _TEXTS and not depth:
            return None
        if name in _FIXED:
            return self.element(settings.get("length_bytes"), value)
        if name in _DATES:
            step = settings.get("scale_factor")
            if settings.get("unit") in DATE_UNITS and type(step) is int:
                return self.element(8 if 1 <= step <= DATE_STEP_MAX else 0, value)
        if name in _RECORDS:
            return self.record("data type", settings.get("fields"), depth, self.dtype_v3)
        raise self.invalid(f"its data type is {shown(value)}")

    def record(self, what: str, value: object, depth: int, dtype: Any) -> int:
        """Bytes of a record of named fields."""
        fields = self.listed(what, value)
        if not 0 < len(fields) <= FIELDS_MAX or depth == RECORD_DEPTH_MAX:
            raise self.invalid(f"its {what} has {len(fields)} fields")
        total = 0
        for field in fields:
            pair = [field.get("name"), field.get("data_type")] if isinstance(field, dict) else field
            if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
                raise self.invalid(f"its {what} has the field {shown(field)}")
            total += dtype(pair[1], depth + 1)
        return self.element(total, value)

    def element(self, size: object, dtype: object) -> int:
        """Bytes of an element of a fixed size."""
        if type(size) is not int or not 0 < size <= ELEMENT_BYTES_MAX:
            raise self.invalid(f"its dtype is {shown(dtype)}")
        return size


class _Chain:
    """The codecs of a chunk, in the order in which they encode.

    steps: the shape of the chunk. element: bytes of each element, None for objects.
    """

    def __init__(self, check: _Check, steps: tuple[int, ...], element: int | None) -> None:
        self.check, self.steps, self.element = check, steps, element
        self.count = math.prod(steps)
        self.size = None if element is None else self.count * element
        self.layers: list[Layer] = []

    def encoding(self) -> Encoding:
        if self.element is None and not self.layers:
            raise self.check.invalid("its values are objects, and no codec stores them")
        return Encoding(
            chunk_shape=self.steps,
            chunk_bytes=self.count * (self.element or OBJECT_BYTES),
            size=self.size,
            layers=tuple(reversed(self.layers)),
        )

    def sharded(self, shards: Shards) -> Encoding:
        if self.layers:
            raise self.check.invalid("its shards are encoded by further codecs")
        return Encoding(
            chunk_shape=self.steps,
            chunk_bytes=self.count * (self.element or OBJECT_BYTES),
            shards=shards,
        )

    def add(self, name: str, settings: Mapping[str, Any]) -> None:
        """Add a codec."""
        codec = name.removeprefix(_PREFIX)
        if name not in _allowed and codec not in _KNOWN:
            raise self.unknown(name)
        if name in _allowed:
            self.layers, self.size = [Layer(codec="")], None
        elif codec in _CHECKSUMS:
            at_start = settings.get("location", "end") == "start"
            self.put(codec, at_start=at_start)
            self.size = None if self.size is None else self.size + CHECKSUM_BYTES
        elif any(layer.codec in COMPRESSORS for layer in self.layers):
            raise self.check.invalid(f"{shown(name)} follows a compressor")
        elif codec in COMPRESSORS:
            if codec == "lzma" and not (
                settings.get("format", 1) in _LZMA_FORMATS and settings.get("filters") is None
            ):
                raise self.check.invalid(f"its codec is {shown(settings)}")
            self.put(codec)
            self.size = None
        elif codec in VARIABLE:
            if self.layers:
                raise self.check.invalid(f"{shown(name)} is not its first codec")
            self.put(codec)
            self.size = None
        elif codec == "transpose":
            self.transpose(settings.get("order"))
        elif codec in _CASTS:
            self.cast(codec, settings)
        elif codec == "packbits" and self.size is not None:
            self.size = 1 + -(-self.size // 8)

    def unknown(self, name: str) -> UnknownCodecError:
        """The error for a codec that is neither known nor allowed."""
        array = f"The Zarr array {shown(self.check.name or '/', 200)}"
        if "pickle" in name.lower():
            return UnknownCodecError(
                f"{array} is stored with pickle, and reading it could run code. Write it again "
                "with other codecs."
            )
        return UnknownCodecError(
            f"{array} has the codec {shown(name)}, which is not among those that are decoded. If "
            "you trust its code, allow it with ckptstore.zarr.allow_codec; else leave the array "
            "out (exclude)."
        )

    def put(self, codec: str, *, at_start: bool = False) -> None:
        layer = Layer(codec=codec, size=self.size, at_start=at_start, items=self.count)
        self.layers.append(layer)

    def transpose(self, order: object) -> None:
        axes = self.check.lengths("order of dimensions", order)
        if sorted(axes) != [*range(len(self.steps))]:
            raise self.check.invalid(f"its order of dimensions is {shown(order)}")
        self.steps = tuple(self.steps[axis] for axis in axes)

    def cast(self, codec: str, settings: Mapping[str, Any]) -> None:
        """Take elements of one dtype as others."""
        decoded, encoded = _CASTS[codec]
        before = self.number(settings.get(decoded), self.element)
        after = self.number(settings.get(encoded), before)
        is_finite = all(
            type(value) in (int, float) and math.isfinite(value)
            for value in (settings.get("scale", 1), settings.get("offset", 0))
        )
        if self.size is None or self.size % before or not is_finite or not settings.get("scale", 1):
            raise self.check.invalid(f"its codec is {shown({codec: settings})}")
        self.size = self.size // before * after

    def number(self, value: object, default: int | None) -> int:
        """Bytes of a number by the name of its dtype."""
        if value is None and default is not None:
            return default
        dtype = TextDtype.parse(value)
        name = value if isinstance(value, str) and value in NUMPY_DTYPES else dtype and dtype.name
        if not name:
            raise self.check.invalid(f"a codec has the dtype {shown(value)}")
        return ITEM_BYTES[name]
