"""Files and states that claim more than there is room for, or than they have."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import ckptstore
from ckptstore.arrays import memory_limit
from ckptstore.errors import InvalidInputError, StorageError
from ckptstore.formats import publish, read_file, write_file

OUTPUTS = ["x.pt", "x.safetensors", "x.npz", "x.npy", "x.h5", "x.zarr", "x.dcp"]


def claiming(elements: int) -> ckptstore.Repository:
    """A repository of a Zarr array without a chunk."""
    repo = ckptstore.init("memory://")
    with repo.session("main") as session:
        zarr.create_array(session.store, name="w", shape=(elements,), chunks=(10**6,), dtype="<f8")
        session.commit()
    return repo


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_export_that_has_no_room_is_refused_before_it_writes(tmp_path: Path, name: str) -> None:
    state = claiming(10**13).checkout(lazy=True, bytes_max=10**15)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(StorageError, match=r"80,000,000,000,000 bytes, and .* has room for \d+"):
        write_file(state if name != "x.npy" else state["w"], tmp_path / name)
    assert os.listdir(tmp_path) == []
    assert abs(shutil.disk_usage(tmp_path).free - free) < 1 << 30


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_export_that_just_fits_is_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Any) -> Any:
        return shutil._ntuple_diskusage(total=10**9, used=0, free=free)  # type: ignore[attr-defined]

    monkeypatch.setattr(publish.shutil, "disk_usage", usage)
    state = np.zeros(100) if name == "x.npy" else {"w": np.zeros(100)}
    free = 799
    with pytest.raises(StorageError, match=r"800 bytes, and .* room for 799"):
        write_file(state, tmp_path / name)
    free = 800
    write_file(state, tmp_path / name)


@pytest.mark.parametrize("name", OUTPUTS[:3])
def test_an_export_of_what_is_not_stored_is_within_a_budget(tmp_path: Path, name: str) -> None:
    repo = claiming(10**7)
    with pytest.raises(InvalidInputError, match=r"'w' would take 80,000,000 .*bytes_max=80000000"):
        write_file(repo.checkout(lazy=True), tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_compressed_file_unpacks_to_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_limit, "UNPACKED_BYTES_FREE", 10_000)
    path = tmp_path / "x.npz"
    np.savez_compressed(path, w=np.zeros(10**6))
    with pytest.raises(
        InvalidInputError, match=rf"8,000,128 bytes, and has {path.stat().st_size:,}"
    ):
        read_file(path)
    assert read_file(path, bytes_max=8_000_128).state["w"].nbytes == 8_000_000
    np.savez(path, w=np.zeros(10**6))
    assert read_file(path).state["w"].nbytes == 8_000_000
