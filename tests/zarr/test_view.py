"""A checkpoint of a state, seen through zarr-python."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu
from zarr.core.sync import sync

import ckptstore
import ckptstore.retention
from ckptstore.zarr import CheckpointStore, contents
from ckptstore.zarr.store import span

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHUNK = 64 << 10
DTYPES = ["bool", "i1", "u2", "i4", "u8", "f2", "f4", "f8", "c8", "c16"]
SHAPES = (
    st.just(())
    | st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple)
    | st.sampled_from([(70_000,), (3, 40_000), (300, 200, 2), (65_537, 1), (5, 1, 30_000)])
)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    shape, dtype = draw(SHAPES), np.dtype(draw(st.sampled_from(DTYPES)))
    count = int(np.prod(shape, dtype=int))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype)
    return (
        (data.view("u1") % 2).view("?").reshape(shape) if dtype.kind == "b" else data.reshape(shape)
    )


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


NAMES = st.sampled_from(["a", "b/c", "d.e", "0", "zarr.json", "..", "__x", "c"])


@given(state=st.dictionaries(NAMES, arrays()), nested=st.booleans())
def test_every_array_reads_as_it_was_committed(
    state: dict[str, np.ndarray], nested: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repo = ckptstore.init(tmp_path_factory.mktemp("store") / "store", chunk_size=CHUNK)
    made = repo.commit({"in": [state, 1]} if nested else state)
    group = made.zarr()
    found = {
        path: array
        for path, array in group.members(max_depth=None)
        if isinstance(array, zarr.Array)
    }
    assert len(found) == len(state) == made.array_count
    prefix = "in/0/" if nested else ""
    for name, expected in state.items():
        path = {
            "b/c": "b%2Fc", "zarr.json": "%7Aarr.json", "..": "%2E.", "__x": "%5F_x"
        }.get(name, name)  # fmt: skip
        array = found[prefix + path]
        assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
        assert bits(array[...]) == bits(expected)
        assert array.metadata.dimension_names == tuple(f"{path}[{n}]" for n in range(expected.ndim))
        if expected.ndim and expected.shape[0] > 2:
            assert bits(array[1:-1]) == bits(expected[1:-1])


@pytest.fixture
def repo(tmp_path: Any) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    rng = np.random.default_rng(0)
    small = {f"s{n}": rng.normal(size=9) for n in range(5)}
    repo.commit(
        {"big": rng.normal(size=(1000, 100)), **small, "lr": 0.5},
        step=3,
        metrics={"w": -np.inf, "x": np.nan, "y": np.inf, "z": 1},
    )
    return repo


def test_the_root_tells_of_the_checkpoint(repo: ckptstore.Repository) -> None:
    made = repo.resolve("main")
    assert made.zarr().attrs.asdict() == {
        "id": made.id,
        "step": 3,
        "metrics": {"w": "-Infinity", "x": "NaN", "y": "Infinity", "z": 1},
        "message": "",
        "created": made.created.isoformat(),
    }


@pytest.mark.parametrize("limit", ["DOCUMENTS_VALUES_MAX", "CONSOLIDATED_BYTES_MAX"])
def test_too_many_documents_are_not_consolidated_and_still_read(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    whole = repo.resolve("main").zarr()
    assert whole.metadata.consolidated_metadata is not None
    monkeypatch.setattr(contents, limit, 10)
    group = repo.resolve("main").zarr()
    assert group.metadata.consolidated_metadata is None
    assert group.attrs.asdict() == whole.attrs.asdict()
    expected = dict(whole.members(max_depth=None))
    found = dict(group.members(max_depth=None))
    assert found.keys() == expected.keys()
    for path, array in found.items():
        if isinstance(array, zarr.Array):
            np.testing.assert_array_equal(array[...], expected[path][...])


def test_a_checkpoint_without_arrays_is_an_empty_group(repo: ckptstore.Repository) -> None:
    for state in ({"lr": 0.1}, [], 5):
        assert list(repo.commit(state).zarr().members()) == []


def test_a_part_of_an_array_reads_only_its_chunks(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    group = repo.resolve("main").zarr()
    reads.clear()
    _ = group["big"][100:110]
    assert reads == [81 * 800]  # rows of 800 bytes in 64 KiB
    reads.clear()
    _ = group["big"][75:90]
    assert reads == [81 * 800, 81 * 800]


def test_a_small_array_is_read_by_itself_and_many_are_read_at_once(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    group = repo.resolve("main").zarr()
    reads.clear()
    for name in ("s0", "s0", "s3", "s1", "s0"):
        _ = group[name][...]
    assert reads == [72, 5 * 72]


def test_only_so_many_bytes_are_held_of_what_is_read_in_part(
    repo: ckptstore.Repository, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "HELD_BYTES", 2 * 81 * 800)
    shown = CheckpointStore(repo.url)
    for chunk, is_read in ((0, True), (1, True), (0, False), (2, True), (0, False), (1, True)):
        reads.clear()
        shown.get_sync(f"big/c/{chunk}/0", byte_range=RangeByteRequest(0, 8))
        assert reads == [81 * 800] * is_read, chunk


def test_an_object_that_is_listed_with_another_size_is_never_handed_out(
    repo: ckptstore.Repository,
) -> None:
    held = contents.CachedObjects(repo._objects)
    size = 81 * 800
    digest = next(digest for digest, item in repo._objects.list() if item.size == size)
    assert digest is not None
    assert len(held.whole(digest, size)) == size
    with pytest.raises(ckptstore.CorruptError):
        held.whole(digest, size - 1)


def test_what_a_reader_does_to_a_value_does_not_change_what_the_next_one_reads(
    repo: ckptstore.Repository,
) -> None:
    store = CheckpointStore(repo.url)
    for _ in range(2):
        for name in ("s0/c/0", "s1/c/0"):  # by itself, and with the rest of its bundle
            value = store.get_sync(name)
            assert value is not None
            assert value.to_bytes() == repo.checkout("main")[name[:2]].tobytes()
            with suppress(ValueError):  # it may be read-only
                value.as_numpy_array()[...] = 0
    part = RangeByteRequest(0, 16)
    value = store.get_sync("big/c/0/0", byte_range=part)
    with suppress(ValueError):
        value.as_numpy_array()[...] = 0
    again = store.get_sync("big/c/0/0", byte_range=part)
    assert again is not None
    assert again.to_bytes() == repo.checkout("main")["big"].tobytes()[:16]


def test_it_is_read_only_and_never_changes(repo: ckptstore.Repository) -> None:
    group = repo.resolve("main").zarr()
    with pytest.raises(ValueError, match="read-only"):
        group["big"][0] = 1
    with pytest.raises(ValueError, match="read-only"):
        del group["big"]
    before = group["big"][0].tolist()
    repo.commit({"big": np.zeros((1000, 100))})
    assert group["big"][0].tolist() == before
    assert group.store == CheckpointStore(repo.url, "main~1")


@given(
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(0, 300),
)
def test_parts_of_values_are_those_of_the_whole(start: int, length: int, size: int) -> None:
    data = bytes(n % 251 for n in range(size))
    low, high = span(RangeByteRequest(start, start + length), size)
    assert data[low:high] == data[start : start + length]
    low, high = span(OffsetByteRequest(start), size)
    assert data[low:high] == data[start:]
    low, high = span(SuffixByteRequest(start), size)
    assert data[low:high] == (data[-start:] if start else b"")


def test_a_part_behind_the_end_is_empty(repo: ckptstore.Repository) -> None:
    assert span(RangeByteRequest(10, 20), 5) == (5, 5)
    assert span(OffsetByteRequest(10), 5) == (5, 5)
    with repo.session("main") as session:
        raw = bytes(range(250)) * 600
        asyncio.run(session.store.set("raw", cpu.Buffer.from_bytes(raw)))
        for part in (RangeByteRequest(200_000, 300_000), OffsetByteRequest(200_000)):
            found = asyncio.run(session.store.get("raw", cpu.buffer_prototype, part))
            assert found is not None
            assert found.to_bytes() == b""


def test_parts_of_chunks_and_documents_are_those_of_the_whole(repo: ckptstore.Repository) -> None:
    store = CheckpointStore(repo.url)

    async def check() -> None:
        async for key in store.list():
            whole = store.get_sync(key)
            assert whole is not None
            data = whole.to_bytes()
            assert len(data) == await store.getsize(key)
            for part in (
                RangeByteRequest(3, 9),
                OffsetByteRequest(len(data) - 5),
                SuffixByteRequest(7),
            ):
                found = store.get_sync(key, byte_range=part)
                assert found is not None
                low, high = span(part, len(data))
                assert found.to_bytes() == data[low:high]

    asyncio.run(check())


def test_damage_is_an_error_and_never_data(repo: ckptstore.Repository, tmp_path: Any) -> None:
    group = repo.resolve("main").zarr()
    for path in (tmp_path / "store" / "objects").rglob("*"):
        if path.is_file() and path.stat().st_size > 60_000:
            data = bytearray(path.read_bytes())
            data[5] ^= 1
            path.unlink()
            path.write_bytes(data)
    with pytest.raises(ckptstore.CorruptError, match="damaged"):
        _ = group["big"][0]


PARTS = st.sampled_from(["a", "a-", "a0", "ab", "b", "~"])
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(keys=st.sets(KEYS, max_size=8), at=KEYS | st.just(""))
def test_keys_are_listed_by_folder_and_by_beginning_each_once(keys: set[str], at: str) -> None:
    """Names that begin alike are different folders; a key may have others below it."""
    repo = ckptstore.init(f"memory://{uuid.uuid4().hex}")
    with repo.session() as session:
        for key in keys:
            session.store.set_sync(key, cpu.Buffer.from_bytes(bytes(len(key))))
        session.commit()
        below = {key for key in keys if key.startswith(f"{at}/") or not at}
        names = sorted({key[len(at) :].strip("/").split("/")[0] for key in below})
        for shown in (session.store, CheckpointStore(repo.url)):
            assert sync(collected(shown.list())) == sorted(keys)
            for folder in (at, f"{at}/"):
                assert sorted(sync(collected(shown.list_dir(folder)))) == names
                assert sync(shown.getsize_prefix(folder)) == sum(map(len, below))
            begins = [key for key in sorted(keys) if key.startswith(at)]
            assert sync(collected(shown.list_prefix(at))) == begins
        sync(session.store.delete_dir(at))
        assert sync(collected(session.store.list())) == sorted(keys - below)


async def collected(found: AsyncIterator[str]) -> list[str]:
    return [key async for key in found]


def test_an_expired_checkpoint_says_so(repo: ckptstore.Repository) -> None:
    store = CheckpointStore(repo.url)
    group = zarr.open_group(store, mode="r")
    repo.commit({"other": np.zeros(5)})
    repo.gc(ckptstore.retention.MaxToKeep(1), grace=0)
    with pytest.raises(ckptstore.ExpiredError):
        _ = group["big"][0]
    with pytest.raises(ckptstore.ExpiredError):
        CheckpointStore(repo.url, "main~1")
