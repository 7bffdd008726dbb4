"""The order of dimensions in memory: what is committed comes back with its strides (ADR 0048)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore.commit.staging import Staging
from ckptstore.formats import read_file, write_file
from tests.compat.neutral import neutral
from tests.compat.plain_reader import PlainReader
from tests.helpers.equality import bits, difference

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 64 << 10


def _state() -> dict[str, Any]:
    """Small and large arrays in several orders of dimensions, and some that have none."""
    conv = torch.arange(300 * 8 * 3 * 3, dtype=torch.float32).reshape(300, 8, 3, 3)
    video = torch.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)
    last = torch.channels_last
    return {
        "conv": conv.to(memory_format=last),
        "bias": torch.arange(5.0),
        "one by one": torch.randn(64, 32, 1, 1).to(memory_format=last),
        "one channel": torch.randn(64, 1, 3, 3).to(memory_format=last),
        "video": video.to(memory_format=torch.channels_last_3d),
        "transposed": torch.randn(300, 200, dtype=torch.bfloat16).t(),
        "complex": torch.randn(7, 5, 3, dtype=torch.complex64).permute(2, 0, 1),
        "half complex": torch.ones(3, 4, dtype=torch.float16).view(torch.complex32).t(),
        "fortran": np.asfortranarray(np.arange(40_000.0).reshape(200, 200)),
        "permuted": np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 2, 0),
    }


def _strides(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.stride() if isinstance(value, torch.Tensor) else value.strides
        for name, value in state.items()
    }


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    return ckptstore.init(tmp_path / "store", chunk_size=CHUNK)


def test_strides_come_back_with_the_bits(repo: ckptstore.Repository) -> None:
    state = _state()
    repo.commit(state)
    found = repo.checkout()
    assert difference(state, found) is None
    assert _strides(found) == _strides(state)
    assert repo.verify().ok
    orders = {info.path: info.order for info in repo.resolve("main").arrays}
    assert orders["conv"] == (0, 2, 3, 1)
    assert orders["fortran"] == (1, 0)
    assert orders["bias"] is None


def test_a_save_in_the_background_keeps_strides_also_where_they_change(
    repo: ckptstore.Repository,
) -> None:
    staging, state = Staging(), _state()
    repo.commit(staging.copy(state))
    assert _strides(repo.checkout()) == _strides(state)
    square = torch.arange(16.0).reshape(4, 4)
    repo.commit(staging.copy({"w": square}))
    repo.commit(staging.copy({"w": square.t()}))
    assert repo.checkout()["w"].equal(square.t())
    assert repo.checkout()["w"].stride() == (1, 4)


@given(
    shape=st.lists(st.sampled_from([1, 1, 2, 3, 5]), min_size=1, max_size=5),
    data=st.data(),
    is_torch=st.booleans(),
)
def test_any_order_of_any_dimensions_comes_back(
    shape: list[int], data: st.DataObject, *, is_torch: bool
) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    stored: Any = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    array = torch.from_numpy(stored).permute(order) if is_torch else stored.transpose(order)
    repo = ckptstore.init("memory://")
    checkpoint = repo.commit({"a": array})
    found = repo.checkout()["a"]
    assert difference(array, found) is None
    assert _strides({"a": found}) == _strides({"a": array})
    assert difference(array, checkpoint.array("a")[...]) is None


def test_a_view_with_gaps_and_an_expanded_one_come_back_in_c_order(
    repo: ckptstore.Repository,
) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "gaps": base[:, ::2],
        "expanded": torch.arange(3.0).expand(2, 3),
        "narrow": base.t()[1:],
        "reversed": np.arange(6.0)[::-1],
        "no elements": torch.empty(2, 0, 3).permute(2, 1, 0),
    }
    repo.commit(state)
    found = repo.checkout()
    assert difference(state, found) is None
    assert all(info.order is None for info in repo.resolve("main").arrays)
    for name, value in found.items():
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        assert array.flags.c_contiguous, name


def test_an_existing_array_of_other_strides_is_filled_by_value(repo: ckptstore.Repository) -> None:
    state = _state()
    repo.commit(state)
    into = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        if isinstance(value, torch.Tensor)
        else np.zeros(value.shape, value.dtype)
        for name, value in state.items()
        if name != "half complex"  # torch.zeros warns of it
    }
    strides, ids = _strides(into), {name: id(value) for name, value in into.items()}
    repo.checkout(into=into, exclude="half complex")
    del state["half complex"]
    assert difference(state, into) is None
    assert (_strides(into), {name: id(value) for name, value in into.items()}) == (strides, ids)


def test_a_module_in_c_order_is_filled_and_follows(repo: ckptstore.Repository) -> None:
    trained = torch.nn.Conv2d(16, 300, 3).to(memory_format=torch.channels_last)
    served = torch.nn.Conv2d(16, 300, 3)
    repo.commit({"model": trained.state_dict()})
    with repo.follow("main") as follower:
        follower.update(served)
        assert served.weight.equal(trained.weight)
        with torch.no_grad():
            trained.weight[0] += 1
        repo.commit({"model": trained.state_dict()})
        follower.update(served)
        assert served.weight.equal(trained.weight)
        plain = torch.nn.Conv2d(16, 300, 3)
        repo.commit({"model": plain.state_dict()})
        follower.update(served)
    assert served.weight.equal(plain.weight)
    assert served.weight.is_contiguous()


def test_parts_are_read_by_index_and_by_piece(repo: ckptstore.Repository) -> None:
    state = _state()
    checkpoint = repo.commit(state)
    for name, value in state.items():
        array = checkpoint.array(name)
        whole = bytearray(array.nbytes)
        for start, size in array.pieces():
            array.read_into(memoryview(whole)[start : start + size], start)
        if name == "half complex":
            continue
        assert bytes(whole) == bits(value)[2]
        index = (slice(None, None, 2), *[slice(1, None)] * (value.ndim - 1))
        assert difference(value[index], array[index]) is None, name


def test_zarr_reads_the_same_array(repo: ckptstore.Repository) -> None:
    state = _state()
    group = repo.commit(state).zarr()
    for name in ("conv", "one channel", "video", "complex"):
        array: Any = group[name]
        np.testing.assert_array_equal(array[...], state[name].numpy())
    for name in ("fortran", "permuted"):
        np.testing.assert_array_equal(np.asarray(group[name]), state[name])
    bits = np.asarray(group["transposed"]).view(np.uint16)
    np.testing.assert_array_equal(bits, state["transposed"].view(torch.uint16).numpy())


def test_an_array_written_to_through_zarr_has_the_other_elements_as_before(
    repo: ckptstore.Repository,
) -> None:
    state = _state()
    repo.commit(state)
    with repo.session() as session:
        group = zarr.open_group(session.store, mode="r+")
        array: Any = group["conv"]
        array[7, 3] = -1.0
        session.commit()
    state["conv"][7, 3] = -1.0
    assert difference(state, repo.checkout()) is None
    assert repo.verify().ok


@pytest.mark.parametrize("suffix", [".zarr", ".pt", ".npz", ".safetensors"])
def test_exports_hold_the_same_arrays(
    repo: ckptstore.Repository, tmp_path: Path, suffix: str
) -> None:
    state = {name: value for name, value in _state().items() if name != "half complex"}
    if suffix == ".npz":
        state = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    repo.commit(state)
    path = tmp_path / f"out{suffix}"
    write_file(repo.checkout(lazy=True), path)
    found = read_file(path).state
    again = ckptstore.init("memory://")
    again.commit(found)
    result = again.checkout()
    kinds = {name: torch.as_tensor(value) for name, value in state.items()}
    assert difference(kinds, {name: torch.as_tensor(result[name]) for name in kinds}) is None
    if suffix == ".pt":
        loaded = torch.load(path, weights_only=False)
        assert (
            _strides(loaded)
            == _strides(result)
            == _strides({**state, **{name: result[name] for name in ("fortran", "permuted")}})
        )


def test_files_of_other_tools_keep_their_order(repo: ckptstore.Repository, tmp_path: Path) -> None:
    state = {name: value for name, value in _state().items() if isinstance(value, torch.Tensor)}
    torch.save(state, tmp_path / "in.pt")
    repo.commit(read_file(tmp_path / "in.pt").state)
    assert difference(state, repo.checkout()) is None
    assert _strides(repo.checkout()) == _strides(state)
    fortran = np.asfortranarray(np.arange(40_000.0).reshape(200, 200))
    np.save(tmp_path / "in.npy", fortran)
    repo.commit(read_file(tmp_path / "in.npy").state)
    (found,) = repo.checkout().values() if isinstance(repo.checkout(), dict) else [repo.checkout()]
    np.testing.assert_array_equal(found, fortran)
    assert found.strides == fortran.strides


def test_a_diff_goes_by_values(repo: ckptstore.Repository) -> None:
    state = {name: value for name, value in _state().items() if name in ("conv", "video", "bias")}
    plain = {name: value.contiguous() for name, value in state.items()}
    repo.commit(state)
    repo.commit(plain)
    changed = repo.diff("main~1", "main", numeric=True)
    for change in changed.arrays:
        assert change.numbers is not None
        assert change.numbers.max_abs == 0.0
        assert change.numbers.changed_share == 0.0
    moved = {**state, "conv": state["conv"] + 2.0}
    assert moved["conv"].stride() == state["conv"].stride()
    repo.commit(moved)
    (change,) = (c for c in repo.diff("main~1", "main", numeric=True).arrays if c.path == "conv")
    assert change.numbers is not None
    assert change.numbers.max_abs == 2.0
    (change,) = repo.diff("main~2", "main", numeric=True).arrays
    assert change.numbers is not None
    assert change.numbers.changed_share == 1.0


def test_other_names_and_derived_branches_keep_the_order(repo: ckptstore.Repository) -> None:
    state = _state()
    repo.commit(state)
    repo.branch("tuned", include=["conv", "bias"], rename={"conv": "stem"})
    found = repo.checkout("tuned")
    assert found["stem"].stride() == state["conv"].stride()
    assert found["stem"].equal(state["conv"])
    again = ckptstore.open(repo.url)
    assert again.resolve("tuned").array("stem")[5].equal(state["conv"][5])


def test_a_checkpoint_read_lazily_is_committed_in_the_same_order(
    repo: ckptstore.Repository,
) -> None:
    state = _state()
    repo.commit(state)
    second = repo.commit(repo.checkout(lazy=True))
    assert second.new_bytes == 0
    assert _strides(repo.checkout()) == _strides(state)


def test_the_same_values_in_two_orders_are_stored_twice_and_in_one_order_once(
    repo: ckptstore.Repository,
) -> None:
    weight = torch.randn(300, 8, 3, 3)
    last = weight.to(memory_format=torch.channels_last)
    repo.commit({"w": weight})
    assert repo.commit({"w": last}).new_bytes > weight.nbytes
    step = repo.commit({"w": last.clone(), "step": 1})
    assert step.new_bytes < CHUNK
    # A transposed view has the bytes of what it is a view of.
    square = torch.randn(200, 300)
    assert repo.commit({"w": square, "t": square.t()}).new_bytes < 1.5 * square.nbytes


def test_tied_arrays_stay_tied(repo: ckptstore.Repository) -> None:
    weight = torch.randn(30, 40).t()
    repo.commit({"a": weight, "b": weight})
    found = repo.checkout()
    assert found["a"] is found["b"]
    assert found["a"].stride() == weight.stride()


def test_only_checkpoints_with_such_arrays_have_the_newer_format(
    repo: ckptstore.Repository,
) -> None:
    reader = PlainReader(repo.url)
    plain = repo.commit({"w": torch.randn(3, 4), "row": torch.randn(1, 4), "n": np.ones((3, 1))})
    assert reader.manifest(plain.id)["format"] == 1
    turned = repo.commit({"w": torch.randn(3, 4).t(), "b": torch.ones(2)})
    assert reader.manifest(turned.id)["format"] == 2
    assert repo.branch("b", include="b").id != turned.id
    assert reader.manifest(repo.resolve("b").id)["format"] == 1


def test_a_reader_written_from_the_document_reads_it(repo: ckptstore.Repository) -> None:
    state = _state()
    del state["half complex"]
    repo.commit(state)
    reader = PlainReader(repo.url)
    assert neutral(reader.state(reader.manifest(repo.resolve("main").id))) == neutral(state)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "order",
    [[0, 1], [0, 0], [1], [1, 0, 2], [1, -1], ["1", 0], [True, False], None, {}, [1, 2**70]],
)
def test_a_false_order_is_refused(repo: ckptstore.Repository, order: object) -> None:
    from ckptstore.documents.page import ArrayEntry
    from ckptstore.errors import CorruptError

    entry: dict[str, Any] = {"path": "w", "dtype": "float32", "shape": [2, 3], "digest": "0" * 64}
    entry |= {"offset": 0, "order": order}
    with pytest.raises(CorruptError):
        ArrayEntry.from_json(entry, name="a page", bundle_bytes=24)
    del entry["offset"], entry["digest"]
    entry |= {"chunk_shape": [3, 1], "digests": ["0" * 64] * 2}
    with pytest.raises(CorruptError):
        ArrayEntry.from_json(entry, name="a page", bundle_bytes=0)
    entry["order"] = [1, 0]
    made = ArrayEntry.from_json(entry, name="a page", bundle_bytes=0)
    assert [chunk.index for _, chunk in made.grid()] == [
        (slice(0, 3), slice(0, 1)),
        (slice(0, 3), slice(1, 2)),
    ]


def test_every_order_of_four_dimensions_has_its_chunks_where_zarr_looks(
    repo: ckptstore.Repository,
) -> None:
    """Large enough for several chunks, with short ones at the ends."""
    base = torch.arange(9 * 7 * 11 * 70, dtype=torch.float32).reshape(9, 7, 11, 70)
    state = {
        "".join(map(str, order)): base.permute(order) for order in itertools.permutations(range(4))
    }
    group = repo.commit(state).zarr()
    found = repo.checkout()
    for name, value in state.items():
        array: Any = group[name]
        np.testing.assert_array_equal(array[...], value.numpy())
        assert found[name].equal(value)
        assert found[name].stride() == value.stride()
