"""Folders of torch.distributed.checkpoint read as torch does, for any writer and shards."""

from __future__ import annotations

import enum
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.formats import read_file
from ckptstore.formats.dcp import metadata as dcp_metadata
from ckptstore.formats.dcp import pickle as dcp_pickle
from ckptstore.formats.dcp.folder import ShardedArray
from tests.helpers import dcp_processes
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch"),
]


def save(state: dict[str, Any], folder: Path, *, in_background: bool = False) -> Path:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if in_background:
            dcp.async_save(state, checkpoint_id=folder).result()
        else:
            dcp.save(state, checkpoint_id=folder)
    return folder


def whole(folder: Path, tmp_path: Path) -> Any:
    """What torch itself makes of a folder."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, tmp_path / "whole.pt")
    return torch.load(tmp_path / "whole.pt", weights_only=True)


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that two processes wrote."""
    folder = tmp_path_factory.mktemp("processes") / "folder"
    command = [sys.executable, "-m", "tests.helpers.dcp_processes", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def trained() -> dict[str, Any]:
    """The state of a training, and all else that such a folder may hold."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, slots = get_state_dict(model, optimizer)
    return {
        "model": weights,
        "optimizer": slots,
        "step": 3,
        "list": [torch.ones(2), {"a": torch.zeros(0, 3), 5: torch.tensor(1.0)}, "x"],
        "plain": [1, 0.5, None, "x"],
        "tuple": (1, torch.ones(1)),
        "bfloat16": torch.ones(3, 5, dtype=torch.bfloat16),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(600.0)[100:110],
        "a": {"b.c": torch.ones(1)},
    }


@pytest.mark.parametrize("in_background", [False, True], ids=["save", "async_save"])
def test_the_state_of_a_training_is_what_torch_reads(tmp_path: Path, in_background: bool) -> None:
    folder = save(trained(), tmp_path / "folder", in_background=in_background)
    assert difference(whole(folder, tmp_path), committed(folder)) is None
    assert read_file(folder).meta == {"file": "folder"}


def test_what_was_empty_in_a_list_is_none(tmp_path: Path) -> None:
    """It was not saved; torch itself cannot read such a folder."""
    folder = save({"list": [{}, torch.ones(2), {}]}, tmp_path / "folder")
    assert bits_of(read_file(folder).state).keys() == {"list/1"}
    assert committed(folder)["list"][0] is None


def test_shards_of_two_processes_are_put_together(sharded: Path, tmp_path: Path) -> None:
    assert len(list(sharded.glob("*.distcp"))) == 2
    found = read_file(sharded).state
    assert isinstance(found["model"]["columns"], ShardedArray)
    state = committed(sharded)
    assert state.keys() == {"model", "step", "rank 0", "rank 1"}
    names = ["rows", "columns", "both", "one row", "bfloat16"]
    expected = {name: dcp_processes.whole(name) for name in names}
    assert bits_of(state["model"]) == bits_of(expected)
    assert difference(whole(sharded, tmp_path), state) is None


def test_any_part_of_a_sharded_array_can_be_read(sharded: Path) -> None:
    for name in ("rows", "columns", "bfloat16"):
        array = read_file(sharded).state["model"][name]
        data = bits_of([dcp_processes.whole(name)])["0"][2]
        chosen = random.Random(0)
        for _ in range(100):
            start, end = sorted(chosen.choices(range(len(data) + 1), k=2))
            buffer = bytearray(end - start)
            array.read_into(memoryview(buffer), start)
            assert buffer == data[start:end]


@given(data=st.data())
def test_boxes_are_a_tensor_exactly_when_they_fill_it_once(data: st.DataObject) -> None:
    """Cut a box at random; then move, drop or repeat one of the parts."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    parts = [((0,) * len(shape), shape)]
    for _ in range(data.draw(st.integers(0, 5))):
        origin, lengths = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        axis = data.draw(st.integers(0, len(shape) - 1))
        cut = data.draw(st.integers(0, lengths[axis]))
        first, second = list(lengths), list(lengths)
        first[axis], second[axis] = cut, lengths[axis] - cut
        moved = list(origin)
        moved[axis] += cut
        parts += [(origin, tuple(first)), (tuple(moved), tuple(second))]
    parts = [part for part in parts if math.prod(part[1])]
    change = data.draw(st.sampled_from(["none", "drop", "grow", "move"]))
    number = data.draw(st.integers(0, len(parts) - 1))
    origin, lengths = parts[number]
    if change == "drop":
        del parts[number]
    elif change == "move":
        parts[number] = tuple(data.draw(st.integers(0, 3)) for _ in shape), lengths
    elif change == "grow":
        parts[number] = origin, tuple(data.draw(st.integers(1, 6)) for _ in shape)
    times = torch.zeros(shape, dtype=torch.int64)
    inside = True
    for origin, lengths in parts:
        box = tuple(
            slice(begin, begin + length) for begin, length in zip(origin, lengths, strict=True)
        )
        inside &= tuple(times[box].shape) == lengths
        times[box] += 1
    if not inside:
        return  # refused before this is asked
    place = dcp_metadata.Place("x", 0, 0)
    shards = tuple(dcp_metadata.Shard(*part, place) for part in parts)
    if bool((times == 1).all()):
        dcp_metadata._check_filled("w", shape, shards)
    else:
        with pytest.raises(ValueError, match="do not fill"):
            dcp_metadata._check_filled("w", shape, shards)


# What a folder may not be


def change(folder: Path, edit: Callable[[Any], object]) -> None:
    """Edit the metadata of a folder as the objects that it is made of."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edited = edit(metadata)
    path.write_bytes(pickle.dumps(metadata if edited is None else edited))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of one small tensor and one value."""
    return save({"w": torch.arange(6.0).reshape(2, 3), "step": 3}, tmp_path / "folder")


@pytest.fixture
def shards(sharded: Path, tmp_path: Path) -> Path:
    """A copy of what two processes wrote."""
    return Path(shutil.copytree(sharded, tmp_path / "shards"))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "..", ".", "", "a/b", "x\0", "link", "folder", "fifo", "none"]
)
def test_a_file_that_is_not_one_in_the_folder_is_refused(folder: Path, name: str) -> None:
    """The data is there each time, outside of the folder or by a link."""
    shutil.copy(folder / "__0_0.distcp", folder.parent / "x")
    (folder / "link").symlink_to(folder / "__0_0.distcp")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")

    def edit(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    change(folder, edit)
    with pytest.raises(CkptStoreError, match="folder"):
        read_file(folder)


def test_metadata_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / ".metadata").rename(folder.parent / "metadata")
    (folder / ".metadata").symlink_to("../metadata")
    with pytest.raises(CkptStoreError, match="metadata"):
        read_file(folder)


def _tensor(metadata: Any) -> Any:
    return metadata.state_dict_metadata["w"]


def _info(metadata: Any, name: str = "w") -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def _chunk(metadata: Any) -> Any:
    return _tensor(metadata).chunks[0]


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a list": (lambda found: [1], "Metadata is expected"),
    "a hole": (lambda found: _tensor(found).chunks.clear(), "do not fill"),
    "larger": (lambda found: setattr(_tensor(found), "size", torch.Size([3, 3])), "do not fill"),
    "huge": (lambda found: setattr(_tensor(found), "size", torch.Size([2**61, 3])), "do not fill"),
    "beyond": (
        lambda found: setattr(_chunk(found), "sizes", torch.Size([2, 4])),
        "beyond its shape",
    ),
    "dimensions": (
        lambda found: setattr(_chunk(found), "offsets", torch.Size([0])),
        "beyond its shape",
    ),
    "a number": (lambda found: setattr(_chunk(found), "sizes", 5), "where a Record"),
    "many": (lambda found: setattr(_tensor(found), "size", torch.Size([1] * 65)), "dimensions"),
    "nowhere": (lambda found: found.storage_data.clear(), "has no place for"),
    "dtype": (
        lambda found: setattr(_tensor(found).properties, "dtype", torch.int32),
        "something else than the shard",
    ),
    "quantized": (
        lambda found: setattr(_tensor(found).properties, "dtype", torch.quint8),
        "no checkpoint can hold",
    ),
    "before": (lambda found: setattr(_info(found), "offset", -5), "should hold"),
    "behind": (lambda found: setattr(_info(found), "offset", 2**50), "should hold"),
    "long": (lambda found: setattr(_info(found), "length", 2**50), "should hold"),
    "negative": (lambda found: setattr(_info(found), "length", -1), "should hold"),
    "short": (lambda found: setattr(_info(found), "length", 500), "is cut short"),
    "a text": (lambda found: setattr(_info(found), "length", "5"), "where a int"),
    "another": (
        lambda found: setattr(_info(found), "offset", _info(found, "step").offset),
        "distcp|something else",
    ),
    "packed": (lambda found: setattr(_info(found), "transform_descriptors", ["zstd"]), "zstd"),
    "deep": (lambda found: found.planner_data.update(w=("a",) * 101), "has the path"),
    "no path": (lambda found: found.planner_data.update(w=()), "has the path"),
    "odd keys": (lambda found: found.planner_data.update(w=("a", 1.5)), "has the path"),
    "long list": (lambda found: found.planner_data.update(w=("a", 2**40)), "no list has"),
    "minus one": (lambda found: found.planner_data.update(w=("a", -1)), "no list has"),
    "both": (
        lambda found: found.planner_data.update(w=("a", 0), step=("a", "b")),
        "no list has",
    ),
    "one place": (lambda found: found.planner_data.update(w=("step",)), "another value"),
    "within": (lambda found: found.planner_data.update(step=("w", "b")), "another value"),
    "a root": (lambda found: found.planner_data.update(w=(0,), step=(1,)), "names of its values"),
    "no plan": (lambda found: setattr(found, "planner_data", [1]), "where a dict"),
}


@pytest.mark.parametrize("name", EDITS)
def test_metadata_that_is_not_right_is_refused(folder: Path, name: str) -> None:
    edit, message = EDITS[name]
    change(folder, lambda metadata: edit(metadata) if name == "a list" else _done(edit(metadata)))
    with pytest.raises(InvalidInputError, match=message) as error:
        read_file(folder)
    assert str(folder) in str(error.value)


def _done(_: object) -> None:
    return None


def test_shards_that_overlap_are_refused(shards: Path) -> None:
    def edit(metadata: Any) -> None:
        """The second of rows and columns begins where the first does; its place is found."""
        for name in ("model.rows", "model.columns"):
            first, second = metadata.state_dict_metadata[name].chunks
            for index, info in list(metadata.storage_data.items()):
                if index.fqn == name and index.offset == second.offsets:
                    moved = torch.Size(int(length > 1) for length in first.offsets)
                    metadata.storage_data[replace(index, offset=moved)] = info
            second.offsets = torch.Size([0, 1])

    change(shards, edit)
    with pytest.raises(InvalidInputError, match=r"do not fill|beyond its shape|has no place for"):
        read_file(shards)


def test_a_folder_without_a_plan_has_the_names_as_they_are(folder: Path) -> None:
    change(folder, lambda metadata: setattr(metadata, "planner_data", None))
    assert committed(folder).keys() == {"w", "step"}


class Planted:
    """Pickles as a call that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_metadata_that_wants_to_run_code_is_refused(folder: Path, protocol: int) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data["x"] = Planted(folder / "ran")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=protocol))
    with pytest.raises(InvalidInputError, match=r"names posix\.mkdir"):
        read_file(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_metadata_of_any_protocol_is_read(folder: Path, protocol: int) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, protocol=protocol))
    assert committed(folder)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("protocol", range(2, 6))
def test_enumerations_are_read_as_each_python_writes_them(folder: Path, protocol: int) -> None:
    """By their values, or by getattr and their names, as 3.11.2 does and 3.11.7 does not."""

    class ByName(pickle.Pickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, enum.Enum):
                return getattr, (type(value), value.name)
            return NotImplemented

    metadata = pickle.loads((folder / ".metadata").read_bytes())
    with (folder / ".metadata").open("wb") as stream:
        ByName(stream, protocol).dump(metadata)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert committed(folder)["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_no_class_is_changed_by_what_metadata_says_of_its_classes(folder: Path) -> None:
    """BUILD sets attributes of whatever it is given; here of a class."""
    name = b"cckptstore.never\nX\n"
    metadata = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    for state in (b"}X\x01\0\0\0aK\x01s", b"N}X\x01\0\0\0aK\x01s\x86"):
        (folder / ".metadata").write_bytes(b"\x80\x02" + metadata + state + b"b.")
        with pytest.raises(InvalidInputError, match="not the metadata"):
            read_file(folder)
    (folder / ".metadata").write_bytes(b"\x80\x02" + name + b".")
    with pytest.raises(InvalidInputError, match=r"ckptstore\.never\.X"):
        read_file(folder)
    assert not hasattr(torch.distributed.checkpoint.metadata.Metadata, "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"}" * (dcp_pickle.OPERATIONS_MAX + 1), "operations", id="operations"),
        pytest.param(bytes(dcp_metadata.METADATA_BYTES_MAX + 1), "at most", id="bytes"),
    ],
)
def test_metadata_larger_than_any_is_refused(folder: Path, data: bytes, message: str) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x02" + data + b".")
    with pytest.raises(InvalidInputError, match=message):
        read_file(folder)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_file_that_is_cut_anywhere_is_refused(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    for length in sorted({*range(0, len(data), 11), *range(len(data) - 30, len(data))}):
        (folder / file).write_bytes(data[:length])
        with pytest.raises(InvalidInputError, match="folder"):
            read_file(folder)


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp"])
def test_a_file_with_other_bytes_is_read_or_refused(folder: Path, file: str) -> None:
    """A flipped byte may be a number of an array; whatever it is, nothing else happens."""
    data = bytearray((folder / file).read_bytes())
    chosen = random.Random(file)
    places = [place for place in range(len(data)) if data[place]]
    for place in chosen.sample(places, min(400, len(places))):
        former, data[place] = data[place], chosen.randrange(256)
        (folder / file).write_bytes(data)
        data[place] = former
        with suppress(CkptStoreError):
            bits_of(read_file(folder).state)


def test_a_folder_that_was_refused_leaves_the_repository_as_it_was(folder: Path) -> None:
    repo = ckptstore.init("memory://")
    (folder / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(InvalidInputError):
        repo.commit(read_file(folder).state)
    assert repo.usage().objects == 0
