"""Numpy arrays and other long texts in torch's pickles: read whole, within limits."""

from __future__ import annotations

import itertools
import os
import pickle
import random
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.arrays.lazy import LazyArray
from ckptstore.errors import InvalidInputError
from ckptstore.formats import read_file, write_file
from ckptstore.formats.torch import save as torch_save
from ckptstore.formats.torch import text as torch_text
from ckptstore.testing.strategies import ndarrays, plain_values, states, tensors
from tests.formats.test_torch_file import FORMS, pickled, save
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.open_files import open_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = 64  # bytes, in place of a thousand: more than any number or name has in these files


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A new name of a file each time it is asked."""
    folder = tmp_path_factory.mktemp("torch")
    return (folder / f"{number}.pt" for number in itertools.count())


@pytest.fixture(scope="module", autouse=True)
def _long() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch_text, "LONG_BYTES", LONG)
        patched.setattr(torch_text, "PIECE_BYTES", 37)
        yield


def few(array: np.ndarray) -> np.ndarray:
    """The first elements along each axis, whose text is read 40 bytes at a time here."""
    return array[(*(slice(40) for _ in array.shape), ...)]


ARRAYS = ndarrays().map(few)


def same(state: Any, path: Path) -> None:
    assert difference(state, committed(path)) is None


@pytest.mark.parametrize("form", FORMS)
@given(arrays=st.lists(ARRAYS, max_size=3), more=states(leaves=ARRAYS | tensors() | plain_values()))
def test_what_torch_wrote_comes_back(
    names: Iterator[Path], form: str, arrays: list[np.ndarray], more: Any
) -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"arrays": arrays, "more": more})
    state = repo.checkout()  # as it can be stored
    path = next(names)
    try:
        save(state, path, form)
    except (RuntimeError, AttributeError, ValueError, NotImplementedError):
        return  # what torch cannot write
    same(state, path)


@given(arrays=st.lists(ARRAYS, max_size=4), more=states(leaves=ARRAYS | tensors() | plain_values()))
def test_what_is_written_is_what_pickle_writes(
    names: Iterator[Path], arrays: list[np.ndarray], more: Any
) -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"arrays": arrays, "more": more})
    state = repo.checkout()
    path = next(names)
    write_file(repo.checkout(lazy=True), path)
    same(state, path)
    read = torch.load(path, weights_only=False)["arrays"]
    for array, found in zip(state["arrays"], read, strict=True):
        assert (found.dtype, found.shape, found.tobytes()) == (
            array.dtype,
            array.shape,
            array.tobytes(),
        )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "dtype", [">f4", ">c16", ">u2", "<i8", "|b1", "<f2", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("long", [LONG, 10**6], ids=["long", "short"])
def test_any_order_of_bytes_and_elements_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, dtype: Any, order: str, long: int
) -> None:
    monkeypatch.setattr(torch_text, "LONG_BYTES", long)
    raw = random.Random(0).randbytes(7 * 11 * 16)
    array = np.frombuffer(raw, np.uint8)[: 77 * np.dtype(dtype).itemsize].view(dtype)
    if array.dtype == bool:
        array = (np.frombuffer(raw, np.uint8)[:77] & 1).view(bool)
    array = np.asarray(array.reshape(7, 11), order=order)  # type: ignore[call-overload]
    path = save({"x": array, "again": array}, tmp_path / "x.pt", form)
    found = committed(path)["x"]
    expected = array.astype(array.dtype.newbyteorder("="))
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.array([{}] * 99, object), "objects"),
        (np.zeros(99, "f4,i8"), "other than of numbers"),
        (np.zeros(99, "M8[s]"), "other than of numbers"),
        (np.zeros(99, "U3"), "other than of numbers"),
        (np.zeros(99, np.longdouble), "other than of numbers"),
    ],
    ids=["objects", "fields", "dates", "texts", "long doubles"],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    path = save({"x": value}, tmp_path / "x.pt")
    with pytest.raises(InvalidInputError, match=said):
        read_file(path)


CHANGES = {
    "shape": (b"K\x64\x85", b"K\x65\x85", "do not fit its shape"),
    "dtype": (b"X\2\0\0\0u1", b"X\2\0\0\0u2", "do not fit its shape"),
    "characters": ("ÿ".encode(), "Āÿ".encode()[:2], "does not stand for bytes"),
    "encoding": ("ÿ".encode(), b"\xff\xff", "does not stand for bytes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_array_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    before, after, said = CHANGES[name]
    path = save(np.full(100, 255, np.uint8), tmp_path / "x.pt")

    def change(data: bytes) -> bytes:
        assert before in data
        return data.replace(before, after, 1)

    pickled(path, change)
    with pytest.raises(InvalidInputError, match=said):
        read_file(path)


def test_a_text_that_ends_behind_the_pickle_is_refused(tmp_path: Path) -> None:
    path = save({"x": "y" * 100}, tmp_path / "x.pt")
    pickled(path, lambda data: data.replace(b"X\x64\0\0\0", b"X\xff\xff\xff\x7f"))
    with pytest.raises(InvalidInputError, match="middle of a text"):
        read_file(path)


def test_a_name_that_stands_for_nothing_is_an_array_that_lies(tmp_path: Path) -> None:
    path = save(np.zeros(40, np.uint8), tmp_path / "x.pt")
    pickled(path, lambda data: data.replace(b"K(\x85", b"K)\x85"))
    with pytest.raises(InvalidInputError, match="do not fit its shape"):
        read_file(path)


def test_values_of_the_length_of_a_name_are_themselves(tmp_path: Path) -> None:
    state = {"s": "x" * 40, "b": b"y" * 40, "a": bytearray(b"z" * 40), "t" * 40: (("u" * 40,),)}
    same(state, save(state, tmp_path / "x.pt"))


def test_long_values_come_back_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"s": "ü\ud800" * 99, "b": bytes(range(256)), "a": bytearray(300), "t": ("v" * 99,)}
    path = save(state, tmp_path / "x.pt")
    same(state, path)
    monkeypatch.setattr(torch_text, "PICKLE_BYTES_MAX", 900)
    with pytest.raises(InvalidInputError, match="texts or bytes of more than 900 bytes"):
        read_file(path)


def test_a_long_key_comes_back_in_its_place(tmp_path: Path) -> None:
    """Up to what the path of an array may have."""
    state = {"x": {"a": torch.ones(1), "k" * 99: torch.ones(2), "\U0001f600" * 4000: 1, "b": 2}}
    path = save(state, tmp_path / "x.pt")
    same(state, path)
    assert list(committed(path)["x"]) == list(state["x"])
    with pytest.raises(InvalidInputError, match="more than 4096 characters"):
        committed(save({"k" * 5000: 1}, path))


def test_an_array_under_many_names_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.arange(50)
    path = save([array] * 5, tmp_path / "x.pt")
    monkeypatch.setattr(torch_text, "ARRAYS_BYTES_MAX", array.nbytes)
    same([array] * 5, path)


class Alias:
    """Pickles as an array whose bytes other arrays of the same pickle share."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        rebuild, arguments, (version, _, dtype, _, _) = np.empty(0, np.uint8).__reduce__()
        return rebuild, arguments, (version, (len(self.data),), dtype, False, self.data)


def test_many_arrays_of_one_text_take_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a few MB could otherwise make arrays of TB."""
    data = bytes(1000)
    path = save([Alias(data) for _ in range(20)], tmp_path / "x.pt")
    assert path.stat().st_size < 4000
    same([np.zeros(1000, np.uint8)] * 20, path)
    monkeypatch.setattr(torch_text, "ARRAYS_BYTES_MAX", 19_999)
    with pytest.raises(InvalidInputError, match="numpy arrays of more than 19999 bytes"):
        read_file(path)


def test_arrays_beyond_the_limit_are_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a": np.arange(100), "b": torch.arange(1000), "c": np.arange(50)}
    path = save(state, tmp_path / "x.pt")
    for limit, is_enough in ((1200, True), (1199, False)):
        monkeypatch.setattr(torch_text, "ARRAYS_BYTES_MAX", limit)
        monkeypatch.setattr(torch_save, "ARRAYS_BYTES_MAX", limit)
        if is_enough:
            same(state, path)
            write_file(state, tmp_path / "y.pt")
            continue
        with pytest.raises(InvalidInputError, match="numpy arrays of more than 1199 bytes"):
            read_file(path)
        with pytest.raises(InvalidInputError, match=r"1199 .* have 1200; the largest is 'a'"):
            write_file(state, tmp_path / "z.pt")
    assert sorted(os.listdir(tmp_path)) == ["x.pt", "y.pt"]


@pytest.mark.parametrize("order", ["C", "F"])
def test_one_array_under_two_names_stays_one(tmp_path: Path, order: Any) -> None:
    array = np.asarray(np.arange(50).reshape(5, 10), order=order)
    found = committed(save({"a": array, "b": array, "c": array.copy()}, tmp_path / "x.pt"))
    assert found["a"] is found["b"]
    assert found["a"] is not found["c"]


def test_no_file_is_open_for_any_number_of_arrays(tmp_path: Path) -> None:
    arrays = [np.asarray(np.arange(20) + number).reshape(4, 5) for number in range(30)]
    state = {"c": arrays, "f": [np.asfortranarray(array) for array in arrays]}
    path = save(state, tmp_path / "x.pt")
    found = read_file(path).state
    assert not open_files(tmp_path)
    assert bits_of(found) == bits_of(state)


class Zeros(LazyArray):
    """An array that no memory holds."""

    def __init__(self, size: int) -> None:
        self.kind, self.dtype, self.shape = "ndarray", "uint8", (size,)

    def pieces(self) -> Iterator[tuple[int, int]]:
        return iter([(0, 1)] if self.nbytes > 1 << 30 else [(0, self.nbytes)])

    def read_into(self, buffer: memoryview, start: int) -> None:
        assert start + len(buffer) <= self.nbytes
        buffer[:] = bytes(len(buffer))


def test_an_array_that_the_format_has_no_room_for_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"have 4294967396; the largest is 'big'"):
        write_file({"small": Zeros(100), "big": Zeros(1 << 32)}, tmp_path / "x.pt")
    assert not list(tmp_path.iterdir())
    write_file({"small": Zeros(100)}, tmp_path / "x.pt")
    assert pickle.PROTO in (tmp_path / "x.pt").read_bytes()


@pytest.mark.parametrize("name", ["key", "in the key"])
def test_an_array_as_a_key_is_refused(tmp_path: Path, name: str) -> None:
    """It cannot be the key of a dict in memory, but a pickle can say that it is one."""
    stand_in = AsPickled(np.zeros(3))
    torch.save({stand_in if name == "key" else (stand_in, 1): 1}, tmp_path / "x.pt")
    with pytest.raises(InvalidInputError, match="holds a numpy array as the key of a dict"):
        read_file(tmp_path / "x.pt")


class AsPickled:
    """Pickles as an array does, and can be a key."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __reduce__(self) -> Any:
        return self.array.__reduce__()
