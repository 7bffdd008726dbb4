"""Formats: values that one can hold survive, others are refused before any write."""

from __future__ import annotations

import os
import pickle
import resource
import signal
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import ckptstore
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, NotFoundError, StorageError
from ckptstore.formats import read_file, write_file
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from pathlib import Path

SHARED = torch.arange(6.0)
STATE: dict[str, Any] = {
    "model": OrderedDict(w=SHARED.reshape(2, 3).T, tied=SHARED, empty=torch.zeros(0, 2)),
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"betas": (0.9, 0.99)}]},
    "epoch": 3,
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".PT"])
def test_a_pt_file_comes_back_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"state{suffix}"
    write_file(STATE, path)
    assert difference(STATE, loaded(path)) is None
    assert read_file(path).meta == {"file": path.name}
    assert os.listdir(tmp_path) == [path.name]


def test_a_safetensors_file_holds_the_arrays_by_path(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_file(STATE, path, drop_values=True)
    assert {name: tensor.tolist() for name, tensor in load_file(path).items()} == {
        "model/w": [[0, 3], [1, 4], [2, 5]],
        "model/tied": [0, 1, 2, 3, 4, 5],
        "model/empty": [],
        "optimizer/state/0/step": 3,
    }
    found = loaded(path)
    assert found["model"]["w"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["optimizer"]["state"]["0"]["step"] == 3


def test_a_safetensors_file_keeps_the_bits_of_every_dtype_that_it_knows(tmp_path: Path) -> None:
    raw = torch.randint(0, 256, (64,), dtype=torch.uint8)
    known = [name for name in ITEM_BYTES if name not in ("complex32", "complex128", "bool")]
    state = {name: raw.view(getattr(torch, name)) for name in known}
    state["bool"] = raw > 100
    write_file(state, tmp_path / "x.safetensors")
    assert difference(sorted_like(state), sorted_like(loaded(tmp_path / "x.safetensors"))) is None


def sorted_like(state: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(state.items()))


def loaded(path: Path) -> Any:
    """What a file holds, by way of a commit and a checkout."""
    repo = ckptstore.init("memory://")
    return repo.checkout(repo.commit(read_file(path).state).id)


def test_metadata_of_a_safetensors_file_becomes_meta(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = read_file(tmp_path / "m.safetensors")
    assert found.meta == {"file": "m.safetensors", "safetensors": {"format": "pt"}}
    made = ckptstore.init("memory://").commit(found.state, meta=found.meta)
    assert made.meta == found.meta


def test_plain_values_are_not_dropped_unless_that_was_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"2 plain values \(optimizer/.*/0, .*") as error:
        write_file({"optimizer": {"b": (1, torch.ones(1))}, "epoch": 1}, tmp_path / "x.safetensors")
    assert "epoch" in str(error.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz"])
def test_a_file_that_is_there_is_replaced_only_on_purpose_and_whole(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    write_file({"w": torch.zeros(2)}, path)
    with pytest.raises(InvalidInputError, match="exists"):
        write_file({"w": torch.ones(2)}, path)
    with pytest.raises(InvalidInputError):
        write_file({"w": lambda: 1}, path, overwrite=True)
    assert loaded(path)["w"].tolist() == [0, 0]
    write_file({"w": torch.ones(2)}, path, overwrite=True)
    assert loaded(path)["w"].tolist() == [1, 1]
    assert os.listdir(tmp_path) == [name]


class Planted:
    """Pickles as a call that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_file_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1), "x": Planted(tmp_path / "ran")}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(InvalidInputError, match=name):
            read_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy"])
@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"\xff" * 100, b"{}", bytes(8) + b"{}"], ids=repr)
def test_bytes_that_are_no_such_file_are_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="x"):
        read_file(path)


def test_a_path_that_cannot_work_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "folder.pt").mkdir()
    os.mkfifo(tmp_path / "fifo.pt")
    with pytest.raises(NotFoundError, match="does not exist"):
        read_file(tmp_path / "none.pt")
    for name in ("folder.pt", "fifo.pt", "x.dat", "x", ".pt"):
        (tmp_path / name).exists() or (tmp_path / name).touch()
        with pytest.raises(InvalidInputError):
            read_file(tmp_path / name)
    with pytest.raises(NotFoundError, match="folder"):
        write_file({}, tmp_path / "none" / "x.pt")
    for name in ("folder.pt", "x.dat"):
        with pytest.raises(InvalidInputError):
            write_file({}, tmp_path / name, overwrite=True)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.npz", "x.npy"])
def test_a_folder_that_takes_no_files_is_a_storage_error_that_names_the_file(name: str) -> None:
    with pytest.raises(StorageError, match=rf"/proc/self/{name} could not be written"):
        write_file({"w": torch.ones(3)}, f"/proc/self/{name}")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.npz", "x.npy"])
def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    """A limit on file sizes stands in for a full disk; its signal is ignored."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(StorageError, match="could not be written"):
            write_file({"w": torch.ones(1 << 20)}, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []
