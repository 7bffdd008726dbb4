"""Zarr arrays that make a decoder end the process, run for ever or take all memory.

Their digests are right, as if an older version had committed them: reading must refuse them.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np

from ckptstore.formats import write_file
from tests.helpers.hostile.cases import READING
from tests.helpers.hostile.repositories.zarr_nodes import document, told, v2_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.helpers.hostile.cases import Case, World

BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
BOMB = bytes(192 << 20)
CHUNK = np.arange(2, dtype="<f8").tobytes()  # what an honest chunk of `v2_document` decodes to

# numpy.dtype ends the process at the first ones, evaluates others as Python, and believes the rest.
DTYPES: tuple[Any, ...] = (
    "<M8[D/0]",
    "<m8[7/0s]",
    "<M8[99999999999D]",
    "<M8[D",
    ",f8",
    "(1,f8",
    "<f8,<f8",
    "(1+1,)f8",
    "(9**9**9,)f8",
    "(" * 500,
    "|V99999999999",
    "|S2147483647",
    "<U99999999",
    "|O",
    "<c32",
    "<f16",
    "float64",
    "|T16",
    "",
    5,
    None,
    {"a": 1},
    [],
    [["a", "<f8"], ["b", "|O"]],
    [["a", [["b", [["c", [["d", "<f8"]]]]]]]],
    [["a", "<f8"]] * 1000,
    [["a", ",f8"]],
)
DATA_TYPES: tuple[Any, ...] = (
    {"name": "numpy.datetime64", "configuration": {"unit": "s", "scale_factor": 0}},
    {"name": "numpy.datetime64", "configuration": {"unit": "D/0", "scale_factor": 1}},
    {"name": "numpy.timedelta64", "configuration": {"unit": "s", "scale_factor": 1 << 40}},
    {"name": "fixed_length_utf32", "configuration": {"length_bytes": 1 << 40}},
    {"name": "null_terminated_bytes", "configuration": {"length_bytes": 1 << 31}},
    {"name": "raw_bytes", "configuration": {"length_bytes": -1}},
    {"name": "structured", "configuration": {"fields": [["a", "float64"]] * 10_000}},
    "r99999999",
    "string",
    "variable_length_bytes",
)


def _v2(story: str, data: bytes = CHUNK, /, **fields: Any) -> Case:
    return _with_export(
        told(
            story,
            v2_document(**fields),
            key=".zarray",
            chunks={"0": data},
            refused=(READING, "array"),
        )
    )


def _v3(story: str, data: bytes = bytes(8), /, **fields: Any) -> Case:
    return _with_export(
        told(story, document(**fields), chunks={"c/0": data}, refused=(READING, "array"))
    )


def _export(world: World) -> object:
    return write_file(world.repo.checkout(lazy=True), world.store / "tmp" / "out.pt")


def _with_export(case: Case) -> Case:
    return replace(case, calls={**case.calls, "export": _export}, refused=(*case.refused, "export"))


def _dtypes() -> Iterator[Case]:
    for dtype in DTYPES:
        yield _v2(f"of version 2 and dtype {str(dtype)[:40]!r}", dtype=dtype, fill_value=None)
    for dtype in DATA_TYPES:
        yield _v3(f"of data type {str(dtype)[:90]!r}", data_type=dtype, fill_value=0)


FILTERS: dict[str, dict[str, Any]] = {
    "a delta to a divided date": {"id": "delta", "dtype": "<M8[D/0]", "astype": "<f8"},
    "a delta from a divided date": {"id": "delta", "dtype": "<f8", "astype": "<M8[D/0]"},
    "a scale of an evaluated dtype": {
        "id": "fixedscaleoffset",
        "scale": 1,
        "offset": 0,
        "dtype": ",f8",
    },
    "a scale of 0": {"id": "fixedscaleoffset", "scale": 0, "offset": 0, "dtype": "<f8"},
    "a cast of texts": {"id": "astype", "encode_dtype": "<U9", "decode_dtype": "<f8"},
    "a quantization of a divided date": {"id": "quantize", "digits": 1, "dtype": "<M8[D/0]"},
    "a codec that is none": {"id": "evil"},
    "a codec without a name": {"level": 1},
    "categories of objects": {"id": "categorize", "labels": ["a"], "dtype": "|O"},
    "JSON of objects": {"id": "json2"},
    "raw LZMA that claims a dictionary": {
        "id": "lzma",
        "format": 3,
        "filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 31}],
    },
}


def _shards(**fields: Any) -> dict[str, Any]:
    settings = {"chunk_shape": [1], "codecs": [BYTES], "index_codecs": [BYTES], **fields}
    return {"name": "sharding_indexed", "configuration": {"index_location": "end", **settings}}


def _index(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def _grid(*steps: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": list(steps)}}


def _nested(depth: int) -> dict[str, Any]:
    codec: dict[str, Any] = BYTES
    for _ in range(depth):
        codec = _shards(codecs=[codec], chunk_shape=[2])
    return codec


def _documents() -> Iterator[Case]:
    for name, codec in FILTERS.items():
        yield _v2(f"with {name}", filters=[codec])
    yield _v2("whose filters are a text", filters="delta")
    yield _v2("that is compressed twice", filters=[{"id": "zlib"}], compressor={"id": "zstd"})
    yield _v3("whose chunks are of length 0", chunk_grid=_grid(0))
    yield _v3("in 2^62 times 2^62 chunks", shape=[1 << 62] * 2, chunk_grid=_grid(1, 1))
    yield _v3("of 8 GB in one absent chunk", shape=[1 << 31], chunk_grid=_grid(1 << 31))
    yield _v3("of 4 MB in absent chunks of 4 bytes", shape=[1 << 20], chunk_grid=_grid(1))
    yield _v3(
        "whose dimensions are transposed to none",
        codecs=[{"name": "transpose", "configuration": {"order": [5]}}, BYTES],
    )
    yield _v3(
        "with a cast from divided dates",
        codecs=[
            {
                "name": "numcodecs.astype",
                "configuration": {"encode_dtype": "<M8[D/0]", "decode_dtype": "<f4"},
            },
            BYTES,
        ],
    )
    yield _v3("of shards nested 60 times", codecs=[_nested(60)])
    yield _v3("of shards in chunks of length 0", codecs=[_shards(chunk_shape=[0])])
    yield _v3(
        "of shards whose index has 16 GB",
        shape=[1 << 50],
        chunk_grid=_grid(1 << 50),
        codecs=[_shards(chunk_shape=[1 << 20])],
    )
    yield _v3("of shards whose index is a bomb", codecs=[_shards(index_codecs=[BYTES, ZSTD])])
    yield _v3(
        "of a shard whose chunks begin beyond it",
        _index((1 << 63), 4, 0, 4),
        codecs=[_shards()],
    )
    yield _v3(
        "of a shard whose chunks wrap around",
        _index((1 << 64) - 2, 6, 0, 4),
        codecs=[_shards()],
    )
    yield _v3(
        "of a shard of a bomb",
        ZSTD_BOMB + _index(0, len(ZSTD_BOMB), (1 << 64) - 1, (1 << 64) - 1),
        codecs=[_shards(codecs=[BYTES, ZSTD])],
    )


ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
ZSTD_BOMB = bytes(numcodecs.Zstd().encode(BOMB))
GZIP_BOMB = gzip.compress(BOMB, 1)


def _blosc(**fields: int) -> bytes:
    frame = bytearray(numcodecs.Blosc(cname="zstd").encode(np.zeros(1000)))
    for name, value in fields.items():
        at = {"size": 4, "block": 8, "packed": 12}[name]
        frame[at : at + 4] = value.to_bytes(4, "little")
    return bytes(frame)


# A damaged frame with which C-Blosc reads far beyond its end.
BLOSC_72 = bytes.fromhex(
    "0201317ae908f0000100f000000046000000140000002e000000ff141e1f20212223242526450000002b2c2d2e2f30"
    "3132333475363738393a3b00ff"
)
ZSTD_ENDLESS = (
    b"\x28\xb5\x2f\xfd"
    + bytes([0, 0x58])
    + b"".join((size << 3 | 2).to_bytes(3, "little") + b"\0" for size in [128 << 10] * 20_000)
)

FRAMES: dict[str, tuple[str, bytes]] = {
    "72 damaged bytes of Blosc": ("blosc", BLOSC_72),
    "Blosc that claims 2 GB": ("blosc", _blosc(size=(1 << 31) - 17)),
    "Blosc that is longer than its bytes": ("blosc", _blosc(packed=1 << 24)),
    "Blosc in blocks larger than it": ("blosc", _blosc(block=1 << 24)),
    "Blosc in blocks of 0": ("blosc", _blosc(block=0)),
    "half a header of Blosc": ("blosc", _blosc()[:9]),
    "a bomb of Zstandard": ("zstd", ZSTD_BOMB),
    "two frames of Zstandard": ("zstd", bytes(numcodecs.Zstd().encode(CHUNK)) + ZSTD_BOMB),
    "Zstandard that states no size and never ends": ("zstd", ZSTD_ENDLESS),
    "Zstandard that is cut off": ("zstd", bytes(numcodecs.Zstd().encode(CHUNK))[:-1]),
    "a bomb of gzip": ("gzip", GZIP_BOMB),
    "gzip after gzip": ("gzip", gzip.compress(CHUNK) + GZIP_BOMB),
    "a bomb of zlib": ("zlib", zlib.compress(BOMB, 1)),
    "a bomb of bz2": ("bz2", bz2.compress(BOMB[: 64 << 20])),
    "a bomb of LZMA": ("lzma", lzma.compress(BOMB[: 64 << 20], preset=0)),
    "LZ4 that claims 2 GB": ("lz4", ((1 << 31) - 1).to_bytes(4, "little") + bytes(20)),
    "a bomb of LZ4": ("lz4", bytes(numcodecs.LZ4().encode(BOMB))),
    "LZ4 of nothing": ("lz4", b""),
}


def _frames() -> Iterator[Case]:
    for name, (codec, data) in FRAMES.items():
        yield _v2(f"whose chunk is {name}", data, compressor={"id": codec})
    texts = {"dtype": "|O", "fill_value": "", "filters": [{"id": "vlen-utf8"}]}
    yield _v2("of texts that claim 2^31", struct.pack("<II", (1 << 31) - 1, 1 << 31), **texts)
    yield _v2("of a bomb of texts", GZIP_BOMB, compressor={"id": "gzip"}, **texts)
    yield _v2("with a checksum of 2 bytes", b"ab", filters=[{"id": "crc32"}])


CASES = (*_dtypes(), *_documents(), *_frames())
