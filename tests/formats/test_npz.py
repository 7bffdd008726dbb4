""".npz and .npy: written byte for byte as numpy does; faults of a file are reported."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import tempfile
import warnings
import zipfile
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.arrays import strided
from ckptstore.commit.flatten import flatten
from ckptstore.documents.dtypes import NUMPY_DTYPES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import read_file, write_file, zip_members
from ckptstore.testing.strategies import ndarrays
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NAMES = st.text(max_size=6) | st.sampled_from(["a", "b.npy", "a/b", "é", "..", "%2F", "file"])


def is_known(array: Any) -> bool:
    return array.dtype.name in NUMPY_DTYPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("npz")


def savez(path: Path, arrays: dict[str, Any], **options: Any) -> None:
    """What numpy.savez does, for names that are no names of arguments too."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=True)


@given(st.dictionaries(NAMES, ndarrays().filter(is_known), max_size=6))
def test_what_is_written_is_what_numpy_writes(folder: Path, state: dict[str, Any]) -> None:
    path = folder / "ours.npz"
    write_file(state, path, overwrite=True)
    paths = list(flatten(state).arrays)
    arrays = [np.ascontiguousarray(array).reshape(array.shape) for array in state.values()]
    savez(folder / "theirs.npz", dict(zip(paths, arrays, strict=True)))
    assert path.read_bytes() == (folder / "theirs.npz").read_bytes()
    with np.load(path) as found:
        assert sorted(found) == sorted(paths)


@given(
    st.dictionaries(st.text("ab._0", min_size=1), ndarrays().filter(is_known), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
)
def test_what_numpy_wrote_comes_back_bit_for_bit(
    folder: Path, state: dict[str, Any], compression: int
) -> None:
    """Also of arrays in Fortran order, which keep it."""
    path = folder / "theirs.npz"
    savez(path, state, compression=compression)
    found = committed(path)
    assert difference(state, found) is None
    assert all(array.flags.forc and array.flags.writeable for array in found.values())


@given(ndarrays().filter(is_known))
def test_an_npy_is_one_array(folder: Path, array: Any) -> None:
    path = folder / "x.npy"
    np.save(path, array)
    assert difference(committed(path), array) is None
    write_file({"model": array}, path, overwrite=True)
    expected = io.BytesIO()
    np.save(expected, np.ascontiguousarray(array).reshape(array.shape))
    assert path.read_bytes() == expected.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_array_in_fortran_order_is_gathered_from_many_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None]
) -> None:
    monkeypatch.setattr(strided, "SPAN_BYTES_MAX", 1000)
    monkeypatch.setattr(strided, "CHEAP_BYTES", 100)
    array = np.arange(20 * 30 * 7, dtype="i2").reshape(20, 30, 7)
    save(tmp_path / "x.npz", w=np.asfortranarray(array), long=np.asfortranarray(array[0]))
    found = committed(tmp_path / "x.npz")
    assert difference(found, {"w": array, "long": array[0]}) is None


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_two_files_are_open_for_any_number_of_members(
    tmp_path: Path, save: Callable[..., None]
) -> None:
    """Its own, and one for everything that had to be unpacked."""
    state = {f"w{number}": np.arange(12.0).reshape(3, 4) + number for number in range(30)}
    others = {f"f{name}": np.asfortranarray(array) for name, array in state.items()}
    save(tmp_path / "x.npz", **state, **others)
    before = len(os.listdir("/proc/self/fd"))
    found = read_file(tmp_path / "x.npz").state
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert bits_of(found) == bits_of({**state, **others})


def ragged() -> Any:
    return np.array([[1], [1, 2]], dtype=object)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (ragged(), "Python objects"),
        (np.array(["a", "bc"]), "<U2"),
        (np.array([b"a"]), "S1"),
        (np.array(["2026-01-01"], "M8[D]"), r"<M8\[D\]"),
        (np.zeros(2, "m8[s]"), r"<m8\[s\]"),
        (np.zeros(2, [("x", "f4"), ("y", "i4")]), "'x'"),
        (np.zeros(2, [("ü→", "f4")]), "not an array of numbers"),
        (np.zeros(2, [("x", "O")]), "not an array of numbers"),
        (np.zeros(2, np.longdouble), "<f1[26]"),
        (np.zeros(2, "V4"), "V4"),
        (np.zeros(2, "V2"), "V2"),
    ],
    ids=[
        "objects",
        "text",
        "bytes",
        "dates",
        "spans",
        "fields",
        "other fields",
        "fields of objects",
        "long double",
        "void",
        "half of void",
    ],
)
def test_what_no_checkpoint_holds_is_refused_by_name(tmp_path: Path, array: Any, said: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of version 3.0 of the format
        np.savez(tmp_path / "x.npz", good=np.ones(1), bad=array)
        np.save(tmp_path / "x.npy", array)
    with pytest.raises(InvalidInputError, match=rf"'bad\.npy' of .*x\.npz.*({said})"):
        read_file(tmp_path / "x.npz")
    with pytest.raises(InvalidInputError, match=rf"x\.npy.*({said})"):
        read_file(tmp_path / "x.npy")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "complex32", "float4_e2m1fn_x2"])
def test_what_numpy_has_not_is_refused_by_name(tmp_path: Path, dtype: str) -> None:
    odd = torch.zeros(8, dtype=torch.uint8).view(getattr(torch, dtype))
    for name in ("x.npz", "x.npy"):
        others = {} if name == "x.npy" else {"w": torch.ones(1)}
        with pytest.raises(InvalidInputError, match=rf"1 array: odd \({dtype}\)\..*\.zarr or \.pt"):
            write_file({**others, "odd": odd}, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_npy_takes_one_array_only(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has 2\. Choose one of them, or"):
        write_file({"a": np.ones(1), "b": np.ones(1)}, tmp_path / "x.npy")
    with pytest.raises(InvalidInputError, match=r"1 plain value \("):
        write_file({"a": np.ones(1), "b": 1}, tmp_path / "x.npy")
    write_file({"a": np.ones(1), "b": 1}, tmp_path / "x.npy", drop_values=True)
    assert np.load(tmp_path / "x.npy").tolist() == [1]


def header(text: str, data: bytes = b"", *, version: bytes = b"\1\0") -> bytes:
    body = text.encode()
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(body))
    return b"\x93NUMPY" + version + length + body + data


def said(descr: str = "'<f4'", order: str = "False", shape: str = "(2,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


WRONG = {
    "nothing": b"",
    "no magic": b"x" * 100,
    "magic only": b"\x93NUMPY\1\0",
    "no text": header(""),
    "a list": header("[]"),
    "a key too many": header("{'descr':'<f4','fortran_order':False,'shape':(2,),'x':1}", bytes(8)),
    "a call": header("__import__('os').system('true')"),
    "a huge shape": header(said(shape="(1099511627776, 1099511627776)"), bytes(8)),
    "a shape that wraps": header(said(shape="(4611686018427387906,)"), bytes(8)),
    "a negative shape": header(said(shape="(-2,)"), bytes(8)),
    "two negative lengths": header(said(shape="(-1, -2)"), bytes(8)),
    "a shape of no numbers": header(said(shape="('a',)"), bytes(8)),
    "too few bytes": header(said(), bytes(7)),
    "too many bytes": header(said(), bytes(9)),
    "an unknown dtype": header(said(descr="'<q9'"), bytes(8)),
    "an order of no truth": header(said(order="3"), bytes(8)),
    "65 dimensions": header(said(shape=f"({'1,' * 64}2)"), bytes(8)),
    "version 9": header(said(), bytes(8), version=b"\x09\0"),
    "a header of 4 GB": b"\x93NUMPY\2\0" + b"\xff" * 4 + said().encode(),
    "9,000 brackets": header("(" * 9_000),
    "9,000 signs": header("-" * 9_000 + "1"),
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_a_wrong_header_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"x\.npy"):
        read_file(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", data)
    with pytest.raises(InvalidInputError, match=r"x\.npz"):
        read_file(tmp_path / "x.npz")


@given(st.text("({[',:<f4TrueFalse\n \\\"#+-.0x", max_size=60) | st.text(max_size=20))
def test_a_header_of_any_text_is_read_or_refused(folder: Path, text: str) -> None:
    (folder / "any.npy").write_bytes(header(text, bytes(8)))
    with suppress(InvalidInputError):
        read_file(folder / "any.npy")


def test_a_header_of_python_2_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(header(said(shape="(2L,)"), struct.pack("<2f", 1, 2)))
    assert committed(tmp_path / "x.npy").tolist() == [1, 2]


# What is wrong with an archive.


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """A good file, one of its members stored and one compressed."""
    path = folder / "whole.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind in (("stored", zipfile.ZIP_STORED), ("packed", zipfile.ZIP_DEFLATED)):
            data = io.BytesIO()
            np.save(data, np.arange(40.0))
            archive.writestr(f"{name}.npy", data.getvalue(), compress_type=kind)
    assert sorted(read_file(path).state) == ["packed", "stored"]
    return path.read_bytes()


@given(st.data())
def test_an_archive_that_is_cut_is_refused(folder: Path, whole: bytes, data: st.DataObject) -> None:
    path = folder / "cut.npz"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InvalidInputError, match=r"cut\.npz"):
        read_file(path)


@pytest.mark.parametrize("name", ["cut.npz", "cut.keras"])
@pytest.mark.parametrize("missing", [1, 22, 300, 600])
def test_an_archive_without_its_end_is_called_cut_short(
    tmp_path: Path, whole: bytes, name: str, missing: int
) -> None:
    (tmp_path / name).write_bytes(whole[:-missing])
    with pytest.raises(InvalidInputError, match=rf"{name} is cut short, .* Get the file again"):
        read_file(tmp_path / name)


@given(st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(
    folder: Path, whole: bytes, data: st.DataObject
) -> None:
    path = folder / "changed.npz"
    place, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 255))
    path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
    with suppress(InvalidInputError):
        assert all((array == np.arange(40.0)).all() for array in committed(path).values())


def rewritten(path: Path, whole: bytes, change: Callable[[bytearray, int], None]) -> Path:
    """The same archive with a change to the entry of "packed" in its list of members."""
    data = bytearray(whole)
    change(data, whole.rindex(b"PK\1\2"))
    path.write_bytes(data)
    return path


def put(offset: int, form: str, value: int) -> Callable[[bytearray, int], None]:
    return lambda data, entry: struct.pack_into(form, data, entry + offset, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put(24, "<I", 2**31), "claims"),
        (put(24, "<I", 449), "length|damaged"),
        (put(20, "<I", 2**31), "cut short|damaged"),
        (put(42, "<I", 0), "claims|damaged"),
        (put(42, "<I", 2**31), "cut short|damaged"),
        (put(8, "<H", 1), "encrypted"),
        (put(10, "<H", 12), "compressed in a way"),
        (put(10, "<H", 99), "compressed in a way"),
        (put(10, "<H", 0), "claims|damaged"),
        (put(16, "<I", 7), "CRC"),
    ],
    ids=[
        "a bomb",
        "longer",
        "packed longer",
        "on another",
        "beyond",
        "encrypted",
        "bzip2",
        "unknown",
        "not packed",
        "checksum",
    ],
)
def test_what_the_list_of_members_claims_is_checked(
    tmp_path: Path, whole: bytes, change: Callable[[bytearray, int], None], said: str
) -> None:
    path = rewritten(tmp_path / "x.npz", whole, change)
    with pytest.raises(InvalidInputError, match=rf"x\.npz.*({said})|({said}).*"):
        read_file(path)


def test_members_that_are_no_arrays_or_there_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    for names in (["readme.txt"], ["folder/"], ["w.npy", "w"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, header(said(), bytes(8)))
        with pytest.raises(InvalidInputError, match=rf"{names[-1]!r}.*is not an array"):
            read_file(path)
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("w.npy", header(said(), bytes(8)))
        archive.writestr("w.npy", header(said(), bytes(8)))
    with pytest.raises(InvalidInputError, match=r"'w\.npy' .*twice"):
        read_file(path)


def test_a_list_of_members_beyond_reason_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "x.npz", **{f"w{number}": np.ones(1) for number in range(100)})
    monkeypatch.setattr(zip_members, "READ_BYTES_MAX", 5000)
    with pytest.raises(InvalidInputError, match="list of members"):
        read_file(tmp_path / "x.npz")


def test_what_unpacks_to_more_than_there_is_room_for_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1000), b=np.zeros(1000))
    np.savez(tmp_path / "stored.npz", a=np.zeros(1000), b=np.zeros(1000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16_000))
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    with pytest.raises(InvalidInputError, match=r"unpacks to 16256 bytes, .* has room for 16000"):
        read_file(tmp_path / "x.npz")
    assert sorted(read_file(tmp_path / "stored.npz").state) == ["a", "b"]


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    data = header(said(descr="'|O'", shape="()"), pickle.dumps(print))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("w.npy", data)
    with pytest.raises(InvalidInputError, match="could run code"):
        read_file(tmp_path / "x.npz")


def test_nothing_is_stored_of_a_bad_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", good=np.ones(100_000), bad=ragged())
    repo = ckptstore.init("memory://")
    with pytest.raises(InvalidInputError):
        repo.commit(read_file(tmp_path / "x.npz").state)
    assert repo.log() == []


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">c8", ">c16", ">i2", ">u8", ">f2", "|u1"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_numbers_of_a_big_endian_machine_are_converted(
    tmp_path: Path, dtype: str, suffix: str
) -> None:
    flat = np.arange(24).astype(dtype)
    arrays = [flat, flat.reshape(2, 3, 4), np.asfortranarray(flat.reshape(4, 6)), flat[:0], flat[5]]
    for number, array in enumerate(arrays):
        path = tmp_path / f"{number}.{suffix}"
        if suffix == "npy":
            np.save(path, array)
        else:
            np.savez_compressed(path, array)
        state = read_file(path).state
        repo = ckptstore.init("memory://")
        found = repo.checkout(repo.commit({"x": state} if suffix == "npy" else state).id)
        (read,) = found.values()
        assert read.dtype == array.dtype.newbyteorder("<")
        assert read.tolist() == array.tolist()
        assert read.shape == array.shape
