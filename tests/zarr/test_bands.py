"""Arrays whose chunks lie across their rows, read from begin to end."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.arrays import bands
from ckptstore.arrays.bands import boxes
from ckptstore.documents.chunks import runs
from ckptstore.zarr import array as zarr_array
from ckptstore.zarr.array import ZarrArray
from ckptstore.zarr.store import Stored

if TYPE_CHECKING:
    from pathlib import Path


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A shape without zeros, and chunks of it, some longer than it."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple))
    return shape, tuple(draw(st.integers(1, length + 1)) for length in shape)


class Plain(zarr.storage.MemoryStore):
    """A store that is read as one of a checkpoint is."""

    bytes_max = None

    def stored(self, path: str) -> Stored:
        """All that there is."""
        assert path == "w"
        return Stored(len(self._store_dict), sum(map(len, self._store_dict.values())))


@given(grids(), st.sampled_from([1, 20, 300]), st.data())
def test_any_range_is_what_the_array_has_there(
    grid: tuple[tuple[int, ...], tuple[int, ...]], box_bytes: int, data: st.DataObject
) -> None:
    shape, chunk_shape = grid
    expected = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    store = Plain()
    zarr.create_array(store, name="w", data=expected, chunks=chunk_shape, compressors=None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bands, "BOX_BYTES", box_bytes)
        patched.setattr(bands, "BANDS_HELD", data.draw(st.integers(1, 3)))
        patched.setattr(bands, "BAND_BYTES_MAX", 0)
        found = ZarrArray(store, "w")  # type: ignore[arg-type]  # any store does
        for _ in range(3):
            start = data.draw(st.integers(0, expected.nbytes))
            stop = data.draw(st.integers(start, expected.nbytes))
            buffer = bytearray(stop - start)
            found.read_into(memoryview(buffer), start)
            assert bytes(buffer) == expected.tobytes()[start:stop]
        pieces = list(found.pieces())
    assert sum(size for _, size in pieces) == expected.nbytes
    assert [start for start, _ in pieces] == [
        0,
        *itertools.accumulate(size for _, size in pieces[:-1]),
    ]


@given(grids(), st.sampled_from([1, 20, 300]))
def test_boxes_are_whole_chunks_and_cover_the_band_once(
    grid: tuple[tuple[int, ...], tuple[int, ...]], box_bytes: int
) -> None:
    shape, chunk_shape = grid
    shape = (min(shape[0], chunk_shape[0]), *shape[1:])
    found = list(boxes(shape, chunk_shape, 2, box_bytes))
    counts = np.zeros(shape, int)
    flat = np.zeros(math.prod(shape), int)
    for box in found:
        place = tuple(slice(side.start, side.stop) for side in box)
        counts[place] += 1
        part = counts[place]
        assert part.size * 2 <= max(box_bytes, math.prod(chunk_shape) * 2)
        assert all(
            side.start % step == 0 and (side.stop % step == 0 or side.stop == length)
            for side, step, length in zip(box, chunk_shape, shape, strict=True)
        )
        for start, size in runs(shape, box):
            flat[start : start + size] += 1
    assert (counts == 1).all()
    assert (flat == 1).all()


def test_each_chunk_is_decoded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES_MAX", 1 << 10)
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    expected = np.random.default_rng(0).normal(size=(100, 900))
    with repo.session("main") as session:
        group = zarr.open_group(session.store, mode="w")
        group.create_array("w", data=expected, chunks=(50, 30))
        session.commit()
    reads: list[Any] = []
    whole = ZarrArray._read
    monkeypatch.setattr(ZarrArray, "_read", lambda *args: reads.append(args[1]) or whole(*args))
    monkeypatch.setattr(bands, "BOX_BYTES", 50 * 30 * 8)
    other = ckptstore.init(tmp_path / "other", chunk_size=64 << 10)
    other.commit(repo.checkout(lazy=True))
    assert len(reads) == len({str(read) for read in reads}) == 60
    np.testing.assert_array_equal(other.checkout()["w"], expected)


@pytest.mark.parametrize(("box_bytes", "at_once"), [(10**6, (8, 6)), (300, (2, 3))])
def test_a_shard_is_decoded_at_once_unless_it_is_large(
    monkeypatch: pytest.MonkeyPatch, box_bytes: int, at_once: tuple[int, ...]
) -> None:
    monkeypatch.setattr(zarr_array, "BOX_BYTES", box_bytes)
    monkeypatch.setattr(bands, "BOX_BYTES", box_bytes)
    store = Plain()
    expected = np.arange(13 * 9).reshape(13, 9)
    zarr.create_array(store, name="w", data=expected, chunks=(2, 3), shards=(8, 6))
    for band_bytes in (0, 10**6):
        monkeypatch.setattr(bands, "BAND_BYTES_MAX", band_bytes)
        found = ZarrArray(store, "w")  # type: ignore[arg-type]
        assert found.chunk_shape == at_once
        buffer = bytearray(expected.nbytes - 80)
        found.read_into(memoryview(buffer), 72)
        assert bytes(buffer) == expected.tobytes()[72:-8]


def test_arrays_that_were_read_long_ago_hold_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state has its arrays to the end; what they were decoded to need not be there as long."""
    monkeypatch.setattr(bands, "BAND_BYTES_MAX", 0)
    monkeypatch.setattr(bands, "HOLDERS_MAX", 4)
    store = Plain()
    expected = np.arange(36).reshape(6, 6)
    zarr.create_array(store, name="w", data=expected, chunks=(3, 3))
    found = [ZarrArray(store, "w") for _ in range(30)]  # type: ignore[arg-type]
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for array in found:
            buffer = bytearray(expected.nbytes)
            array.read_into(memoryview(buffer), 0)
            assert bytes(buffer) == expected.tobytes()
    assert len(os.listdir("/proc/self/fd")) <= before + 4 * 2


@pytest.mark.parametrize("band_bytes", [0, 10**6])
@pytest.mark.parametrize("given", [0, 7, 9, 100])
def test_a_box_of_another_size_than_it_must_have_is_an_error(
    monkeypatch: pytest.MonkeyPatch, band_bytes: int, given: int
) -> None:
    """Not a ValueError of memoryview, and no bytes of something else."""
    monkeypatch.setattr(bands, "BAND_BYTES_MAX", band_bytes)
    found = bands.Bands(
        "w", shape=(4, 2), chunk_shape=(4, 1), item_bytes=1, read=lambda _: memoryview(bytes(given))
    )
    with pytest.raises(ckptstore.CorruptError, match="w gave"):
        found.read_into(memoryview(bytearray(8)), 0)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 2)])
def test_chunks_of_length_zero_divide_nothing_by_zero(shape: tuple[int, int]) -> None:
    """Some writers give an empty array chunks of length 0."""
    size = math.prod(shape)
    found = bands.Bands(
        "w", shape=shape, chunk_shape=(0, 0), item_bytes=1, read=lambda _: memoryview(bytes(size))
    )
    assert sum(length for _, length in found.pieces()) == size
    found.read_into(memoryview(bytearray(size)), 0)


def test_a_disk_without_room_is_an_error_that_says_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES_MAX", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b", buffering=0))  # noqa: SIM115
    store = Plain()
    zarr.create_array(store, name="w", data=np.arange(10), chunks=(5,))
    found = ZarrArray(store, "w")  # type: ignore[arg-type]
    with pytest.raises(ckptstore.StorageError, match=r"no room .* to unpack w: .*TMPDIR"):
        found.read_into(memoryview(bytearray(80)), 0)
