"""Folders that are written for torch.distributed.checkpoint, which reads them as its own."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save, torch_save_to_dcp

import ckptstore
from ckptstore.arrays.lazy import LazyArray
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import read_file, write_file
from ckptstore.formats.dcp import save as dcp_save
from ckptstore.testing.strategies import arrays
from tests.helpers.equality import difference
from tests.helpers.flat_files import bits_of, committed
from tests.helpers.layouts import state_of_rank, training, whole_state
from tests.helpers.ranks import checked, on_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch"),
]


def saved(state: dict[str, Any], folder: Path) -> Path:
    """The folder that torch itself writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)
    return folder


def loaded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder)
    return state


def as_torch_reads(folder: Path) -> Any:
    """The state that torch's own converter makes of a folder."""
    file = folder.with_suffix(".converted")
    dcp_to_torch_save(folder, file)
    return torch.load(file, weights_only=False)


def exported(state: Any, path: Path) -> Path:
    """A folder written from a checkpoint."""
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(state)
    write_file(repo.checkout(lazy=True), path)
    return path


def raw(dtype: str) -> torch.Tensor:
    """A tensor of this dtype with all kinds of bits."""
    count = 6 * ITEM_BYTES[dtype]
    numbers = torch.arange(count, dtype=torch.uint8) * 37 % (2 if dtype == "bool" else 251)
    return numbers.view(getattr(torch, dtype))


def trained() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 3,
        "list": [torch.ones(2), {"a": torch.zeros(0, 3)}, "x", [[torch.ones(1)], 5]],
        "plain": [1, 0.5, None, [2], "x"],
        "tuple": (1, torch.ones(1)),
        "numpy": np.arange(3),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "channels": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "number": torch.tensor(1.5),
        "a": {"b.c": torch.ones(1)},
        "dtype": torch.bfloat16,
    }


def test_torch_reads_what_was_committed(tmp_path: Path) -> None:
    state = trained()
    folder = exported(state, tmp_path / "x.dcp")
    expected = as_torch_reads(saved(state, tmp_path / "torch"))
    assert difference(as_torch_reads(folder), expected) is None
    fresh = trained()
    for tensor in [*fresh["model"].values(), *fresh["optimizer"]["state"][0].values()]:
        tensor.zero_()
    assert difference(loaded(fresh, folder), state) is None


def test_the_metadata_is_that_of_torch(tmp_path: Path) -> None:
    """The same names, keys, shapes, dtypes and indices, in the same order."""
    state = trained()
    ours, theirs = (
        dcp.FileSystemReader(folder).read_metadata()
        for folder in (exported(state, tmp_path / "x.dcp"), saved(state, tmp_path / "torch"))
    )
    assert ours.planner_data == theirs.planner_data
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert ours.version == theirs.version


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_dtype_keeps_its_bits(tmp_path: Path, dtype: str) -> None:
    tensor = raw(dtype)
    folder = exported({"w": tensor, "m": {"row": tensor.reshape(2, 3)}}, tmp_path / "x.dcp")
    state = {"w": torch.zeros_like(tensor), "m": {"row": torch.zeros_like(tensor.reshape(2, 3))}}
    found = loaded(state, folder)
    for value in (found["w"], found["m"]["row"], as_torch_reads(folder)["w"]):
        assert value.dtype is tensor.dtype
        assert value.reshape(-1).view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def test_a_folder_of_torch_save_to_dcp_and_one_of_ours_are_one_state(tmp_path: Path) -> None:
    state = trained() | {"channels": torch.rand(2, 3)}
    torch.save(state, tmp_path / "x.pt")
    torch_save_to_dcp(tmp_path / "x.pt", tmp_path / "torch")
    expected = committed(tmp_path / "torch")
    write_file(read_file(tmp_path / "torch").state, tmp_path / "again.dcp")
    assert difference(committed(tmp_path / "again.dcp"), expected) is None


def test_empty_dicts_are_left_out_as_torch_does(tmp_path: Path) -> None:
    """With the name of one, dcp.load would take the folder for one of torch 2.3."""
    state = {"empty": {}, "plain": {"a": {"n": 1}}, "w": torch.ones(2)}
    folder = exported(state, tmp_path / "x.dcp")
    assert difference(committed(folder), committed(saved(state, tmp_path / "torch"))) is None
    fresh = {"empty": {}, "plain": {"a": {"n": 0}}, "w": torch.zeros(2)}
    assert difference(loaded(fresh, folder), state) is None


def test_tied_tensors_are_written_once_and_tied_again(tmp_path: Path) -> None:
    shared = torch.arange(3.0)
    state = {"first": shared, "second": {"again": shared}, "other": torch.ones(3)}
    folder = exported(state, tmp_path / "x.dcp")
    assert difference(as_torch_reads(folder), state) is None
    found = committed(folder)
    assert difference(found, state) is None
    assert found["first"] is found["second"]["again"]
    assert len({info.offset for info in _places(folder)}) == len(_places(folder)) - 1


def _places(folder: Path) -> list[Any]:
    return list(dcp.FileSystemReader(folder).read_metadata().storage_data.values())


KEYS = st.text(max_size=3) | st.sampled_from(["a", "a.b", "b"]) | st.integers(0, 3)
PLAIN = st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=3)
STATES = st.dictionaries(
    KEYS,
    st.recursive(
        arrays() | PLAIN,
        lambda below: (
            st.lists(below, max_size=3)
            | st.tuples(below)
            | st.dictionaries(KEYS, below, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@settings(max_examples=max(20, settings().max_examples // 4))
@given(state=STATES)
def test_a_state_is_read_as_it_was_or_refused(
    tmp_path_factory: pytest.TempPathFactory, state: dict[Any, Any]
) -> None:
    path = tmp_path_factory.mktemp("state") / "x.dcp"
    try:
        names = set(flatten_state_dict(state)[0])
    except ValueError:  # two values have one name
        with pytest.raises(InvalidInputError, match="have the name"):
            write_file(state, path)
        return
    write_file(state, path)
    assert names == dcp.FileSystemReader(path).read_metadata().state_dict_metadata.keys()
    assert bits_of(read_file(path).state) == bits_of(with_texts(state))


def with_texts(value: Any) -> Any:
    """A state with texts as keys of the dicts that torch looks into."""
    if isinstance(value, dict):
        return {str(key): with_texts(item) for key, item in value.items()}
    return [with_texts(item) for item in value] if is_opened(value) else value


def is_opened(value: Any) -> bool:
    return isinstance(value, list) and any(
        isinstance(item, dict | torch.Tensor) or is_opened(item) for item in value
    )


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": 1}, "a.b": 2}, r"have the name 'a\.b'"),
        ({1: 1, "1": 2}, "have the name '1'"),
        ([torch.ones(1)], "holds dicts alone"),
        (torch.ones(1), "holds dicts alone"),
    ],
    ids=["dots", "numbers", "a list", "a tensor"],
)
def test_what_has_no_form_is_refused(tmp_path: Path, state: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        write_file(state, tmp_path / "x.dcp")
    assert list(tmp_path.iterdir()) == []


class Counted(LazyArray):
    """An array in C order that notes how much is read at once."""

    def __init__(self, elements: int) -> None:
        self.kind, self.dtype, self.shape, self.identity = "tensor", "float32", (elements,), None
        self.most = 0

    def read_into(self, buffer: memoryview, start: int) -> None:
        self.most = max(self.most, len(buffer))
        buffer[:] = bytes(len(buffer))


def test_a_large_tensor_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    array = Counted(16 << 20)
    write_file({"w": array}, tmp_path / "x.dcp")
    assert array.most <= 16 << 20  # of 64 MiB
    assert not loaded({"w": torch.ones(16 << 20)}, tmp_path / "x.dcp")["w"].any()


def test_an_export_is_replaced_and_a_folder_with_more_is_not(tmp_path: Path) -> None:
    folder = exported({"w": torch.ones(3)}, tmp_path / "x.dcp")
    write_file({"w": torch.zeros(3)}, folder, overwrite=True)
    assert not loaded({"w": torch.ones(3)}, folder)["w"].any()
    (folder / "notes.txt").touch()
    with pytest.raises(InvalidInputError, match="holds more than an export"):
        write_file({"w": torch.zeros(3)}, folder, overwrite=True)


def test_a_folder_that_fails_midway_does_not_appear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dcp_save.pickle, "dump", fail)  # after all values
    with pytest.raises(ckptstore.StorageError, match="No space left"):
        write_file({"w": torch.ones(3)}, tmp_path / "x.dcp")
    assert list(tmp_path.iterdir()) == []


def save_on_ranks(folder: str) -> None:
    dcp.save(state_of_rank(), checkpoint_id=folder)


def sorted_like(value: Any, other: Any) -> Any:
    """The same with keys in the order of another state; torch has that in which ranks saved."""
    if isinstance(value, list):
        return [sorted_like(item, one) for item, one in zip(value, other, strict=True)]
    if isinstance(value, dict):
        assert value.keys() == other.keys()
        return {key: sorted_like(value[key], item) for key, item in other.items()}
    return value


def load_on_ranks(folder: str) -> None:
    """Load the shards of this rank, and compare them with those of the whole."""
    state, expected = state_of_rank(is_fresh=True), state_of_rank()
    for one in (state, expected):
        del one["lists"][1]["empty"]  # a value of its own, of another type
    dcp.load(state, checkpoint_id=folder)
    shards, found = expected.pop("model"), state.pop("model")
    for name, shard in shards.items():
        assert torch.equal(found[name].to_local(), shard.to_local()), name
    assert difference(state, expected) is None


def test_shards_of_four_ranks_come_back_on_two(tmp_path: Path) -> None:
    checked(on_ranks(4, save_on_ranks, str(tmp_path / "x")))
    repo = ckptstore.init(tmp_path / "store")
    repo.commit(read_file(tmp_path / "x").state)
    expected = whole_state()
    assert difference(sorted_like(repo.checkout(), expected), expected) is None
    write_file(repo.checkout(lazy=True), tmp_path / "y.dcp")
    checked(on_ranks(2, load_on_ranks, str(tmp_path / "y.dcp")))


def test_a_training_in_shards_goes_on_from_an_export(tmp_path: Path) -> None:
    """Saved by StoreWriter on three ranks, loaded by torch alone on two, weights and AdamW."""
    from ckptstore.integrations.dcp import StoreWriter

    url = ckptstore.init(tmp_path / "store").url

    def save() -> None:
        dcp.save(training("fsdp", steps=2), storage_writer=StoreWriter(url))

    def load(folder: str) -> None:
        state = training("fsdp", steps=0)
        dcp.load(state, checkpoint_id=folder)
        expected = ckptstore.open(url).checkout()
        for key, weights in state["model"].items():
            assert torch.equal(weights.full_tensor(), expected["model"][key])
        for key, slots in state["optimizer"]["state"].items():
            for name, slot in slots.items():
                full = slot.full_tensor() if hasattr(slot, "full_tensor") else slot
                assert torch.equal(full, expected["optimizer"]["state"][key][name])

    checked(on_ranks(3, save))
    write_file(ckptstore.open(url).checkout(lazy=True), tmp_path / "y.dcp")
    checked(on_ranks(2, partial(load, str(tmp_path / "y.dcp"))))
