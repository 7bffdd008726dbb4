"""Several processes put shards of arrays, one makes the checkpoint, and every reader reads it."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file as load_torch

import ckptstore
from ckptstore import InvalidInputError, formats
from ckptstore.arrays import bands
from ckptstore.commit.flatten import flatten
from ckptstore.commit.plan import plan_arrays
from ckptstore.commit.staging import Staging
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.retention import MaxToKeep
from ckptstore.testing.strategies import arrays
from tests.compat.neutral import neutral
from tests.compat.plain_reader import PlainReader
from tests.helpers import shards
from tests.helpers.equality import difference
from tests.helpers.shards import Rank

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 64 << 10
RNG = np.random.default_rng(0)
ROWS = torch.from_numpy(RNG.standard_normal((600, 130), np.float32))
COLUMNS = torch.from_numpy(RNG.standard_normal((300, 500), np.float32)).to(torch.bfloat16)
CUBE = RNG.integers(0, 2**40, (6, 50, 70))
STATE: dict[str, Any] = {
    "model": {"rows": ROWS, "columns": COLUMNS, "cube": CUBE, "bias": torch.arange(5.0)},
    "step": 3,
}
GRIDS = {"model/rows": (100, 130), "model/columns": (300, 125), "model/cube": (2, 50, 32)}
COUNTS = {"model/rows": (2, 1), "model/columns": (1, 2), "model/cube": (1, 1, 2)}


def ranks() -> list[Rank]:
    """Two ranks, one with the small arrays too."""
    return shards.split(flatten_arrays(STATE), GRIDS, COUNTS, 2)


def flatten_arrays(state: object) -> dict[str, Any]:
    return {path: source.array for path, source in shards.flatten(state).arrays.items()}


@pytest.mark.parametrize("processes", [False, True], ids=["handles", "processes"])
def test_two_ranks_make_the_checkpoint_that_one_process_holds(
    tmp_path: Path, processes: bool
) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    alone = repo.commit(STATE, branch="alone")
    made = shards.commit(repo, STATE, GRIDS, ranks(), processes=processes, step=7)
    assert (made.branch, made.step, made.array_bytes) == ("main", 7, alone.array_bytes)
    assert {info.path: info.chunk_shape for info in made.arrays} == {**GRIDS, "model/bias": (5,)}
    assert difference(STATE, repo.checkout()) is None
    assert repo.verify().problems == ()
    reader = PlainReader(repo.url)
    assert neutral(reader.state(reader.manifest(made.id))) == neutral(STATE)
    objects = {digest: item.size for digest, item in repo._objects.list()}
    new = {digest for digest in objects if digest not in _reached(repo, "alone")}
    assert made.new_bytes == sum(objects[digest] for digest in new)


def _reached(repo: ckptstore.Repository, rev: str) -> set[str]:
    from ckptstore.store.reach import reached_by

    return set(reached_by(repo.resolve(rev).id, repo._catalog).digests)


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    shards.commit(repo, STATE, GRIDS, ranks(), step=1)
    return repo


def test_existing_arrays_are_filled(repo: ckptstore.Repository) -> None:
    into = {
        "model": {
            "rows": torch.zeros(130, 600).T,
            "columns": torch.zeros(300, 500, dtype=torch.bfloat16),
            "cube": np.zeros((6, 50, 70), np.int64),
            "bias": torch.zeros(5),
        },
        "step": 0,
    }
    rows = into["model"]["rows"]
    repo.checkout(into=into)
    assert difference(STATE, into) is None
    assert into["model"]["rows"] is rows


def test_the_numbers_of_a_diff_are_those_of_arrays_in_one_process(
    repo: ckptstore.Repository,
) -> None:
    changed = {**STATE["model"], "rows": ROWS + 0.5, "cube": CUBE.copy()}
    changed["cube"][3] += 1
    repo.commit({**STATE, "model": changed}, branch="changed")
    repo.commit(STATE, branch="alone")
    found, expected = (repo.diff(a, "changed", numeric=True) for a in ("main", "alone"))
    assert [change.path for change in found.changed] == ["model/cube", "model/rows"]
    for one, other in zip(found.changed, expected.changed, strict=True):
        assert one.numbers is not None
        assert other.numbers is not None
        assert one.numbers.relative_l2 == pytest.approx(other.numbers.relative_l2, rel=1e-6)
        assert one.numbers.changed_share == other.numbers.changed_share
    assert repo.diff("main", "alone", numeric=True).is_empty
    assert repo.diff("main", STATE, numeric=True).is_empty
    assert {change.kind for change in repo.diff("main", "alone").arrays} == {"undecided"}
    back = repo.diff("changed", "main", numeric=True)
    assert [change.path for change in back.changed] == ["model/cube", "model/rows"]


def test_only_the_chunks_that_changed_are_measured_when_both_are_cut_alike(
    repo: ckptstore.Repository,
) -> None:
    columns = COLUMNS.clone()
    columns[:, 3] = 0
    state = {**STATE, "model": {**STATE["model"], "columns": columns}}
    held = shards.split(flatten_arrays(state), GRIDS, COUNTS, 2)
    shards.commit(repo, state, GRIDS, held, step=2)
    found = repo.diff("main~1", "main", numeric=True)
    (change,) = found.changed
    assert change.path == "model/columns"
    assert change.shared_bytes == columns.nbytes * 3 // 4
    assert change.numbers is not None
    assert change.numbers.changed_share == pytest.approx(1 / 500)


def test_zarr_shows_the_grid_of_the_ranks_with_zeros_behind_short_rows(
    repo: ckptstore.Repository,
) -> None:
    group = repo.resolve("main").zarr()
    cube: Any = group["model/cube"]
    assert cube.chunks == (2, 50, 32)
    np.testing.assert_array_equal(cube[...], CUBE)
    np.testing.assert_array_equal(cube[3:5, 7, 60:], CUBE[3:5, 7, 60:])
    np.testing.assert_array_equal(group["model/rows"][...], ROWS.numpy())  # type: ignore[index]
    columns: Any = group["model/columns"]
    assert torch.from_numpy(columns[...].view(np.int16)).view(torch.bfloat16).equal(COLUMNS)


def test_a_session_changes_an_array_of_ranks_and_keeps_its_whole_chunks(
    repo: ckptstore.Repository,
) -> None:
    with repo.session() as session:
        zarr.open_group(session.store)["model/cube"][0, :, :40] = 9  # type: ignore[index]
        session.commit()
    expected = CUBE.copy()
    expected[0, :, :40] = 9
    np.testing.assert_array_equal(repo.checkout()["model"]["cube"], expected)
    assert difference(STATE["model"]["rows"], repo.checkout()["model"]["rows"]) is None
    assert repo.verify().problems == ()


def test_every_format_takes_arrays_of_ranks(repo: ckptstore.Repository, tmp_path: Path) -> None:
    model = repo.checkout(part="model", lazy=True)
    formats.write_file(model, tmp_path / "m.safetensors")
    formats.write_file({"cube": model["cube"]}, tmp_path / "m.npz")
    formats.write_file(model, tmp_path / "m.pt")
    formats.write_file(model, tmp_path / "m.zarr")
    written = load_torch(tmp_path / "m.safetensors")
    assert all(
        difference(torch.as_tensor(STATE["model"][name]), written[name]) is None for name in written
    )
    np.testing.assert_array_equal(np.load(tmp_path / "m.npz")["cube"], CUBE)
    loaded = torch.load(tmp_path / "m.pt", weights_only=False)
    assert difference(STATE["model"], loaded) is None
    again = ckptstore.init("memory://")
    again.commit(formats.read_file(tmp_path / "m.zarr").state)
    assert difference(STATE["model"], again.checkout()) is None


def test_a_lazy_checkout_is_committed_as_one_process_does(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through memory, and through a file where rows of chunks are too large for it."""
    alone = repo.commit(STATE, branch="alone")
    for large in (bands.BAND_BYTES_MAX, 1 << 10):
        monkeypatch.setattr(bands, "BAND_BYTES_MAX", large)
        other = ckptstore.init("memory://", chunk_size=CHUNK)
        made = other.commit(repo.checkout(lazy=True))
        assert made._manifest.pages == alone._manifest.pages


def test_a_follower_reads_only_the_chunks_that_changed(repo: ckptstore.Repository) -> None:
    model = {"rows": torch.zeros(600, 130), "columns": torch.zeros(300, 500).bfloat16()}
    follower = repo.follow()
    state = {"model": {name: STATE["model"][name] for name in model}}
    assert follower.update(model, include=["model/rows", "model/columns"], part="model")
    assert difference(state["model"], model) is None
    columns = COLUMNS.clone()
    columns[:, 400:] = 1
    later = {**STATE, "model": {**STATE["model"], "columns": columns}}
    held = shards.split(flatten_arrays(later), GRIDS, COUNTS, 2)
    shards.commit(repo, later, GRIDS, held, step=2)
    update = follower.update(model, include=["model/rows", "model/columns"], part="model")
    assert update
    assert difference(columns, model["columns"]) is None
    assert update.read_bytes == columns.nbytes // 4


def test_a_derived_checkpoint_and_gc_keep_arrays_of_ranks(repo: ckptstore.Repository) -> None:
    repo.branch("task", include="model/c*", rename={"model/(.*)": "base/\\1"})
    for number in range(3):
        repo.commit({"n": number})
    repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().problems == ()
    expected = {"base": {name: STATE["model"][name] for name in ("columns", "cube")}}
    assert difference(expected, repo.checkout("task")) is None
    with pytest.raises(ckptstore.ExpiredError):
        repo.checkout("main~3")


@st.composite
def sharded(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A state, chunk shapes for some of its arrays, and in how many shards these are cut."""
    state = draw(st.dictionaries(st.sampled_from("abcdef"), arrays(), min_size=1, max_size=4))
    grids, counts = {}, {}
    for path, array in state.items():
        if draw(st.booleans()):
            # At most four chunks along a dimension: arrays have up to 100,000 elements.
            steps = (st.integers(max(1, -(-length // 4)), max(1, length)) for length in array.shape)
            grids[path] = tuple(map(draw, steps))
            counts[path] = tuple(draw(st.integers(1, 3)) for _ in array.shape)
    return state, grids, counts


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning")
@given(sharded(), st.integers(1, 3), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_any_arrays_on_any_grids_come_back_bit_for_bit(
    made: tuple[dict[str, Any], dict[str, Any], dict[str, Any]], count: int, data: st.DataObject
) -> None:
    state, grids, counts = made
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    flat = flatten_arrays(state)
    shards.commit(repo, state, grids, shards.split(flat, grids, counts, count))
    assert difference(state, repo.checkout()) is None
    assert repo.verify().problems == ()
    alone = repo.commit(repo.checkout(), branch="alone")  # in C order, as processes store it
    assert repo.diff("main", repo.commit(state, branch="memory").id, numeric=True).is_empty
    assert repo.diff("main", "alone", numeric=True).is_empty
    lazy = repo.checkout(lazy=True)
    for path, array in flat.items():
        ends = [data.draw(st.tuples(*[st.integers(0, length)] * 2)) for length in array.shape]
        index = (*(slice(*sorted(pair)) for pair in ends), ...)
        assert difference(array[index], lazy[path][index]) is None
    again = ckptstore.init("memory://", chunk_size=CHUNK)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bands, "BAND_BYTES_MAX", data.draw(st.sampled_from([0, 1 << 20])))
        assert again.commit(lazy)._manifest.pages == alone._manifest.pages


def test_a_shard_that_was_staged_is_put_from_its_copy() -> None:
    """Its chunks are not runs of the shard either."""
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    flat = flatten({"w": ROWS})
    plan = plan_arrays(flat.arrays, chunk_bytes=CHUNK, tied={}, grids={"w": (100, 13)})
    from ckptstore.commit.put import put_arrays, putting
    from ckptstore.store.reach import Reached

    def digests(sources: Any) -> Any:
        with putting(repo._objects, Reached()) as putter:
            (page,) = ChainMap(*put_arrays(plan, sources, putter)).values()
            return page.chunks

    assert digests(Staging().copy({"w": ROWS}).flat.arrays) == digests(flat.arrays)


def test_what_is_not_whole_is_refused() -> None:
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    state = {"a": torch.arange(3.0), "b": torch.arange(4.0), "w": torch.arange(40.0).reshape(8, 5)}
    grids = {"w": (2, 5)}

    def commit(*held: Rank, grids: Any = grids) -> object:
        return shards.commit(repo, state, grids, held)

    small = {"a": state["a"], "b": state["b"]}
    upper = Rank({"w": state["w"][:4]}, {"w": (0, 0)})
    lower = Rank({"w": state["w"][4:]}, {"w": (4, 0)})
    with pytest.raises(InvalidInputError, match="No process has put chunk 2 of the 4 of 'w'"):
        commit(Rank(small), upper)
    with pytest.raises(InvalidInputError, match="No process has put 'a'"):
        commit(upper, lower)
    with pytest.raises(InvalidInputError, match="'b' shares a bundle"):
        commit(Rank({"a": state["a"]}), upper, lower)
    with pytest.raises(InvalidInputError, match="different bytes as chunk 0 of 'w'"):
        commit(Rank(small), upper, lower, Rank({"w": state["w"] + 1}, {"w": (0, 0)}))
    with pytest.raises(InvalidInputError, match="different small arrays"):
        commit(Rank(small), upper, lower, Rank({"a": state["a"] + 1, "b": state["b"]}))
    for corner in ((1, 0), (6, 0), (-2, 0), (0, 0, 0)):
        with pytest.raises(InvalidInputError, match="does not consist of whole chunks"):
            commit(Rank(small), upper, Rank({"w": state["w"][4:]}, {"w": corner}))
    for grid in ((0, 5), (9, 5), (2,), (2, 6)):
        with pytest.raises(InvalidInputError, match="has no chunks of shape"):
            commit(Rank(small), upper, lower, grids={"w": grid})
    assert repo.branches() == {}
    made = commit(Rank(small), upper, lower)
    assert isinstance(made, ckptstore.Checkpoint)
    assert difference(state, repo.checkout()) is None


def test_a_grid_of_chunks_that_are_too_large_is_refused() -> None:
    class Huge:
        dtype, shape, nbytes = "float32", (1 << 20, 128), 1 << 29

    with pytest.raises(InvalidInputError, match="at most 268435456"):
        plan_arrays({"w": Huge()}, chunk_bytes=CHUNK, tied={}, grids={"w": Huge.shape})
    assert ITEM_BYTES[Huge.dtype] == 4


def test_tied_arrays_of_ranks_are_stored_once() -> None:
    repo = ckptstore.init("memory://", chunk_size=CHUNK)
    tied = torch.arange(50_000.0).reshape(250, 200)
    state = {"a": tied, "b": tied}
    grids = {"a": (250, 50)}
    held = shards.split({"a": tied}, grids, {"a": (1, 2)}, 2)
    made = shards.commit(repo, state, grids, held)
    assert made.new_bytes < 1.1 * tied.nbytes
    found = repo.checkout()
    assert found["a"] is found["b"] or found["a"].data_ptr() == found["b"].data_ptr()
    assert difference(state, found) is None
