"""Files and folders: detection, atomic writes, streaming, closing."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore import formats
from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.strided import FileArray
from ckptstore.errors import CkptStoreError, InvalidInputError, NotFoundError, StorageError
from ckptstore.formats import read_file, write_file
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.open_files import open_files
from tests.helpers.root import ROOT

STATE = {"model": {"w": np.arange(40_000.0).reshape(200, 200), "b": np.zeros((0, 3))}}
SHARD_BYTES = {"folder": 200_000}
NAMES = ["x.safetensors", "x.npz", "folder"]


def write(path: Path, state: Any = STATE, **options: Any) -> None:
    write_file(state, path, shard_bytes=SHARD_BYTES.get(path.name), **options)


def content(path: Path) -> dict[str, bytes]:
    """Every file at or below a path."""
    files = [inside for inside in [path, *path.rglob("*")] if inside.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


class Failing(LazyArray):
    """An array of which only the beginning can be read."""

    kind, dtype, shape = "ndarray", "uint8", (20 << 20,)

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read_into(self, buffer: memoryview, start: int) -> None:
        if start:
            raise self.error


ERRORS = [StorageError("gone."), OSError(5, "I/O error"), KeyboardInterrupt(), ValueError("a bug")]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_is_half_written_never_appears(tmp_path: Path, name: str, error: Exception) -> None:
    expected = StorageError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        write(tmp_path / name, {"a": np.ones(3), "w": Failing(error)})
    assert os.listdir(tmp_path) == []
    write(tmp_path / name)
    before = content(tmp_path)
    with pytest.raises(expected):
        write(tmp_path / name, {"a": np.ones(3), "w": Failing(error)}, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_what_is_there_is_replaced_only_on_purpose(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    before = content(tmp_path)
    with pytest.raises(InvalidInputError, match="exists"):
        write(tmp_path / name, {"w": np.ones(1)})
    assert content(tmp_path) == before
    write(tmp_path / name, {"w": np.ones(1)}, overwrite=True)
    assert bits_of(committed(tmp_path / name)) == bits_of({"w": np.ones(1)})
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_state_makes_the_same_bytes(tmp_path: Path, name: str) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / name)
    assert content(tmp_path / "one" / name) == content(tmp_path / "other" / name)


def test_a_folder_of_somebody_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("config.json", "model.safetensors.bak", "deep/model.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        with pytest.raises(InvalidInputError, match="holds more than an export"):
            write(folder, overwrite=True)
        (folder / name).unlink()
    (folder / "deep").rmdir()
    (folder / "model.safetensors").symlink_to("elsewhere")
    with pytest.raises(InvalidInputError, match="holds more than an export"):
        write(folder, overwrite=True)
    (folder / "model.safetensors").unlink()
    write(folder, overwrite=True)


def test_a_folder_takes_no_file_s_place_nor_a_link_s(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "mine").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x.npz").mkdir()
    for name, reason in (("link", "holds more than an export"), ("file", "is a file")):
        with pytest.raises(InvalidInputError, match=reason):
            write_file(STATE, tmp_path / name, shard_bytes=10**6, overwrite=True)
    with pytest.raises(InvalidInputError, match="is a folder"):
        write_file(STATE, tmp_path / "x.npz", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "real", "x.npz"]


@pytest.mark.parametrize("size", [0, -1, 1.5, "5GB"])
def test_a_shard_has_a_size_in_bytes(tmp_path: Path, size: Any) -> None:
    with pytest.raises(InvalidInputError, match="size in bytes"):
        write_file(STATE, tmp_path / "x", shard_bytes=size)


def test_only_safetensors_come_in_shards(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\.npz is not written in shards"):
        write_file(STATE, tmp_path / "x.npz", shard_bytes=10)
    for name in ("Llama-3.1", "x.safetensors"):
        write_file(STATE, tmp_path / name, shard_bytes=10**9)
        assert bits_of(committed(tmp_path / name)) == bits_of(STATE)


def test_a_folder_is_known_by_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"without a checkpoint.*zarr\.json"):
        read_file(tmp_path)
    write_file(STATE, tmp_path / "anything.safetensors")
    assert bits_of(committed(tmp_path)) == bits_of(STATE)
    assert read_file(f"{tmp_path}/").meta["file"] == tmp_path.name


def test_a_dot_is_the_folder_of_this_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(STATE, tmp_path / "x.safetensors")
    monkeypatch.chdir(tmp_path)
    assert read_file(".").meta["file"] == tmp_path.name


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_no_text_is_told_as_far_as_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / os.fsdecode(b"\xff" + name.encode())
    write_file(STATE, path, shard_bytes=SHARD_BYTES.get(name))
    found = read_file(path)
    made = ckptstore.init("memory://").commit(found.state, meta=found.meta)
    assert made.meta["file"] == f"\ufffd{name}"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").write_bytes(b"\1\2\3\4")
    with pytest.raises(InvalidInputError, match=r"x\.zarr is a file; a \.zarr is a folder"):
        read_file(tmp_path / "x.zarr")


def test_a_link_to_a_file_may_be_given(tmp_path: Path) -> None:
    write_file(STATE, tmp_path / "x.npz")
    (tmp_path / "y.npz").symlink_to("x.npz")
    assert bits_of(committed(tmp_path / "y.npz")) == bits_of(STATE)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_closed_with_its_last_array(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    state = read_file(tmp_path / name).state
    weights = state["model"]["w"]
    del state
    gc.collect()
    assert len(open_files(tmp_path)) == 1
    weights.read_into(memoryview(bytearray(8)), 0)
    del weights
    gc.collect()
    assert not open_files(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["cut", "written"])
def test_a_file_that_changes_while_it_is_committed_is_told(
    tmp_path: Path, name: str, change: str
) -> None:
    write(tmp_path / name)
    state = read_file(tmp_path / name).state
    for file in [tmp_path / name, *(tmp_path / name).glob("*.safetensors")]:
        if file.is_file():
            data = file.read_bytes()
            file.write_bytes(data[:-1] if change == "cut" else data)
            os.utime(file, ns=(1, 1))
    repo = ckptstore.init("memory://")
    with pytest.raises(InvalidInputError, match="was changed while it was read"):
        repo.commit(state)
    assert repo.log() == []


def test_reading_a_file_array_reads_these_bytes_only(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(range(100)))
    file = OpenFile(tmp_path / "x")
    array = FileArray(file, kind="ndarray", dtype="uint8", shape=(10, 5), offset=7)
    buffer = bytearray(12)
    array.read_into(memoryview(buffer)[:10], 3)
    assert buffer == bytes(range(10, 20)) + bytes(2)
    with pytest.raises(InvalidInputError, match="was changed"):
        array.read_into(memoryview(buffer), 90)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "x").write_bytes(b"1")
    for path, error in ((tmp_path / "fifo", InvalidInputError), (tmp_path, InvalidInputError)):
        with pytest.raises(error, match="not a regular file"):
            OpenFile(path)
    with pytest.raises(StorageError):
        OpenFile(tmp_path / "link", follow=False)
    assert OpenFile(tmp_path / "link").read(0, 1) == b"1"


def test_more_files_than_may_be_open_are_told_with_what_helps(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        with pytest.raises(StorageError, match=r"Too many open files\. .*ulimit -n"):
            _ = [OpenFile(tmp_path / "x") for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("path", ["", "a/b\0.npz", 3, None, b"x.npz"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(CkptStoreError):
        read_file(path)
    with pytest.raises(CkptStoreError):
        write_file(STATE, path)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_may_be_as_long_as_the_file_system_has_names(tmp_path: Path, name: str) -> None:
    shard_bytes = SHARD_BYTES.get(name)
    long = tmp_path / f"{'x' * (255 - len(name))}{name}"
    write_file(STATE, long, shard_bytes=shard_bytes)
    assert os.listdir(tmp_path) == [long.name]
    for impossible in (f"x{long.name}", f"\0{name}"):
        with pytest.raises(StorageError, match="cannot be written"):
            write_file(STATE, tmp_path / impossible, shard_bytes=shard_bytes)
    assert os.listdir(tmp_path) == [long.name]


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        read_file(tmp_path / "x.npz")
    with pytest.raises(NotFoundError, match="The folder"):
        write(tmp_path / "none" / "folder")


@pytest.mark.parametrize("name", NAMES)
def test_a_format_without_torch_needs_no_torch(tmp_path: Path, name: str) -> None:
    """Neither in nor out, nor with a commit and a checkout in between."""
    write(tmp_path / name)
    code = """
import json, sys
import ckptstore
from ckptstore.formats import read_file, write_file
repo = ckptstore.init("memory://")
read = read_file(sys.argv[1])
state = repo.checkout(repo.commit(read.state, meta=read.meta).id, lazy=True)
write_file(state, sys.argv[2], shard_bytes=json.loads(sys.argv[3]))
assert {"ckptstore", "blake3"} <= sys.modules.keys()
print(json.dumps(sorted({"torch", "zarr", "ml_dtypes"} & sys.modules.keys())))
"""
    size = json.dumps(SHARD_BYTES.get(name))
    again = tmp_path / f"again-{name}"
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / name, again, size]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
    assert bits_of(committed(again)) == bits_of(STATE)


def test_a_package_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(STATE, tmp_path / "x.pt")
    for name in [name for name in sys.modules if name.startswith("ckptstore.formats.torch.")]:
        package, _, module = name.rpartition(".")
        monkeypatch.delattr(sys.modules[package], module, raising=False)
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidInputError, match=r"x\.pt needs a package .*torch"):
        read_file(tmp_path / "x.pt")
    with pytest.raises(InvalidInputError, match=r"y\.pt needs a package .*torch"):
        write_file(STATE, tmp_path / "y.pt")
    assert os.listdir(tmp_path) == ["x.pt"]


def test_the_formats_are_those_that_the_message_names(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as error:
        write_file(STATE, tmp_path / "x.txt")
    for suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz", ".npy", ".zarr", ".dcp"):
        assert suffix in str(error.value)
        assert formats.has_format(f"x{suffix.upper()}")
