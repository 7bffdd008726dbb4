"""Arrays in Fortran order: every range, and how much of the file is read for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.arrays import bands, strided
from ckptstore.arrays.file import ByteSource
from ckptstore.arrays.strided import FortranArray


class CountedBytes(ByteSource):
    """Bytes in memory, and how many of them were read."""

    def __init__(self, data: bytes) -> None:
        self.path, self.nbytes, self.bytes_read = Path("x"), len(data), 0
        self._data = data

    def read_into(self, buffer: memoryview, start: int) -> None:
        self.bytes_read += len(buffer)
        buffer[:] = self._data[start : start + len(buffer)]


def fortran(expected: np.ndarray, offset: int = 0) -> tuple[FortranArray, CountedBytes]:
    file = CountedBytes(bytes(offset) + expected.tobytes(order="F"))
    array = FortranArray(
        file, kind="ndarray", dtype=str(expected.dtype), shape=expected.shape, offset=offset
    )
    return array, file


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    st.sampled_from([1, 8, 100]),
    st.sampled_from([0, 60, 10_000]),
    st.data(),
)
def test_any_range_is_what_the_array_has_there(
    shape: tuple[int, ...], span_bytes: int, band_bytes: int, data: st.DataObject
) -> None:
    expected = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(strided, "SPAN_BYTES_MAX", span_bytes)
        patched.setattr(strided, "CHEAP_BYTES", span_bytes)
        patched.setattr(strided, "RUN_BYTES", span_bytes)
        patched.setattr(bands, "BAND_BYTES_MAX", band_bytes)
        array, _ = fortran(expected, offset=3)
        for _ in range(3):
            start = data.draw(st.integers(0, expected.nbytes))
            stop = data.draw(st.integers(start, expected.nbytes))
            buffer = bytearray(stop - start)
            array.read_into(memoryview(buffer), start)
            assert bytes(buffer) == expected.tobytes()[start:stop]
        assert sum(size for _, size in array.pieces()) == expected.nbytes


@pytest.mark.parametrize("shape", [(50, 32_000), (32_000, 50), (1265, 1265), (3, 40, 13_000)])
def test_no_shape_makes_a_read_of_all_of_it_quadratic(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All sizes are those of the library divided by 64, and so is the array."""
    monkeypatch.setattr(strided, "SPAN_BYTES_MAX", strided.SPAN_BYTES_MAX // 64)
    monkeypatch.setattr(strided, "CHEAP_BYTES", strided.CHEAP_BYTES // 64)
    monkeypatch.setattr(strided, "RUN_BYTES", strided.RUN_BYTES // 64)
    monkeypatch.setattr(bands, "BAND_BYTES_MAX", bands.BAND_BYTES_MAX // 64)
    expected = np.arange(np.prod(shape), dtype="f4").reshape(shape)
    array, file = fortran(expected)
    buffer, step = bytearray(expected.nbytes), (8 << 20) // 64
    for start in range(0, len(buffer), step):
        array.read_into(memoryview(buffer)[start : start + step], start)
    assert buffer == expected.tobytes()
    assert file.bytes_read <= 4 * expected.nbytes
