"""Zarr folders, out and in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from itertools import count
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import formats
from ckptstore.digest import Digest
from ckptstore.documents import canonical
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.testing.strategies import printable
from ckptstore.zarr import folder_read as zarr_read
from ckptstore.zarr import folder_write as zarr_folder
from ckptstore.zarr.hierarchy import ZarrFiles
from tests.helpers.equality import difference

SHAPES = st.lists(st.integers(0, 6), max_size=4).map(tuple) | st.sampled_from(
    [(70, 9), (3, 40), (500,)]
)
KEYS = st.sampled_from(
    [
        "a",
        "b/c",
        ".",
        "..",
        "...",
        "zarr.json",
        "__x",
        ".zarray",
        "c",
        "0",
        "é",
        "50%",
        "%2E",
        0,
        7,
        -3,
    ]
)


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = printable(dtype, draw(SHAPES))
    count = int(np.prod(shape, dtype=int))
    raw = np.random.default_rng(draw(st.integers(0, 2**32))).bytes(count * ITEM_BYTES[dtype])
    if dtype == "bool":
        raw = bytes(byte % 2 for byte in raw)
    if draw(st.booleans()) and dtype not in ("complex32", "float4_e2m1fn_x2"):
        return np.frombuffer(raw, getattr(ml_dtypes, dtype, dtype)).reshape(shape).copy()
    if not raw:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return (
        torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        .view(getattr(torch, dtype))
        .reshape(shape)
    )


VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=3)
)
STATES = st.recursive(
    tensors() | VALUES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


def loaded(state: Any) -> Any:
    """The state with every lazy array read, by way of a repository."""
    repo = ckptstore.open("memory://loaded", create=True)
    repo.commit(state, retry=True)
    return repo.checkout()


@given(state=STATES, chunk_bytes=st.sampled_from([16, 100, 1000, 8 << 20]))
def test_any_state_comes_back_to_the_bit(
    state: Any, chunk_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("out") / "x.zarr"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zarr_folder, "CHUNK_BYTES", chunk_bytes)
        formats.write_file(state, folder)
    found = formats.read_file(folder)
    assert found.meta == {"file": "x.zarr"}
    assert difference(state, loaded(found.state)) is None
    zarr.open_group(folder, mode="r")
    shutil.rmtree(folder)


def test_a_scalar_of_two_floats_of_4_bits_comes_back(tmp_path: Path) -> None:
    state = {"w": torch.tensor(7, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
    formats.write_file(state, tmp_path / "x.zarr")
    assert difference(state, loaded(formats.read_file(tmp_path / "x.zarr").state)) is None


def test_ties_survive(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    formats.write_file({"a": weight, "b": weight}, tmp_path / "x.zarr")
    state = loaded(formats.read_file(tmp_path / "x.zarr").state)
    assert state["a"] is state["b"]
    assert zarr.open_group(tmp_path / "x.zarr", mode="r")["b"][1] == 1


def test_an_export_that_is_committed_again_stores_no_array_anew(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    state = {"w": torch.randn(3000, 1000), "b": torch.randn(10), "lr": 0.1, 5: [1, None]}
    first = repo.commit(state)
    formats.write_file(repo.checkout("main", lazy=True), tmp_path / "x.zarr")
    again = repo.commit(formats.read_file(tmp_path / "x.zarr").state)
    assert again.new_bytes == 0
    assert again._manifest.pages == first._manifest.pages
    assert again._manifest.structure == first._manifest.structure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "x.zarr"
    formats.write_file({"g": {"w": np.arange(12.0).reshape(4, 3)}, "lr": 0.1}, folder)
    return folder


def edited(file: Path, change: Any) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def committed_of(folder: Path) -> ckptstore.Repository:
    """A repository with what a folder holds, over another state of which nothing may be left."""
    repo = ckptstore.open(f"memory://{folder}", create=True)
    repo.commit({"former": np.zeros(3), "g": {"lr": 9.0}}, retry=True)
    repo.commit(formats.read_file(folder).state)
    assert repo.verify().ok
    return repo


def test_what_another_program_added_comes_along_and_the_state_stays_what_it_was(
    tmp_path: Path,
) -> None:
    weight = torch.arange(40_000.0).reshape(200, 200)
    state = {
        "model": OrderedDict(w=weight, tied=weight, b=torch.ones(3)),
        "steps": [torch.arange(5), {"n": 7}, (1.5, None)],
        "lr": 0.1,
    }
    formats.write_file(state, tmp_path / "x.zarr")
    group = zarr.open_group(tmp_path / "x.zarr", use_consolidated=False)
    group.create_array("curves/loss", data=np.arange(3.0), attributes={"unit": "nats"})
    group.create_group("empty")
    group.attrs["run"] = "r7"
    group["model"].attrs["kind"] = "gpt"
    group["model/b"][0] = 5.0
    group["steps/0"].attrs["what"] = "counts"
    repo = committed_of(tmp_path / "x.zarr")
    found = repo.checkout()
    curves, empty = found.pop("curves"), found.pop("empty")
    state["model"]["b"][0] = 5.0
    assert difference(state, found) is None
    assert found["model"]["w"] is found["model"]["tied"]
    assert (curves["loss"].tolist(), empty) == ([0.0, 1.0, 2.0], {})
    seen = repo.resolve("main").zarr()
    assert seen.attrs["run"] == "r7"
    assert "ckptstore" not in seen.attrs
    assert seen["model"].attrs["kind"] == "gpt"
    assert seen["steps/0"].attrs["what"] == "counts"
    assert seen["curves/loss"].attrs["unit"] == "nats"
    # Only what has a form of its own in Zarr is there by key; the rest is pages of the state.
    entries = {
        entry.path
        for page in repo._catalog.pages(repo.resolve("main")._manifest)
        for entry in page.entries
    }
    assert entries == {"model/w", "model/tied", "model/b"}


def test_an_attribute_of_the_root_alone_comes_along(folder: Path) -> None:
    zarr.open_group(folder, use_consolidated=False).attrs["run"] = "r7"
    repo = committed_of(folder)
    assert repo.resolve("main").zarr().attrs["run"] == "r7"
    np.testing.assert_array_equal(repo.checkout()["g"]["w"], np.arange(12.0).reshape(4, 3))


def test_an_array_that_is_added_to_a_state_without_arrays_has_its_root(tmp_path: Path) -> None:
    formats.write_file({"lr": 0.1}, tmp_path / "x.zarr")
    zarr.open_group(tmp_path / "x.zarr", use_consolidated=False)["w"] = np.arange(3.0)
    repo = committed_of(tmp_path / "x.zarr")
    assert repo.resolve("main").zarr()["w"][1] == 1.0
    assert repo.checkout()["lr"] == 0.1
    formats.write_file(repo.resolve("main").zarr_values(), tmp_path / "again.zarr")
    assert formats.read_file(tmp_path / "again.zarr").state.flat is not None


def test_an_array_of_zarr_v2_that_is_added_comes_along(folder: Path) -> None:
    zarr.create_array(folder / "g" / "old", data=np.arange(5.0), zarr_format=2)
    repo = committed_of(folder)
    assert repo.checkout()["g"]["old"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(repo.checkout()["g"]["w"], np.arange(12.0).reshape(4, 3))


def test_a_tensor_that_becomes_an_array_of_zarr_v2_stays_a_tensor(tmp_path: Path) -> None:
    formats.write_file({"w": torch.zeros(3), "v": torch.ones(2)}, tmp_path / "x.zarr")
    shutil.rmtree(tmp_path / "x.zarr" / "w")
    zarr.create_array(tmp_path / "x.zarr" / "w", data=np.arange(5.0), zarr_format=2)
    state = committed_of(tmp_path / "x.zarr").checkout()
    assert difference(state, {"w": torch.arange(5.0).double(), "v": torch.ones(2)}) is None


def test_a_node_that_only_looks_like_one_of_the_state_is_another(tmp_path: Path) -> None:
    """In Zarr a name of dots is written with an escape."""
    folder = tmp_path / "x.zarr"
    formats.write_file({"...": np.arange(3.0)}, folder)
    shutil.copytree(folder / "%2E..", folder / "...")
    (folder / "..." / "c" / "0").write_bytes(np.array([7.0, 8.0, 9.0]).tobytes())
    with pytest.raises(ckptstore.InvalidInputError, match=r"'\.\.\.'"):
        committed_of(folder)


def test_a_file_whose_name_is_no_key_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "theirs", mode="w")["x"] = np.arange(3.0)
    (tmp_path / "theirs" / "a\nb").touch()
    repo = ckptstore.init(tmp_path / "store")
    with pytest.raises(ckptstore.InvalidInputError, match="is not a key of a Zarr store"):
        repo.commit(formats.read_file(tmp_path / "theirs").state)
    assert not any((tmp_path / "store" / "objects").rglob("*"))


@pytest.mark.parametrize(("name", "says"), [("DEPTH_MAX", "folders deep"), ("FILES_MAX", "files")])
def test_a_folder_without_end_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    monkeypatch.setattr(zarr_read, name, 3)
    with pytest.raises(ckptstore.InvalidInputError, match=f"more than 3 {says}"):
        formats.read_file(folder)


def test_what_is_deleted_from_a_folder_is_gone_from_the_state(folder: Path) -> None:
    shutil.rmtree(folder / "g" / "w")
    assert committed_of(folder).checkout() == {"lr": 0.1, "g": {}}
    shutil.rmtree(folder / "g")
    assert committed_of(folder).checkout() == {"lr": 0.1}


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_any_hierarchy_of_another_program_is_committed_as_it_is(
    tmp_path: Path, zarr_format: Any
) -> None:
    group = zarr.open_group(
        tmp_path / "theirs", mode="w", zarr_format=zarr_format, attributes={"by": "us"}
    )
    group.create_array("x", data=np.arange(1000.0), chunks=(300,), attributes={"unit": "m"})
    group.create_group("empty")
    repo = ckptstore.init(tmp_path / "store")
    made = repo.commit(formats.read_file(tmp_path / "theirs").state, step=4)
    assert made.step == 4
    np.testing.assert_array_equal(repo.checkout()["x"], np.arange(1000.0))
    seen = zarr.open_group(
        ckptstore.zarr.CheckpointStore(repo.url), mode="r", zarr_format=zarr_format
    )
    assert seen.attrs["by"] == "us"
    assert seen["x"].attrs["unit"] == "m"
    assert repo.verify().ok
    # Again, over what is there: what is no longer in the folder is gone.
    shutil.rmtree(tmp_path / "theirs" / "x")
    made = repo.commit(formats.read_file(tmp_path / "theirs").state)
    assert made.array_count == 0


BROKEN = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "another version": lambda text: re.sub(r'("zarr_format": ?)\d', r"\g<1>7", text),
    "a negative length": lambda text: text.replace("1000", "-1000"),
    "half an element": lambda text: text.replace("1000", "1000.5"),
    "no shape": lambda text: text.replace('"shape"', '"form"'),
}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("change", BROKEN)
def test_a_hierarchy_with_a_document_that_is_none_is_refused(
    tmp_path: Path, zarr_format: Any, change: str
) -> None:
    """Also where nothing else is wrong with it: it would be there without the array."""
    group = zarr.open_group(tmp_path / "theirs", mode="w", zarr_format=zarr_format)
    group.create_array("x", data=np.arange(1000.0), chunks=(300,))
    document = tmp_path / "theirs" / "x" / {2: ".zarray", 3: "zarr.json"}[zarr_format]
    document.write_text(BROKEN[change](document.read_text()))
    with pytest.raises(ckptstore.InvalidInputError, match=r"document|is not a JSON object"):
        formats.read_file(tmp_path / "theirs")


@pytest.mark.parametrize("what", ["a FIFO", "a link", "nothing"])
def test_what_takes_the_place_of_a_file_before_it_is_committed_is_refused(
    tmp_path: Path, what: str
) -> None:
    group = zarr.open_group(tmp_path / "theirs", mode="w")
    group.create_array("x", data=np.arange(1000.0), chunks=(300,))
    found = formats.read_file(tmp_path / "theirs").state
    chunk = tmp_path / "theirs" / "x" / "c" / "1"
    chunk.rename(tmp_path / "moved")
    if what == "a FIFO":
        os.mkfifo(chunk)
    elif what == "a link":
        chunk.symlink_to("../../../moved")
    repo = ckptstore.init("memory://")
    with pytest.raises(ckptstore.CkptStoreError, match=r"not a regular file|could not be read"):
        repo.commit(found)
    assert repo.log() == []


def test_a_file_that_changes_while_it_is_committed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = zarr.open_group(tmp_path / "theirs", mode="w")
    group.create_array("x", data=np.arange(100_000.0), chunks=(100_000,), compressors=None)
    found = formats.read_file(tmp_path / "theirs").state
    chunk = tmp_path / "theirs" / "x" / "c" / "0"
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    of, times = Digest.of, count(1)

    def touch(data: Any) -> Digest:
        os.utime(chunk, ns=(1, next(times)))
        return of(data)

    monkeypatch.setattr(Digest, "of", touch)
    with pytest.raises(ckptstore.InvalidInputError, match="was changed while it was read"):
        repo.commit(found)


def test_a_missing_chunk_is_zeros_as_zarr_has_it(tmp_path: Path) -> None:
    formats.write_file({"g": {"w": torch.ones(4, 3)}, "lr": 0.1}, tmp_path / "x.zarr")
    (tmp_path / "x.zarr" / "g" / "w" / "c" / "0" / "0").unlink()
    state = committed_of(tmp_path / "x.zarr").checkout()
    assert difference(state, {"g": {"w": torch.zeros(4, 3)}, "lr": 0.1}) is None


def test_a_chunk_of_another_length_is_refused_and_nothing_is_stored(
    folder: Path, tmp_path: Path
) -> None:
    chunk = folder / "g" / "w" / "c" / "0" / "0"
    whole = chunk.read_bytes()
    repo = ckptstore.init(tmp_path / "store")
    for data in (b"", whole[:-1], whole + b"0"):
        chunk.write_bytes(data)
        with pytest.raises(ckptstore.InvalidInputError, match="bytes"):
            repo.commit(formats.read_file(folder).state)
    assert repo.branches() == {}


def regular(steps: list[int]) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": steps}}


def _link(folder: Path) -> None:
    (folder / "g" / "w" / "c" / "0" / "0").unlink()
    (folder / "g" / "w" / "c" / "0" / "0").symlink_to("/etc/hostname")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _linked_folder(folder: Path) -> None:
    """With nothing in it that is refused anyway."""
    shutil.copytree(folder / "g", folder.parent / "outside")
    (folder / "h").symlink_to(folder.parent / "outside")


def _broken_node(folder: Path) -> None:
    zarr.open_group(folder, use_consolidated=False)["new"] = np.arange(3.0)
    (folder / "new" / "zarr.json").write_text("{}")


def _structure(node: Any) -> Any:
    return lambda folder: edited(
        folder / "zarr.json",
        lambda d: d["attributes"]["ckptstore"].update(structure=node),
    )


REFUSED = {
    "a link for a chunk": _link,
    "a pipe": _fifo,
    "a link for a folder": _linked_folder,
    "another array whose document is none": _broken_node,
    "no JSON": lambda folder: (folder / "zarr.json").write_text("{"),
    "a list": lambda folder: (folder / "zarr.json").write_text("[]"),
    "deep JSON": lambda folder: (folder / "zarr.json").write_text("[" * 100_000),
    "an unknown tag": _structure({"pickle": "x"}),
    "two tags": _structure({"tensor": "g/w", "dict": []}),
    "a type that nobody registered": _structure(
        {
            "dict": [
                ["g", {"dict": [["w", {"ndarray": "g/w"}]]}],
                ["x", {"type": "os.system", "value": 1}],
            ]
        }
    ),
    "NaN": _structure(float("nan")),
    "no document of a group that is a folder": lambda folder: (
        folder / "g" / "w" / "zarr.json"
    ).write_text("7"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_would_write_is_refused_by_name(folder: Path, name: str) -> None:
    REFUSED[name](folder)
    with pytest.raises(ckptstore.InvalidInputError, match=r"x\.zarr|type"):
        loaded(formats.read_file(folder).state)


OTHERS = {
    "a codec": lambda d: d["codecs"].append({"name": "zstd", "configuration": {"level": 1}}),
    "big-endian": lambda d: d["codecs"][0]["configuration"].update(endian="big"),
    "a fill value": lambda d: d.update(fill_value=1.0),
    "other chunks": lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[4, 2]),
    "other keys": lambda d: d["chunk_key_encoding"]["configuration"].update(separator="."),
    "negative zero for a fill value": lambda d: d.update(fill_value=-0.0),
    "a dtype that numpy lacks": lambda d: d.update(
        data_type="uint8",
        fill_value=0,
        codecs=[{"name": "bytes"}],
        attributes={"ckptstore_dtype": "float4_e2m1fn_x2"},
    ),
    "a transformer": lambda d: d.update(storage_transformers=[{"name": "x"}]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_array_whose_document_is_not_ours_comes_in_through_zarr(folder: Path, name: str) -> None:
    edited(folder / "g" / "w" / "zarr.json", OTHERS[name])
    found = formats.read_file(folder).state
    assert isinstance(found, ZarrFiles)
    assert found.keys == ("g/w/c/0/0", "g/w/zarr.json", "g/zarr.json")
    assert found.flat is not None
    assert found.flat.arrays == {}


NEVER = {
    "chunks of nothing": lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[0, 3]),
    "another shape": lambda d: d.update(shape=[4, 3, 1]),
    "chunks without end": lambda d: d["chunk_grid"]["configuration"].update(
        chunk_shape=[float("inf"), 3]
    ),
    "chunks in fractions": lambda d: d["chunk_grid"]["configuration"].update(
        chunk_shape=[4.0, 3.0]
    ),
    "a length of 300 digits": lambda d: (
        d.update(shape=[10**300, 0]),
        d["chunk_grid"]["configuration"].update(chunk_shape=[10**300, 1]),
    ),
    "too many dimensions": lambda d: (
        d.update(shape=[1] * 65),
        d["chunk_grid"]["configuration"].update(chunk_shape=[1] * 65),
    ),
}


@pytest.mark.parametrize("name", NEVER)
def test_a_document_of_an_array_that_cannot_be_is_refused(folder: Path, name: str) -> None:
    edited(folder / "g" / "w" / "zarr.json", NEVER[name])
    with pytest.raises(ckptstore.InvalidInputError, match=r"'g/w' .*its (chunk )?shape is \["):
        formats.read_file(folder)


@pytest.mark.parametrize(
    ("change", "claimed"),
    [
        ({"data_type": "float32"}, 48),
        ({"shape": [10**15, 3], "chunk_grid": regular([10**15, 3])}, 24 * 10**15),
        ({"shape": [10**15, 3], "chunk_grid": regular([1, 3])}, 24),
    ],
    ids=["another dtype", "a huge chunk", "many chunks"],
)
def test_chunks_of_another_length_than_a_document_claims_are_refused_unread(
    folder: Path, change: dict[str, Any], claimed: int
) -> None:
    edited(folder / "g" / "w" / "zarr.json", lambda d: d.update(change))
    with pytest.raises(ckptstore.InvalidInputError, match=rf"w/c/0/0 has 96 .* of {claimed}\."):
        formats.read_file(folder)


@pytest.mark.parametrize("length", [10**10, 10**16])
def test_chunks_that_are_not_there_claim_no_memory(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "x.zarr"
    formats.write_file({"w": np.zeros(3, np.int8)}, folder)
    edited(folder / "w" / "zarr.json", lambda d: d.update(shape=[length], chunk_grid=regular([3])))
    assert isinstance(formats.read_file(folder).state, ZarrFiles)  # the first chunk is there
    for step in (1, length):
        edited(
            folder / "w" / "zarr.json",
            lambda d, step=step: d.update(shape=[length], chunk_grid=regular([step])),
        )
        shutil.rmtree(folder / "w" / "c", ignore_errors=True)
        assert isinstance(formats.read_file(folder).state, ZarrFiles)


def test_a_million_chunks_that_are_not_there_cost_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "x.zarr"
    formats.write_file({"w": np.zeros(3, np.int8)}, folder)
    edited(
        folder / "w" / "zarr.json",
        lambda d: d.update(shape=[10**6], chunk_grid=regular([1])),
    )
    shutil.rmtree(folder / "w" / "c")
    repo = ckptstore.init("memory://million-chunks")
    tracemalloc.start()
    made = repo.commit(formats.read_file(folder).state)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.array("w").nbytes == 10**6
    assert made.array("w")[5:7].tolist() == [0, 0]
    assert peak < 4 << 20  # with the modules that this imports


@given(data=st.data())
def test_any_range_of_an_array_is_read_from_its_chunks(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(st.lists(st.integers(1, 7), max_size=4).map(tuple))
    array = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    folder = tmp_path_factory.mktemp("out") / "x.zarr"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(zarr_folder, "CHUNK_BYTES", data.draw(st.sampled_from([2, 6, 20, 64])))
        formats.write_file({"w": array}, folder)
    lazy = formats.read_file(folder).state["w"]
    start = data.draw(st.integers(0, array.nbytes))
    found = bytearray(data.draw(st.integers(0, array.nbytes - start)))
    lazy.read_into(memoryview(found), start)
    assert bytes(found) == array.tobytes()[start : start + len(found)]
    shutil.rmtree(folder)


def test_a_name_that_no_folder_can_have_is_told_with_its_array(tmp_path: Path) -> None:
    with pytest.raises(ckptstore.InvalidInputError, match=r"The array 'éé.*255 bytes"):
        formats.write_file({"é" * 200: np.ones(3)}, tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize("change", [{"attributes": {"unit": "m"}}, {"dimension_names": None}])
def test_other_attributes_and_names_of_dimensions_are_kept(
    folder: Path, change: dict[str, Any]
) -> None:
    edited(folder / "g" / "w" / "zarr.json", lambda d: d.update(change))
    repo = committed_of(folder)
    metadata = repo.resolve("main").zarr()["g/w"].metadata.to_dict()
    assert metadata.items() >= change.items() or change == {"dimension_names": None}
    assert metadata.get("dimension_names") == change.get("dimension_names", ("w[0]", "w[1]"))
    state = {"g": {"w": np.arange(12.0).reshape(4, 3)}, "lr": 0.1}
    assert difference(state, repo.checkout()) is None


@pytest.mark.parametrize("change", [lambda d: d.update(storage_transformers=[])], ids=["empty"])
def test_what_zarr_python_writes_of_the_same_array_is_no_change(folder: Path, change: Any) -> None:
    edited(folder / "g" / "w" / "zarr.json", change)
    assert not isinstance(formats.read_file(folder).state, ZarrFiles)


def test_neither_torch_nor_zarr_is_imported(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, ckptstore; from ckptstore import formats\n"
        "repo = ckptstore.init(sys.argv[2]); repo.commit(formats.read_file(sys.argv[1]).state)\n"
        "formats.write_file(repo.checkout('main', lazy=True), sys.argv[3])\n"
        "assert not {'torch', 'zarr'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, folder, tmp_path / "store", tmp_path / "again.zarr"]
    subprocess.run(list(map(str, command)), check=True)
    assert (tmp_path / "again.zarr" / "zarr.json").read_bytes() == (
        folder / "zarr.json"
    ).read_bytes()


def test_a_hierarchy_goes_out_as_it_came_in(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "in.zarr", mode="w", attributes={"by": "us"})
    group.create_array("g/x", data=np.arange(1000), chunks=(90,), attributes={"unit": "m"})
    group.create_array("names", data=np.array(["a", "bc"], dtype=np.dtypes.StringDType()))
    repo = ckptstore.init(tmp_path / "store")
    made = repo.commit(formats.read_file(tmp_path / "in.zarr").state)
    formats.write_file(made.zarr_values(), tmp_path / "out.zarr")
    before, after = (list(zarr_read.keys(tmp_path / name)) for name in ("in.zarr", "out.zarr"))
    assert before == after
    for key in before:
        ours, theirs = (tmp_path / name / key for name in ("in.zarr", "out.zarr"))
        assert ours.read_bytes() == theirs.read_bytes()
    assert repo.commit(formats.read_file(tmp_path / "out.zarr").state).new_bytes == 0
    with pytest.raises(ckptstore.InvalidInputError, match=r"\.zarr only"):
        formats.write_file(made.zarr_values(), tmp_path / "out.npz")
    with pytest.raises(
        ckptstore.InvalidInputError, match="'names' has elements that only Zarr knows"
    ):
        formats.write_file(repo.checkout("main", lazy=True), tmp_path / "out.npz")
    assert repo.checkout("main")["names"].tolist() == ["a", "bc"]


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("is_array", [False, True], ids=["group", "array"])
def test_an_exported_hierarchy_is_replaced_unless_it_holds_other_files(
    tmp_path: Path, version: Any, is_array: bool
) -> None:
    """Nothing marks it as an export, as its files are those that were committed."""
    options = {"zarr_format": version, "attributes": {"by": "us"}}
    if is_array:
        zarr.create_array(tmp_path / "in.zarr", data=np.ones((4, 4)), chunks=(2, 2), **options)
    else:
        group = zarr.open_group(tmp_path / "in.zarr", mode="w", **options)
        group.create_array("g/0", data=np.ones((4, 4)), chunks=(2, 2))
        group.create_array("g/scalar", data=np.array(1.0))
    out = tmp_path / "out.zarr"
    made = ckptstore.init("memory://").commit(formats.read_file(tmp_path / "in.zarr").state)
    for _ in range(2):
        formats.write_file(made.zarr_values(), out, overwrite=True)
    assert list(zarr_read.keys(out)) == list(zarr_read.keys(tmp_path / "in.zarr"))
    for name in ("notes.txt", "g/notes.txt", "lost/c/0", "g/c.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        with pytest.raises(ckptstore.InvalidInputError, match="holds more than an export"):
            formats.write_file(made.zarr_values(), out, overwrite=True)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "0").symlink_to(tmp_path)
    with pytest.raises(ckptstore.InvalidInputError, match="holds more than an export"):
        formats.write_file(made.zarr_values(), out, overwrite=True)


def test_a_state_has_no_values_to_write(tmp_path: Path) -> None:
    assert ckptstore.init(tmp_path / "store").commit({"w": np.ones(3)}).zarr_values() is None


@pytest.mark.parametrize("is_large", [True, False], ids=["large", "small"])
def test_a_state_with_what_a_session_added_goes_out_and_comes_in_as_it_is(
    tmp_path: Path, is_large: bool
) -> None:
    length = 20_000 if is_large else 20
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit({"w": torch.arange(float(length)), "l": [np.ones(3), torch.ones(2)], "lr": 0.1})
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.attrs["run"] = "r7"
        loss = group.create_array("curves/loss", data=np.arange(30.0), chunks=(7,))
        loss.attrs["unit"] = "nats"
        group["l/1"][0] = 4.0
        made = session.commit()
    formats.write_file(made.zarr_values(), tmp_path / "x.zarr")
    plain, live = zarr.open_group(tmp_path / "x.zarr", mode="r"), made.zarr()
    assert plain.attrs["run"] == "r7"
    assert dict(plain.members(max_depth=None)).keys() == dict(live.members(max_depth=None)).keys()
    for path, member in live.members(max_depth=None):
        assert plain[path].attrs.asdict() == member.attrs.asdict()
        if isinstance(member, zarr.Array):
            assert plain[path].metadata == member.metadata
            np.testing.assert_array_equal(plain[path][...], member[...])
    again = repo.commit(formats.read_file(tmp_path / "x.zarr").state)
    assert again._manifest.structure == made._manifest.structure
    assert again.arrays == made.arrays
    assert again.new_bytes < 4000  # pages, for what a bundle and the root's document are now
    assert difference(repo.checkout("main~1"), repo.checkout("main")) is None
    formats.write_file(again.zarr_values(), tmp_path / "y.zarr")
    assert repo.commit(formats.read_file(tmp_path / "y.zarr").state).new_bytes == 0


def _attributed(group: zarr.Group, path: str) -> None:
    group[path].attrs["note"] = path


def _deleted(group: zarr.Group, path: str) -> None:
    del group[path]


def _added(group: zarr.Group, path: str) -> None:
    home = path if isinstance(group[path], zarr.Group) else path.rpartition("/")[0]
    group.create_array(f"{home}/new".lstrip("/"), data=np.arange(7), chunks=(3,), overwrite=True)


def _rewritten(group: zarr.Group, path: str) -> None:
    member = group[path]
    if isinstance(member, zarr.Array):
        member[...] = member[...]


# numpy, when zarr-python compares a chunk of signalling NaNs with the fill value
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@given(
    state=st.dictionaries(KEYS, STATES, min_size=1, max_size=4),
    edits=st.lists(
        st.tuples(st.sampled_from([_attributed, _deleted, _added, _rewritten]), st.integers(0, 10)),
        min_size=1,
        max_size=4,
    ),
)
def test_any_state_with_any_edits_goes_out_and_comes_in_as_it_is(
    state: dict[Any, Any], edits: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(state)
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        for edit, number in edits:
            paths = sorted(path for path, _ in group.members(max_depth=None))
            if paths:
                edit(group, paths[number % len(paths)])
        made = session.commit()
    folder = tmp_path_factory.mktemp("out") / "x.zarr"
    formats.write_file(made.zarr_values(), folder)
    again = repo.commit(formats.read_file(folder).state)
    assert difference(repo.checkout(made.id), repo.checkout()) is None
    before, after = made.zarr(), again.zarr()
    assert {k: v for k, v in dict(before.attrs).items() if k not in ("id", "created")} == {
        k: v for k, v in dict(after.attrs).items() if k not in ("id", "created")
    }
    members = dict(after.members(max_depth=None))
    for path, member in before.members(max_depth=None):
        assert members.pop(path).metadata == member.metadata, path
    assert members == {}
    assert repo.verify().ok
    shutil.rmtree(folder)


@pytest.mark.parametrize("key", ["../out", "a/../../out", "./a", "a/..", "x" * 256])
def test_no_key_leads_out_of_the_folder(tmp_path: Path, key: str) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session("main") as session:
        session.store.set_sync(key, zarr.core.buffer.cpu.Buffer.from_bytes(b"out"))
        made = session.commit()
    with pytest.raises(ckptstore.InvalidInputError, match="path of a file"):
        formats.write_file(made.zarr_values(), tmp_path / "x.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_keys_below_keys_are_refused(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session("main") as session:
        for key in ("a", "a/b"):
            session.store.set_sync(key, zarr.core.buffer.cpu.Buffer.from_bytes(b"x"))
        made = session.commit()
    with pytest.raises(ckptstore.InvalidInputError, match="another one below it"):
        formats.write_file(made.zarr_values(), tmp_path / "x.zarr")
    assert not (tmp_path / "x.zarr").exists()


@pytest.mark.parametrize(("most", "values"), [(3, 10**6), (10**6, 60)], ids=["nodes", "values"])
def test_a_root_that_would_be_too_large_leaves_the_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, values: int
) -> None:
    monkeypatch.setattr(zarr_folder, "CONSOLIDATED_MAX", most)
    monkeypatch.setattr(canonical, "VALUES_MAX", values)
    state = {"a": {"b": np.arange(3.0), "c": np.arange(5)}, "d": np.ones(2)}
    formats.write_file(state, tmp_path / "x.zarr")
    root = json.loads((tmp_path / "x.zarr" / "zarr.json").read_bytes())
    assert "consolidated_metadata" not in root
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    np.testing.assert_array_equal(group["a/c"][:], np.arange(5))
    repo = ckptstore.init(f"memory://large-root-{most}")
    repo.commit(formats.read_file(tmp_path / "x.zarr").state)
    assert difference(repo.checkout(), state) is None
