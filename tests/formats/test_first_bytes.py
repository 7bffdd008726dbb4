"""What a file is by its contents, whatever its name says."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

import ckptstore
from ckptstore import InvalidInputError, formats
from ckptstore.formats.first_bytes import HEAD_BYTES, Foreign, identify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440449768\n"
STATE = {"w": np.arange(6.0)}


def _torch(**options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0, dtype=torch.float64)}, buffer, **options)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **STATE)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, STATE["w"])
    return buffer.getvalue()


def _zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"{}")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("run/model.pt"))
    return buffer.getvalue()


def _hdf5() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["w"] = STATE["w"]
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name",
    ["best.pth.tar", "checkpoint", "net.th", "weights.pkl", "x.model", "a.pt.bak", "x.npz", "X.H5"],
)
@pytest.mark.parametrize(
    "make",
    [
        _torch,
        lambda: _torch(_use_new_zipfile_serialization=False),
        _npz,
        lambda: safetensors.numpy.save(STATE),
        _hdf5,
    ],
    ids=["torch", "old torch", "npz", "safetensors", "hdf5"],
)
def test_the_contents_decide(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(make())
    state = formats.read_file(path).state
    checkpoint = ckptstore.init("memory://").commit(state)
    assert checkpoint.array("w")[:].tolist() == STATE["w"].tolist()


def test_a_npy_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(_npy())
    assert formats.read_file(path).state.shape == (6,)


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors", ".npz", ".bin", ".h5"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (POINTER, "Git LFS"),
        (b"\n<!DOCTYPE html><html><title>Virus scan warning</title>", "an HTML page"),
        (b"<HTML lang=en>", "an HTML page"),
        (b"", "is empty"),
        (bytes(5000), "all zeros"),
        (b"GGUF\3\0\0\0" + bytes(60), "a GGUF file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x90\1", "an ONNX model"),
        (b"\x1c\0\0\0TFL3\x14\0\x20\0", "TensorFlow Lite"),
        (gzip.compress(_torch()), "compressed with gzip. Unpack it with gunzip"),
        (b"\x28\xb5\x2f\xfd\x24", "zstd"),
        (_tar(), "a tar archive"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"hello", "a text file"),
        ("détour\n".encode() * HEAD_BYTES, "a text file"),
        (b'{"metadata": {}, "weight_map": {"w": "a.safetensors"}}', "Commit its folder"),
        (b"[1, 2]", "a JSON document"),
        (b'{"ckptstore": 3, "id": "c0ffee"}', "a JSON document"),
        (
            b'{"ckptstore": "file:///runs", "id": "c0ffee"}',
            "a file that names checkpoint 'c0ffee' of the repository 'file:///runs'",
        ),
    ],
    ids=[str(number) for number in range(18)],
)
def test_what_is_no_checkpoint_is_named_with_the_way_out(
    tmp_path: Path, suffix: str, data: bytes, said: str
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=said) as raised:
        formats.read_file(path)
    assert str(path) in str(raised.value)


def test_of_an_unknown_beginning_the_suffix_or_the_format_given_decides(tmp_path: Path) -> None:
    data = b"\1\2\3\4" * 20
    for name in ("x", "x.dat"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"one of pt, safetensors, npz, npy"):
            formats.read_file(path)
        with pytest.raises(InvalidInputError, match=r"not a file that torch\.save wrote"):
            formats.read_file(path, format="pt")
        with pytest.raises(InvalidInputError, match="'h5' is not known; pt, safetensors"):
            formats.read_file(path, format="h5")
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(InvalidInputError, match=r"not a \.npz file"):
        formats.read_file(tmp_path / "x.npz")


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 29, 30, 100])
def test_any_beginning_is_looked_at(length: int) -> None:
    for data in (_torch(), _npz(), _npy(), POINTER, b"\x80\x02", b"\x08\x01\x12"):
        found = identify(data[:length], size=len(data))
        assert found is None or isinstance(found, str | Foreign)


@pytest.mark.parametrize("length", [100, 400, len(_torch()) - 1])
def test_a_file_of_torch_save_that_is_cut_short_is_called_so(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(_torch()[:length])
    with pytest.raises(InvalidInputError, match=r"cut\.pt is cut short"):
        formats.read_file(path)


def test_a_folder_of_checkpoints_is_imported_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(InvalidInputError, match=r"plan_import with '.*/checkpoint-\{step\}'"):
        formats.read_file(tmp_path)
