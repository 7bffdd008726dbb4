"""Encoded chunks: honest ones of every codec are read, damaged ones end nothing."""

from __future__ import annotations

import gzip
import subprocess
import sys
import warnings
import zlib
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import numcodecs as codecs

import ckptstore
from ckptstore.arrays import memory_limit
from ckptstore.errors import CkptStoreError, CorruptError, InvalidInputError
from ckptstore.zarr import allow_codec, encoding
from ckptstore.zarr.encoding import Encoding, Layer
from ckptstore.zarr.frames import PIECE_BYTES, Frame
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = np.arange(600.0).reshape(30, 20)
COMPRESSORS: dict[str, Any] = {
    "blosc": numcodecs.Blosc(cname="lz4", shuffle=numcodecs.Blosc.BITSHUFFLE),
    "blosclz": numcodecs.Blosc(cname="blosclz", blocksize=256),
    "bz2": numcodecs.BZ2(),
    "gzip": numcodecs.GZip(),
    "lz4": numcodecs.LZ4(),
    "lzma": numcodecs.LZMA(),
    "zlib": numcodecs.Zlib(),
    "zstd": numcodecs.Zstd(),
    "zstd with a checksum": numcodecs.Zstd(checksum=True),
}
FILTERS: dict[str, list[Any]] = {
    "delta": [numcodecs.Delta("<f8", astype="<i4")],
    "scale": [numcodecs.FixedScaleOffset(offset=0, scale=1, dtype="<f8", astype="<i2")],
    "quantize": [numcodecs.Quantize(digits=3, dtype="<f8", astype="<f4")],
    "cast": [numcodecs.AsType("<f4", "<f8")],
    "shuffle": [numcodecs.Shuffle(8)],
    "checksums": [numcodecs.CRC32(), numcodecs.Adler32(), numcodecs.Fletcher32()],
    "none": [],
}
DTYPES: dict[str, Any] = {
    "records": np.array([(1, 2.0), (3, 4.0)], [("a", "<i4"), ("b", "<f8")]),
    "texts": np.array(["a", "bc"], "<U2"),
    "bytes": np.array([b"a", b"bc"], "S2"),
    "dates": np.array(["2026-01-01", "2026-01-02"], "M8[25us]"),
    "big-endian": np.arange(2, dtype=">f4"),
    "strings": np.array(["a", "b" * 100], np.dtypes.StringDType()),
    "no elements": np.zeros((0, 3)),
}


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python: of dtypes and codecs without a specification
        yield


def stored(**options: Any) -> ckptstore.Repository:
    """A repository of one Zarr array."""
    repo = ckptstore.init("memory://")
    with repo.session("main") as session:
        zarr.create_array(session.store, name="x", **options)
        session.commit()
    return repo


def read(repo: ckptstore.Repository) -> Any:
    """The array, through this library and through zarr-python on the store."""
    value = repo.resolve("main").array("x")[...]
    np.testing.assert_array_equal(repo.resolve("main").zarr()["x"][...], value)
    return value


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_codec_of_version_2_is_read(compressor: str, filters: str) -> None:
    repo = stored(
        data=DATA,
        chunks=(7, 9),
        zarr_format=2,
        filters=FILTERS[filters] or None,
        compressors=COMPRESSORS[compressor],
    )
    np.testing.assert_array_equal(read(repo), DATA)


V3: dict[str, dict[str, Any]] = {
    "defaults": {},
    "none": {"compressors": None},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4")},
    "zstd and crc32c": {"compressors": [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]},
    "shards": {"shards": (30, 20), "chunks": (10, 5)},
    "plain shards": {"shards": (15, 20), "chunks": (5, 20), "compressors": None},
    "transposed": {"filters": zarr.codecs.TransposeCodec(order=(1, 0))},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "numcodecs": {"filters": ("Delta", {"dtype": "<f8"}), "compressors": ("LZ4", {})},
}


def _is_named(value: Any) -> bool:
    """Whether it is a codec of numcodecs, which warns when it is made."""
    return isinstance(value, tuple) and isinstance(value[0], str)


@pytest.mark.parametrize("name", V3)
def test_every_codec_of_version_3_is_read(name: str) -> None:
    options = {
        key: getattr(codecs, value[0])(**value[1]) if _is_named(value) else value
        for key, value in V3[name].items()
    }
    repo = stored(data=DATA, **{"chunks": (7, 9), **options})
    np.testing.assert_array_equal(read(repo), DATA)
    np.testing.assert_array_equal(repo.resolve("main").array("x")[12:14, 3], DATA[12:14, 3])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", DTYPES)
def test_every_known_dtype_is_read(name: str, zarr_format: Any) -> None:
    repo = stored(data=DTYPES[name], zarr_format=zarr_format)
    np.testing.assert_array_equal(read(repo), DTYPES[name])


def test_bits_are_packed_and_read() -> None:
    data = np.arange(100) % 3 == 0
    repo = stored(data=data, zarr_format=2, filters=[numcodecs.PackBits()])
    np.testing.assert_array_equal(read(repo), data)


def test_what_takes_much_more_than_is_stored_needs_to_be_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_limit, "UNPACKED_BYTES_FREE", 100_000)
    repo = stored(shape=(1 << 20,), dtype="u1", chunks=(1 << 20,), fill_value=0)
    store = ckptstore.zarr.CheckpointStore(repo.url)
    assert zarr.open_array(store, path="x")[5] == 0  # absent chunks cost nothing
    for act in (repo.checkout, lambda: repo.checkout(lazy=True)["x"][...]):
        with pytest.raises(InvalidInputError, match=r"take 1,048,576 bytes.*bytes_max=1048576"):
            act()
    assert not repo.checkout(bytes_max=1 << 20)["x"].any()
    assert not repo.resolve("main").array("x", bytes_max=1 << 20)[...].any()
    with repo.session("main") as session:
        zarr.open_array(session.store, path="x").set_basic_selection(3, 1)
        session.commit()
    store = ckptstore.zarr.CheckpointStore(repo.url)
    with pytest.raises(InvalidInputError, match=r"'x/c/0' would take 1,048,576"):
        zarr.open_array(store, path="x")[5]
    store = ckptstore.zarr.CheckpointStore(repo.url, bytes_max=1 << 20)
    assert zarr.open_array(store, path="x")[3] == 1


def test_a_program_can_allow_a_codec_but_none_of_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_allowed", set())
    document = {"shape": [2], "chunks": [2], "dtype": "<f8", "compressor": {"id": "mine"}}
    with pytest.raises(InvalidInputError, match=r"'x' has the codec 'mine'.*allow_codec"):
        Encoding.of(document, name="x", is_v2=True)
    allow_codec("mine")
    known = Encoding.of(document, name="x", is_v2=True)
    Frame("x/0", memoryview(b"anything"), None).check(known)
    with pytest.raises(InvalidInputError, match="pickle"):
        allow_codec("Pickle")


# In a process of its own: what gets past the check may end it. "rounds codec" of damaged frames,
# of which those that pass are decoded.
DAMAGE = """
import random, sys
import numpy as np
from ckptstore.errors import CkptStoreError
from ckptstore.zarr.encoding import Encoding, Layer
from ckptstore.zarr.frames import PIECE_BYTES, Frame
from tests.zarr.test_frames import COMPRESSORS
rounds, name = int(sys.argv[1]), sys.argv[2]
codec, drawn, passed = COMPRESSORS[name], random.Random(name), 0
values = np.random.default_rng(0).integers(0, 9, 500).astype("<f8")
frame = bytes(codec.encode(values))
document = {"shape": [500], "chunks": [500], "dtype": "<f8", "compressor": codec.get_config()}
known = Encoding.of(document, name="x", is_v2=True)
Frame("x/0", memoryview(frame)).check(known)
for _ in range(rounds):
    data = bytearray(frame)
    for _ in range(drawn.choice([1, 1, 2, 8])):
        at = drawn.randrange(min(len(data), drawn.choice([32, 1 << 20])))
        data[at] = drawn.choice([0, 1, 127, 128, 255, data[at] ^ 1 << drawn.randrange(8)])
    if drawn.random() < 0.2:
        del data[drawn.randrange(len(data)) :]
    try:
        Frame("x/0", memoryview(bytes(data))).check(known)
    except CkptStoreError:
        continue
    passed += 1
    try:
        codec.decode(bytes(data))
    except Exception:
        pass
print(passed)
"""


@pytest.mark.hostile
@pytest.mark.parametrize("name", COMPRESSORS)
def test_damaged_frames_end_no_process(name: str) -> None:
    command = [sys.executable, "-c", DAMAGE, "300", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) < 300


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 20, bytes(100)])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_no_frame_at_all_is_an_error_of_ours(name: str, data: bytes) -> None:
    config = COMPRESSORS[name].get_config()
    document = {"shape": [50], "chunks": [50], "dtype": "<f8", "compressor": config}
    with pytest.raises(CkptStoreError, match="'x/0'"):
        Frame("x/0", memoryview(data)).check(Encoding.of(document, name="x", is_v2=True))


@pytest.mark.parametrize("place", [4, 8, 12], ids=["unpacked", "block", "packed"])
def test_a_header_of_blosc_with_another_size_is_refused(place: int) -> None:
    """C-Blosc reads as far as its header states, even beyond the frame."""
    config = COMPRESSORS["blosc"].get_config()
    document = {"shape": [30, 20], "chunks": [30, 20], "dtype": "<f8", "compressor": config}
    known = Encoding.of(document, name="x", is_v2=True)
    frame = bytearray(COMPRESSORS["blosc"].encode(DATA))
    Frame("x/0", memoryview(frame)).check(known)
    frame[place : place + 4] = (DATA.nbytes + 1).to_bytes(4, "little")
    with pytest.raises(CkptStoreError, match="'x/0' cannot be decoded"):
        Frame("x/0", memoryview(frame)).check(known)


STREAMS = {"gzip": gzip.compress, "zlib": zlib.compress}
BLOCK_BYTES = 10_000  # less than what Deflate stores in a block


def unpacked_once(codec: str, packed: bytes, size: int) -> bytes:
    """The frame that a decoder of this library gets."""
    encoding = Encoding(
        chunk_shape=(size,), chunk_bytes=size, layers=(Layer(codec=codec, size=size),)
    )
    return bytes(Frame("c/0", memoryview(packed)).unpacked_once(encoding))


@given(data=st.binary(max_size=300_000), codec=st.sampled_from(sorted(STREAMS)))
def test_a_chunk_that_was_unpacked_to_be_checked_stays_unpacked(data: bytes, codec: str) -> None:
    frame = unpacked_once(codec, STREAMS[codec](data), len(data))
    assert bytes(numcodecs.get_codec({"id": codec}).decode(frame)) == data
    assert data[:BLOCK_BYTES] in frame


@pytest.mark.parametrize(
    ("codec", "packed", "reason"),
    [
        ("gzip", gzip.compress(DATA.tobytes())[:-1], "is cut off"),
        ("zlib", zlib.compress(DATA.tobytes())[:-1], "is cut off"),
        ("gzip", gzip.compress(DATA.tobytes()[:-1]), "unpacks to"),
        ("gzip", gzip.compress(DATA.tobytes() * 2), "unpacks to"),
        ("gzip", gzip.compress(DATA.tobytes())[:-8] + bytes(8), "is no gzip"),
        ("gzip", gzip.compress(DATA.tobytes()) + b"x", "is no gzip"),
        ("zlib", zlib.compress(DATA.tobytes()) + zlib.compress(b""), "too many streams"),
    ],
    ids=["short", "short zlib", "too little", "too much", "checksum", "behind", "two of zlib"],
)
def test_what_a_decoder_would_refuse_is_not_repaired(
    codec: str, packed: bytes, reason: str
) -> None:
    with pytest.raises(CorruptError, match=reason):
        unpacked_once(codec, packed, DATA.nbytes)


@pytest.mark.parametrize("codec", STREAMS)
def test_no_more_is_unpacked_than_a_chunk_has(codec: str) -> None:
    with pytest.raises(CorruptError, match=f"unpacks to {PIECE_BYTES} bytes instead of 100"):
        unpacked_once(codec, STREAMS[codec](bytes(16 * PIECE_BYTES)), 100)


def test_members_of_gzip_follow_each_other() -> None:
    halves = DATA.tobytes()[:1000], DATA.tobytes()[1000:]
    packed = b"".join(map(gzip.compress, halves)) + bytes(3)
    frame = unpacked_once("gzip", packed, DATA.nbytes)
    assert gzip.decompress(frame) == DATA.tobytes()


@pytest.mark.parametrize("shards", [None, (30, 20)])
def test_a_user_gets_the_bytes_that_are_stored_and_an_array_reads_unpacked_ones(
    shards: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = stored(data=DATA, chunks=(10, 5), shards=shards, compressors=zarr.codecs.GzipCodec())
    given: list[int] = []
    decode = numcodecs.GZip.decode

    def counted(self: Any, buffer: Any, out: Any = None) -> Any:
        given.append(len(buffer))
        return decode(self, buffer, out)

    monkeypatch.setattr(numcodecs.GZip, "decode", counted)
    part = repo.resolve("main").array("x")[10:20, 5:10]
    np.testing.assert_array_equal(part, DATA[10:20, 5:10])
    np.testing.assert_array_equal(repo.resolve("main").zarr()["x"][10:20, 5:10], part)
    unpacked, packed = given
    assert packed < part.nbytes < unpacked
