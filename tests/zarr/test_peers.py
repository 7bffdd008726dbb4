"""What others make of an exported checkpoint: zarr-python, TensorStore and xarray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import xarray
import zarr

import ckptstore
from ckptstore import formats
from ckptstore.zarr import CheckpointStore

NAMES = ["0.weight", "0.bias", "w", "w[0]", "1", "c", "zarr", "w.0"]


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    generator = torch.Generator().manual_seed(0)
    model = {
        name: torch.randn(3 + number, 4, 2 + number % 3, generator=generator)
        for number, name in enumerate(NAMES)
    }
    model["one"] = torch.tensor(1.5)
    model["long"] = torch.arange(3_000_000, dtype=torch.float64)
    odd = torch.randn(50, 7, generator=generator)
    dtypes = [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.int8]
    others = {str(dtype)[6:]: odd.to(dtype) for dtype in dtypes}
    others |= {"bool": odd > 0, "complex64": torch.complex(odd, -odd), "none": odd[:0]}
    repo = ckptstore.init(tmp_path / "store")
    repo.commit({"model": model, "others": others, "lr": 0.1}, step=7, metrics={"loss": 0.5})
    return repo


@pytest.fixture
def folder(repo: ckptstore.Repository, tmp_path: Path) -> Path:
    formats.write_file(repo.checkout("main", lazy=True), tmp_path / "x.zarr")
    return tmp_path / "x.zarr"


def bits(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(value).tobytes()


def arrays(repo: ckptstore.Repository) -> dict[str, Any]:
    state = repo.checkout("main")
    return {
        f"{part}/{name}": state[part][name] for part in ("model", "others") for name in state[part]
    }


def test_zarr_python_reads_the_same_bits(repo: ckptstore.Repository, folder: Path) -> None:
    group = zarr.open_group(folder, mode="r")
    found = {
        path for path, member in group.members(max_depth=None) if isinstance(member, zarr.Array)
    }
    assert found == arrays(repo).keys()
    for path, expected in arrays(repo).items():
        assert group[path].shape == tuple(expected.shape)
        assert bits(group[path][...]) == bits(expected), path
        assert bits(zarr.open_array(folder / path, mode="r")[...]) == bits(expected), path


def test_tensorstore_reads_the_same_bits(repo: ckptstore.Repository, folder: Path) -> None:
    for path, expected in arrays(repo).items():
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / path)}}
        found = tensorstore.open(spec, open=True).result()
        assert found.shape == tuple(expected.shape)
        assert found.dtype.name == str(expected.dtype).removeprefix("torch.")
        assert bits(found.read().result()) == bits(expected), path


@pytest.mark.parametrize("where", ["folder", "repository"])
def test_xarray_opens_its_groups(repo: ckptstore.Repository, folder: Path, where: str) -> None:
    store = folder if where == "folder" else CheckpointStore(repo.url)
    expected = arrays(repo)
    for part in ("model", "others"):
        for opened in (
            xarray.open_zarr(store, group=part, chunks=None),
            xarray.open_dataset(store, engine="zarr", group=part),
        ):
            names = {path.partition("/")[2] for path in expected if path.startswith(f"{part}/")}
            assert set(opened.variables) == names
            for name in names:
                assert bits(opened[name].values) == bits(expected[f"{part}/{name}"])
    tree = xarray.open_datatree(store, engine="zarr")
    assert set(tree.children) == {"model", "others"}


def test_a_checkpoint_and_its_folder_have_the_same_arrays(
    repo: ckptstore.Repository, folder: Path
) -> None:
    live = repo.resolve("main").zarr()
    plain = zarr.open_group(folder, mode="r")
    assert [path for path, _ in live.members(max_depth=None)] == [
        path for path, _ in plain.members(max_depth=None)
    ]
    for path in arrays(repo):
        assert live[path].metadata == plain[path].metadata
