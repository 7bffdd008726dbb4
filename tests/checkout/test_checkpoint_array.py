"""Lazy arrays of a checkpoint: numpy's results, from only the chunks that are needed."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import uuid
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from hypothesis import example, given
from hypothesis import strategies as st
from zarr.codecs import ShardingCodec, TransposeCodec

import ckptstore
from ckptstore.arrays.index import touched, wanted
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.retention import MaxToKeep
from ckptstore.store.catalog import Catalog
from ckptstore.testing.strategies import arrays
from ckptstore.zarr import contents
from tests.helpers.equality import bits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hypothesis.strategies import DrawFn

    from ckptstore.arrays.indexed import IndexedArray

SHAPES = st.lists(st.integers(0, 7), max_size=4).map(tuple)
LONG = np.arange(40_000.0).reshape(400, 100)  # 320,000 bytes: chunks of 81 rows
WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@st.composite
def indices(draw: DrawFn, shape: tuple[int, ...]) -> Any:
    """Any basic index of an array of this shape that numpy takes."""
    parts: list[Any] = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        number = st.integers(-length, length - 1) if length else st.nothing()
        parts.append(draw(number | slices(length)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(parts)))
        tail = [draw(slices(length)) for length in shape[len(shape) - len(parts[at:]) :]]
        parts = [*parts[:at], ..., *tail]
    for _ in range(draw(st.integers(0, 2))):
        parts.insert(draw(st.integers(0, len(parts))), None)
    if len(parts) == 1 and draw(st.booleans()):
        return parts[0]
    return tuple(parts)


def slices(length: int) -> st.SearchStrategy[slice]:
    """Slices with any bounds, far beyond the array too, and any step."""
    bound = st.none() | st.integers(-length - 3, length + 3)
    step = st.none() | st.integers(1, length + 2) | st.integers(-length - 2, -1)
    return st.builds(slice, bound, bound, step)


@given(st.data())
def test_an_index_chooses_what_numpy_chooses(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    index = data.draw(indices(shape))
    steps = [data.draw(st.integers(1, max(1, length + 1))) for length in shape]
    array = np.arange(int(np.prod(shape))).reshape(shape)
    expected = array[index]
    found = wanted(index, shape)
    assert found.shape == expected.shape
    made = np.full(tuple(map(len, found.ranges)), -1)
    axes = [list(touched(part, step)) for part, step in zip(found.ranges, steps, strict=True)]
    for place in np.ndindex(*map(len, axes)):
        parts = [axis[i] for axis, i in zip(axes, place, strict=True)]
        box = tuple(
            slice(number * step, (number + 1) * step)
            for (number, _, _), step in zip(parts, steps, strict=True)
        )
        target = tuple(part for _, _, part in parts)
        assert (made[target] == -1).all(), "read twice"
        made[target] = array[box][tuple(part for _, part, _ in parts)]
    np.testing.assert_array_equal(made.reshape(found.shape), expected)


@given(st.data())
def test_any_part_of_any_array_is_what_the_array_has_there(data: st.DataObject) -> None:
    array = data.draw(arrays())
    repo = new_repo()
    repo.commit({"before": np.arange(3), "x": array, "z": torch.zeros(2)})
    shape, dtype = tuple(array.shape), str(array.dtype).removeprefix("torch.")
    index = data.draw(indices(shape))
    framework = data.draw(st.sampled_from([None, "torch", "numpy"]))
    is_torch = isinstance(array, torch.Tensor) if framework is None else framework == "torch"
    found = repo.resolve("main").array("x", framework=framework)
    assert (found.shape, found.dtype, found.ndim) == (shape, dtype, len(shape))
    if not is_torch and dtype in ("complex32", "float4_e2m1fn_x2"):
        with pytest.raises(ckptstore.CkptStoreError):
            found[index]
        return
    part = found[index]
    assert isinstance(part, torch.Tensor if is_torch else np.ndarray)
    expected = words(array)[index]
    assert bits(words(part)) == bits(np.ascontiguousarray(expected).reshape(expected.shape))
    lazy = repo.checkout(lazy=True)["x"]
    assert lazy.kind == ("tensor" if isinstance(array, torch.Tensor) else "ndarray")
    assert bits(words(lazy[index])) == bits(words(part))
    writable(part)


def writable(array: Any) -> None:
    """It is memory of its own, which can be written to."""
    if isinstance(array, np.ndarray):
        assert array.flags.writeable
        assert array.flags.c_contiguous
    else:
        assert not array.requires_grad
        array.reshape(-1).view(torch.uint8)[...] = 0  # torch fills no float4


def words(array: Any) -> np.ndarray:
    """The same elements as unsigned integers, which numpy can index whatever they were."""
    if isinstance(array, torch.Tensor):
        _, shape, data = bits(array)  # type: ignore[misc]
        item = array.element_size()
    else:
        shape, data, item = array.shape, np.ascontiguousarray(array).tobytes(), array.itemsize
    if item == 16:
        return np.frombuffer(data, np.complex128).reshape(shape)
    return np.frombuffer(data, WORDS[item]).reshape(shape)


def new_repo() -> ckptstore.Repository:
    return ckptstore.init(f"memory://{uuid.uuid4().hex}", chunk_size=64 << 10)


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit({"long": LONG, "small": [np.arange(5), torch.arange(7)], "n": 1}, step=1)
    return repo


CHUNK = 81 * 800


@pytest.mark.parametrize(
    ("index", "sizes"),
    [
        (slice(81, 162), [CHUNK]),
        (slice(80, 82), [CHUNK, CHUNK]),
        (5, [CHUNK]),
        ((-1, -1), [76 * 800]),
        (slice(None, None, 200), [CHUNK, CHUNK]),
        (slice(200, 200), []),
        (slice(399, None, -160), [CHUNK, CHUNK, 76 * 800]),
        (slice(None, None, -1), [*[CHUNK] * 4, 76 * 800]),
        ((slice(81, 162), slice(None, None, -1)), [CHUNK]),
        ((slice(161, 81, -1), slice(3, 4)), [CHUNK]),
    ],
    ids=str,
)
def test_only_the_chunks_that_hold_what_is_asked_for_are_read(
    index: Any, sizes: list[int], repo: ckptstore.Repository, reads: list[int]
) -> None:
    array = repo.resolve("main").array("long")
    reads.clear()
    np.testing.assert_array_equal(array[index], LONG[index])
    assert sorted(reads) == sorted(sizes)


def test_a_small_array_is_read_without_the_others_of_its_bundle(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    array = repo.resolve("main").array("small/1")
    reads.clear()
    assert array[3:].tolist() == [3, 4, 5, 6]
    assert reads == [56]


def test_arrays_that_are_opened_one_by_one_read_the_structure_once(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with repo.session() as session:
        zarr.create_array(session.store, name="zarr", data=LONG)
        made = session.commit()
    read: list[Any] = []
    structure, contents_of = Catalog.structure, contents.contents_of
    monkeypatch.setattr(
        Catalog, "structure", lambda *args: (read.append("structure"), structure(*args))[1]
    )
    monkeypatch.setattr(
        contents, "contents_of", lambda *args: (read.append("contents"), contents_of(*args))[1]
    )
    for _ in range(2):
        for path in ("small/0", "long", "zarr"):
            _ = made.array(path)[0]
    assert sorted(read) == ["contents", "structure"]


def test_numpy_takes_the_whole_array_and_reads_each_chunk_once(
    repo: ckptstore.Repository, reads: list[int]
) -> None:
    with repo.session() as session:
        zarr.create_array(session.store, name="zarr", data=LONG, chunks=(81, 100))
        session.commit()
    repo.commit({**repo.checkout(), "one": np.array(7), "half": torch.arange(9).bfloat16()})
    made = repo.resolve("main")
    array = made.array("long")
    reads.clear()
    np.testing.assert_array_equal(np.asarray(array), LONG)
    assert sum(reads) == LONG.nbytes
    np.testing.assert_array_equal(made.array("zarr"), LONG)
    assert np.asarray(array, dtype=np.float32).dtype == np.float32
    assert np.asarray(made.array("one")).dtype == np.int64
    assert np.array(made.array("half")).dtype == ml_dtypes.bfloat16
    assert np.mean(made.array("small/1")) == 3
    with pytest.raises(ValueError, match="copy"):
        np.array(array, copy=False)


@pytest.mark.parametrize("framework", [None, "numpy", "torch"])
@pytest.mark.parametrize("take", [torch.as_tensor, torch.tensor, torch.from_dlpack])
def test_torch_takes_the_whole_array_and_reads_each_chunk_once(
    repo: ckptstore.Repository, reads: list[int], take: Callable[[Any], Any], framework: str | None
) -> None:
    """For every framework, also in dtypes that numpy itself cannot export."""
    with repo.session() as session:
        zarr.create_array(session.store, name="zarr", data=LONG, chunks=(81, 100))
        session.commit()
    small: dict[str, Any] = {"half": torch.arange(9).bfloat16(), "none": np.zeros((0, 3), "u2")}
    small |= {"one": np.array(7), "cold": torch.ones(2, 2).to(torch.float8_e5m2)}
    repo.commit({**repo.checkout(), **small})
    made = repo.resolve("main")
    reads.clear()
    assert torch.equal(take(made.array("long", framework=framework)), torch.from_numpy(LONG))
    assert sum(reads) == LONG.nbytes
    assert torch.equal(take(made.array("zarr", framework=framework)), torch.from_numpy(LONG))
    for path, value in small.items():
        found, expected = take(made.array(path, framework=framework)), torch.as_tensor(value)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert torch.equal(found.float(), expected.float())


def test_others_take_an_array_by_dlpack_without_torch(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with repo.session() as session:
        zarr.create_array(session.store, name="theirs", data=LONG)
        zarr.create_array(session.store, name="words", shape=2, dtype=str)
        session.commit()
    program = f"""
import sys, ckptstore, numpy as np
made = ckptstore.open({str(tmp_path / "store")!r}).resolve("main")
assert made.array("theirs").__dlpack_device__() == (1, 0)
found = np.from_dlpack(made.array("theirs"))
assert (found == made.array("theirs")[...]).all() and found.size
for path, options in (("words", {{}}), ("theirs", {{"copy": False}})):
    try:
        np.from_dlpack(made.array(path), **options)
    except BufferError:
        continue
    raise AssertionError(path)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_numpy_says_that_it_has_no_such_dtype(tmp_path: Path) -> None:
    made = ckptstore.init(tmp_path / "store").commit({"pairs": torch.zeros(2).to(torch.complex32)})
    with pytest.raises(ckptstore.UnsupportedValueError, match="no dtype complex32"):
        np.asarray(made.array("pairs"))


@pytest.mark.slow
@pytest.mark.parametrize("framework", [None, "numpy", "torch"])
@pytest.mark.parametrize("path", ["state", "theirs"])
def test_an_array_pickles_as_the_place_where_it_is(
    tmp_path: Path, path: str, framework: str | None
) -> None:
    """As for a DataLoader whose workers are started anew."""
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit({"state": LONG})
    with repo.session() as session:
        zarr.open_group(session.store).create_array("theirs", data=LONG, chunks=(9, 9))
        session.commit()
    array = repo.resolve("main").array(path, framework=framework)
    data = pickle.dumps(array)
    assert len(data) < 1000
    repo.commit({})  # it is the array of one checkpoint, whatever comes after it
    again = pickle.loads(data)
    assert (again.path, again.kind, again.dtype, again.shape) == (
        *(array.path, array.kind, array.dtype, array.shape),
    )
    for found in (again[7:20, ::3], copy.copy(array)[7:20, ::3]):
        assert type(found) is type(array[0])
        np.testing.assert_array_equal(found, LONG[7:20, ::3])
    repo.gc(MaxToKeep(1), grace=0)
    with pytest.raises(ckptstore.ExpiredError):
        pickle.loads(data)


@pytest.mark.slow
def test_a_process_that_is_started_anew_reads_an_array_that_it_is_given(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    array = repo.commit({"w": LONG}).array("w")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[5, :3].tolist())"
    said = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(array), capture_output=True, check=True
    )
    assert json.loads(said.stdout) == LONG[5, :3].tolist()


@pytest.mark.parametrize("dtype", ["str", "datetime64[s]"])
def test_texts_and_dates_are_numpy_arrays_and_no_tensors(
    repo: ckptstore.Repository, dtype: str
) -> None:
    data = np.array(["2026", "1969"]).astype(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python has not settled how these are stored
        with repo.session() as session:
            group = zarr.open_group(session.store)
            group.create_array("x", shape=(2,), dtype=data.dtype)[...] = data
            made = session.commit()
        for framework in (None, "numpy"):
            np.testing.assert_array_equal(made.array("x", framework=framework)[...], data)
        with pytest.raises(
            ckptstore.InvalidInputError, match="torch has no tensors of the elements of 'x'"
        ):
            made.array("x", framework="torch")


def test_a_lazy_checkout_reads_no_array(repo: ckptstore.Repository, reads: list[int]) -> None:
    state = repo.checkout(lazy=True)
    assert reads == []
    assert state["n"] == 1
    assert [array.shape for array in (state["long"], *state["small"])] == [(400, 100), (5,), (7,)]
    assert repo.checkout(lazy=True, include="small/**", part="small")[1][0] == 0
    assert len(reads) == 1


@pytest.mark.parametrize(
    "index",
    [400, -401, (0, 100), (0, 0, 0), (..., ...), 1.5, "a", True, [1, 2], np.array([1]), {}],
    ids=str,
)
@pytest.mark.parametrize("path", ["long", "zarr"])
def test_what_is_no_basic_index_of_the_array_is_an_index_error(
    index: Any, path: str, repo: ckptstore.Repository, reads: list[int]
) -> None:
    with repo.session() as session:
        zarr.create_array(session.store, name="zarr", data=LONG, chunks=(81, 100))
        session.commit()
    array = repo.resolve("main").array(path)
    reads.clear()
    with pytest.raises(IndexError):
        array[index]
    assert reads == []


def test_an_unknown_path_says_what_there_is(repo: ckptstore.Repository) -> None:
    with pytest.raises(ckptstore.NotFoundError, match=r"Is it 'small/[01]' or 'small/[01]'\?"):
        repo.resolve("main").array("small/2")
    for path in ("n", "", "small", None, 5, "\ud800", "x" * 10_000):
        with pytest.raises(ckptstore.NotFoundError, match="It has 3"):
            repo.resolve("main").array(path)  # type: ignore[arg-type]
    with pytest.raises(ckptstore.InvalidInputError, match="framework"):
        repo.resolve("main").array("long", framework="jax")
    for more in ({"into": {}}, {"device": "cpu"}):
        with pytest.raises(ckptstore.InvalidInputError):
            repo.checkout(lazy=True, **more)  # type: ignore[arg-type]


def test_an_array_of_an_expired_checkpoint_says_so(repo: ckptstore.Repository) -> None:
    first = repo.resolve("main")
    early, lazy = first.array("long"), repo.checkout(lazy=True)
    repo.commit({"other": np.arange(3)})
    repo.gc(MaxToKeep(1), grace=0)
    with pytest.raises(ckptstore.ExpiredError):
        first.array("long")
    with pytest.raises(ckptstore.ExpiredError):
        repo.checkout(first.id, lazy=True)
    for array in (early, lazy["long"], lazy["small"][0]):
        with pytest.raises(ckptstore.ExpiredError):
            array[1:3]
        with pytest.raises(ckptstore.ExpiredError):
            array.read_into(memoryview(bytearray(8)), 0)
    with pytest.raises(ckptstore.ExpiredError):
        repo.commit(lazy)


@pytest.mark.parametrize("path", ["long", "small/0", "zarr", "sharded"])
def test_a_damaged_chunk_is_never_handed_out(
    path: str, repo: ckptstore.Repository, tmp_path: Path
) -> None:
    with repo.session() as session:
        group = zarr.open_group(session.store)
        group.create_array("zarr", data=LONG, chunks=(81, 100), compressors=None)
        group.create_array("sharded", data=LONG, chunks=(20, 100), shards=(200, 100))
        session.commit()
    array = repo.resolve("main").array(path)
    expected = array[...]
    for key in [item.key for _, item in repo._objects.list()]:
        file = tmp_path / "store" / key
        data = file.read_bytes()
        for damage in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], data + b"x", None):
            file.unlink()
            if damage is not None:
                file.write_bytes(damage)
            with suppress(ckptstore.CorruptError):
                found = ckptstore.open(repo.url).resolve("main").array(path)[...]
                np.testing.assert_array_equal(found, expected)
            file.unlink(missing_ok=True)
            file.write_bytes(data)


def test_a_damaged_chunk_fails_only_the_reads_that_need_it(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    last = [item.key for _, item in repo._objects.list() if item.size == 76 * 800]
    (tmp_path / "store" / last[0]).unlink()
    array = repo.resolve("main").array("long")
    np.testing.assert_array_equal(array[:324], LONG[:324])
    with pytest.raises(ckptstore.CorruptError):
        array[:325]


def test_a_lazy_checkout_that_is_committed_elsewhere_has_the_same_pages(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    tensor = torch.randn(300, 100)
    state = {"a": tensor, "tied": [tensor, tensor.view(-1)], "b": np.arange(9), "c": (LONG, LONG)}
    first = repo.commit(state, branch="tied")
    other = ckptstore.init(tmp_path / "other", chunk_size=64 << 10)
    second = other.commit(repo.checkout("tied", lazy=True))
    assert second._manifest.pages == first._manifest.pages
    assert second._manifest.structure == first._manifest.structure
    found = other.checkout()
    assert found["a"] is found["tied"][0]
    assert found["c"][0] is found["c"][1]
    again = ckptstore.init(tmp_path / "again", chunk_size=256 << 10)
    again.commit(repo.checkout("tied", lazy=True))  # cut otherwise
    np.testing.assert_array_equal(again.checkout()["c"][0], LONG)
    assert torch.equal(again.checkout()["a"], tensor)


ZARR_ARRAYS: dict[str, Any] = {
    "compressed": {"data": LONG, "chunks": (81, 30)},
    "plain": {"data": LONG, "chunks": (81, 100), "compressors": None},
    "sharded": {"data": LONG, "chunks": (20, 10), "shards": (200, 50)},
    "transposed": {"data": LONG, "chunks": (81, 30), "filters": [TransposeCodec(order=(1, 0))]},
    "big-endian": {"data": LONG.astype(">f8"), "chunks": (81, 30)},
    "v2": {"data": LONG.astype(">i4"), "chunks": (81, 30), "zarr_format": 2},
    "v2 F": {"data": LONG, "chunks": (81, 30), "zarr_format": 2, "order": "F"},
    "scalar": {"data": np.array(7.5)},
    "scalar i2": {"data": np.array(-3, ">i2")},
    "empty": {"shape": (0, 5), "dtype": "f4", "chunks": (1, 5)},
    "no rows' length": {"shape": (5, 0), "dtype": "f4", "chunks": (2, 1)},
    "holes": {"shape": (100, 7), "dtype": "i2", "chunks": (9, 3), "fill_value": 5},
    "bool": {"data": LONG > 9, "chunks": (100, 100)},
    "complex": {"data": LONG.astype("c16"), "chunks": (100, 100)},
    "3d": {"data": LONG.reshape(40, 10, 100), "chunks": (7, 4, 33)},
    "long rows": {"data": LONG.reshape(2, 20_000), "chunks": (1, 3_000)},
}


@pytest.fixture(scope="module")
def hierarchies() -> dict[str, tuple[IndexedArray, np.ndarray]]:
    found = {}
    for name, options in ZARR_ARRAYS.items():
        repo = new_repo()
        with repo.session() as session:
            array = zarr.create_array(session.store, name="x", **options)
            expected = np.asarray(array[...])
            session.commit()
        found[name] = (repo.resolve("main").array("x"), expected)
    return found


@given(data=st.data(), name=st.sampled_from(sorted(ZARR_ARRAYS)))
def test_any_part_of_a_zarr_array_is_what_the_array_has_there(
    data: st.DataObject, name: str, hierarchies: dict[str, tuple[IndexedArray, np.ndarray]]
) -> None:
    array, expected = hierarchies[name]
    expected = expected.astype(expected.dtype.newbyteorder("="))
    index = data.draw(indices(expected.shape))
    part = array[index]
    assert isinstance(part, np.ndarray)
    assert part.dtype == expected.dtype
    assert part.dtype.isnative
    assert part.flags.writeable
    assert bits(part) == bits(np.asarray(expected[index]))


@pytest.mark.parametrize("name", ZARR_ARRAYS)
def test_a_checkpoint_tells_of_a_zarr_array_what_reading_it_gives(name: str) -> None:
    repo = new_repo()
    with repo.session() as session:
        zarr.create_array(session.store, name="x", **ZARR_ARRAYS[name])
        made = session.commit()
    array = made.array("x")
    (told,) = made.arrays
    assert (told.path, told.dtype, told.shape) == ("x", array.dtype, array.shape)
    assert told.dtype == str(array[...].dtype)
    assert told.chunk_shape == array.chunk_shape


def pieces_of(array: IndexedArray) -> Iterator[tuple[int, bytes]]:
    for start, size in array.pieces():
        buffer = bytearray(size)
        array.read_into(memoryview(buffer), start)
        yield start, bytes(buffer)


def check_pieces(array: IndexedArray, expected: bytes) -> None:
    """The pieces cover the array exactly once, in order, and each is what the array has there."""
    assert array.nbytes == len(expected)
    end = 0
    for start, data in pieces_of(array):
        assert start == end
        assert data == expected[start : start + len(data)]
        assert data
        end += len(data)
    assert end == len(expected)


@pytest.mark.parametrize("name", ZARR_ARRAYS)
def test_the_pieces_of_a_zarr_array_are_its_bytes(
    name: str, hierarchies: dict[str, tuple[IndexedArray, np.ndarray]]
) -> None:
    array, expected = hierarchies[name]
    check_pieces(array, expected.astype(expected.dtype.newbyteorder("<")).tobytes())


@given(data=st.data(), name=st.sampled_from(sorted(ZARR_ARRAYS)))
def test_any_bytes_of_a_zarr_array_can_be_read(
    data: st.DataObject, name: str, hierarchies: dict[str, tuple[IndexedArray, np.ndarray]]
) -> None:
    array, expected = hierarchies[name]
    whole = expected.astype(expected.dtype.newbyteorder("<")).tobytes()
    check_range(array, whole, data)


@given(array=arrays(), data=st.data())
@example(array=np.zeros((0, 3)), data=None)
@example(array=np.array(3), data=None)
@example(array=np.arange(70_000.0).reshape(7, 10_000), data=None)
def test_the_pieces_and_any_bytes_of_an_array_of_a_state_are_its_bytes(
    array: Any, data: st.DataObject | None
) -> None:
    repo = new_repo()
    repo.commit({"x": array, "y": np.arange(3)})
    found = repo.resolve("main").array("x")
    whole = words(array).tobytes()
    check_pieces(found, whole)
    if data is not None:
        check_range(found, whole, data)


def check_range(array: IndexedArray, whole: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    if start == stop:
        return
    buffer = bytearray(stop - start)
    array.read_into(memoryview(buffer), start)
    assert bytes(buffer) == whole[start:stop]


@pytest.mark.parametrize("name", sorted(set(ZARR_ARRAYS) - {"big-endian"}))
def test_a_lazy_zarr_array_that_is_committed_is_the_same_array(
    name: str, hierarchies: dict[str, tuple[IndexedArray, np.ndarray]]
) -> None:
    array, expected = hierarchies[name]
    repo = new_repo()
    repo.commit({"x": array, "same": array})
    found = repo.checkout()
    assert found["x"] is found["same"]
    assert bits(found["x"]) == bits(expected.astype(expected.dtype.newbyteorder("=")))


def test_a_slice_of_a_sharded_array_reads_only_the_segments_that_it_needs(
    reads: list[int], tmp_path: Path
) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    data = np.random.default_rng(0).integers(0, 1 << 60, (8, 16_384))  # 1 MiB: rows of 128 KiB
    with repo.session() as session:
        codec = ShardingCodec(chunk_shape=(1, 16_384), codecs=[zarr.codecs.BytesCodec()])
        zarr.create_array(
            session.store,
            name="x",
            data=data,
            chunks=(8, 16_384),
            serializer=codec,
            compressors=None,
        )
        session.commit()
    array = ckptstore.open(repo.url).resolve("main").array("x")
    reads.clear()
    np.testing.assert_array_equal(array[3], data[3])
    assert sum(reads) < 400_000


def test_every_dtype_of_ours_can_be_indexed() -> None:
    repo = new_repo()
    made = {
        name: torch.arange(48, dtype=torch.uint8).repeat(item).view(getattr(torch, name))
        if name != "bool"
        else torch.arange(48) % 2 == 0
        for name, item in ITEM_BYTES.items()
    }
    repo.commit(made)
    for name, tensor in made.items():
        part = repo.resolve("main").array(name)[-5:2:-3]
        assert part.dtype == tensor.dtype
        assert bits(words(part)) == bits(words(tensor)[-5:2:-3].copy())
