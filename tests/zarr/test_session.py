"""What a session does to a branch, and what other commands make of it."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.buffer import cpu

import ckptstore
from ckptstore.documents import canonical
from ckptstore.retention import MaxToKeep
from ckptstore.zarr import staged_contents as staged

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(600, 100)).astype(
    "f4"
)  # 240,000 bytes: four chunks of 64 KiB, the last one short
STATE: dict[str, Any] = {
    "model": {"weight": torch.from_numpy(WEIGHT), "bias": torch.arange(5.0)},
    "layers": [np.arange(3), np.arange(20_000.0)],
    "lr": 0.1,
}


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit(STATE, step=1, metrics={"loss": 0.5})
    return repo


def objects(repo: ckptstore.Repository) -> set[str]:
    return {item.key for _, item in repo._objects.list()}


def test_a_new_branch_begins_empty_and_takes_any_hierarchy(repo: ckptstore.Repository) -> None:
    with repo.session("curves") as session:
        root = zarr.open_group(session.store, mode="w", attributes={"run": "a", "id": "mine"})
        root.create_array("loss", data=np.arange(7.0), chunks=(3,), attributes={"unit": "nat"})
        made = session.commit(step=3, metrics={"loss": 2.0}, message="curves", meta={"host": "x"})
    group = repo.resolve("curves").zarr()
    assert group.attrs.asdict() == {
        "run": "a",
        "id": made.id,
        "step": 3,
        "metrics": {"loss": 2.0},
        "message": "curves",
        "created": made.created.isoformat(),
    }
    assert group["loss"].attrs["unit"] == "nat"
    np.testing.assert_array_equal(group["loss"][:], np.arange(7.0))
    np.testing.assert_array_equal(repo.checkout("curves")["loss"], np.arange(7.0))
    assert made.meta == {"host": "x"}
    assert repo.verify().ok


def test_nothing_is_seen_before_the_commit_and_an_abandoned_session_leaves_garbage_for_gc(
    repo: ckptstore.Repository,
) -> None:
    before = objects(repo)
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.create_array("big", data=RNG.normal(size=50_000), chunks=(25_000,), compressors=None)
        assert "big" not in repo.resolve("main").zarr()
        assert len(repo.log("main")) == 1
    assert len(repo.log("main")) == 1
    assert repo.verify().ok
    assert len(objects(repo) - before) == 8  # 2 chunks of 200,000 bytes, in segments of 64 KiB
    repo.gc(MaxToKeep(10), grace=0)
    assert objects(repo) == before
    with pytest.raises(ckptstore.InvalidInputError, match="closed"):
        _ = session.store


def test_arrays_that_nobody_touched_stay_page_for_page(repo: ckptstore.Repository) -> None:
    before, there = repo.resolve("main"), objects(repo)
    with repo.session("main") as session:
        zarr.open_group(session.store).create_array("new", data=np.arange(4))
        after = session.commit()
    assert after._manifest.pages == before._manifest.pages
    new = [item.size for _, item in repo._objects.list() if item.key not in there]
    assert after.new_bytes == sum(new) < 10_000
    state = repo.checkout("main")
    assert list(state) == ["model", "layers", "lr", "new"]
    assert isinstance(state["model"]["weight"], torch.Tensor)
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    np.testing.assert_array_equal(state["layers"][1], STATE["layers"][1])
    np.testing.assert_array_equal(state["new"], np.arange(4))
    assert state["lr"] == 0.1


def test_an_array_that_was_written_to_keeps_its_untouched_chunks_and_its_place(
    repo: ckptstore.Repository,
) -> None:
    before = objects(repo)
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group["model/weight"][0] = 7
        group["layers/0"][1] = -1
        session.commit()
    expected = WEIGHT.copy()
    expected[0] = 7
    state = repo.checkout("main")
    assert isinstance(state["model"]["weight"], torch.Tensor)
    np.testing.assert_array_equal(state["model"]["weight"], expected)
    np.testing.assert_array_equal(state["layers"][0], [0, -1, 2])
    assert state["layers"][1].shape == (20_000,)
    assert list(state["model"]) == ["weight", "bias"]
    sizes = [item.size for _, item in repo._objects.list() if item.key not in before]
    chunk = 163 * 100 * 4  # rows of 400 bytes in 64 KiB
    assert sizes.count(chunk) == 2  # the one that was written, and the last one, as Zarr pads it
    assert repo.verify().ok


def test_what_is_set_below_an_array_goes_where_the_array_goes(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        asyncio.run(session.store.set("model/weight/notes", cpu.Buffer.from_bytes(b"mine")))
        session.commit()
    repo.branch("seed", include=["model/weight"], rename={"model/weight": "moved"})
    for rev, path in (("main", "model/weight"), ("seed", "moved")):
        store = repo.resolve(rev).zarr().store
        read = asyncio.run(store.get(f"{path}/notes", cpu.buffer_prototype))
        assert read is not None
        assert read.to_bytes() == b"mine"
        np.testing.assert_array_equal(repo.resolve(rev).zarr()[path][:], WEIGHT)
    assert repo.verify().ok


def test_a_chunk_that_becomes_all_zeros_is_deleted_and_reads_as_zeros(
    repo: ckptstore.Repository,
) -> None:
    with repo.session("main") as session:
        zarr.open_group(session.store)["model/weight"][163:326] = 0  # the second chunk
        assert not asyncio.run(session.store.exists("model/weight/c/1/0"))
        made = session.commit()
    expected = WEIGHT.copy()
    expected[163:326] = 0
    np.testing.assert_array_equal(made.zarr()["model/weight"][:], expected)
    np.testing.assert_array_equal(repo.checkout("main")["model"]["weight"], expected)


def test_a_large_chunk_that_is_set_again_is_in_the_next_checkpoint(
    repo: ckptstore.Repository,
) -> None:
    data = np.arange(30_000.0)
    with repo.session("big") as session:
        group = zarr.open_group(session.store, mode="w")
        group.create_array("w", data=data, chunks=(10_000,), compressors=None)
        first = session.commit()
        zarr.open_group(session.store)["w"][12_000] = -1
        second = session.commit()
    np.testing.assert_array_equal(first.zarr()["w"][:], data)
    data[12_000] = -1
    np.testing.assert_array_equal(second.zarr()["w"][:], data)


def test_values_that_were_cut_otherwise_are_cut_anew(repo: ckptstore.Repository) -> None:
    """Of a repository that another program wrote: each page says where its values are cut."""
    data = np.arange(100_000.0)
    with repo.session("cut") as session:
        array = zarr.create_array(
            session.store, name="x", data=data, chunks=(50_000,), compressors=None
        )
        session.commit()
        repo._chunk_bytes = 256 << 10
    with repo.session("cut") as session:
        array = zarr.open_array(session.store, path="x")
        array[0] = -1
        made = session.commit()
    data[0] = -1
    for again in (repo, ckptstore.open(repo.url)):
        np.testing.assert_array_equal(again.checkout("cut")["x"], data)
    assert [page.segment_bytes for page in repo._catalog.node_pages(made._manifest)] == [256 << 10]
    assert repo.verify().ok


def test_deleted_arrays_are_gone_from_the_state_and_groups_stay(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        del group["layers/0"]
        del group["model"]["bias"]
        del group["model"]["weight"]
        session.commit()
    state = repo.checkout("main")
    assert state["layers"][0] is None
    assert state["model"] == {}
    assert state["lr"] == 0.1
    assert "model" in repo.resolve("main").zarr()
    assert repo.verify().ok


def test_a_group_that_is_deleted_leaves_no_empty_dict_behind(repo: ckptstore.Repository) -> None:
    repo.commit({**STATE, "mine": {}, "betas": {"first": 0.9}})
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.create_group("curves/raw/more")
        group.create_group("kept/raw").create_array("x", data=np.arange(3))
        group.create_group("lr/no_dict")
        group.create_group("betas")
        session.commit()
        assert repo.checkout("main")["curves"] == {"raw": {"more": {}}}
        group = zarr.open_group(session.store)
        for name in ("curves", "kept/raw", "lr", "betas"):
            del group[name]
        session.commit()
    state = repo.checkout("main")
    assert list(state) == [*STATE, "mine", "betas", "kept"]
    assert state["betas"] == {"first": 0.9}
    assert state["mine"] == state["kept"] == {}
    assert state["lr"] == 0.1


def test_equal_chunks_are_stored_once_within_and_across_checkpoints(
    repo: ckptstore.Repository,
) -> None:
    block = RNG.normal(size=(100,))
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        for name in "abc":
            array = group.create_array(
                name, shape=(500,), chunks=(100,), dtype="f8", compressors=None
            )
            array[:] = np.tile(block, 5)
        session.commit()
        sizes = [item.size for _, item in repo._objects.list()]
        assert sizes.count(800) == 1
        before = objects(repo)
        group = zarr.open_group(session.store)
        group["a"].append(block)
        group["b"].resize((200,))
        made = session.commit()
    new = [item.size for _, item in repo._objects.list() if item.key not in before]
    assert 800 not in new
    assert made.zarr()["a"].shape == (600,)
    np.testing.assert_array_equal(made.zarr()["b"][:], np.tile(block, 2))
    np.testing.assert_array_equal(repo.checkout("main~1")["b"], np.tile(block, 5))


def test_a_chunk_of_a_state_and_one_that_was_set_are_the_same_object(
    repo: ckptstore.Repository,
) -> None:
    before = objects(repo)
    with repo.session("copy") as session:
        made = zarr.create_array(
            session.store,
            name="w",
            shape=WEIGHT.shape,
            chunks=(163, 100),
            dtype="f4",
            compressors=None,
        )
        made[:] = WEIGHT
        session.commit()
    new = [item.size for _, item in repo._objects.list() if item.key not in before]
    assert new.count(163 * 400) == 1  # the last one, which Zarr pads


def test_small_values_wait_for_the_commit_while_they_are_few_however_often_they_change(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "HELD_BYTES_MAX", 10_000)
    before = objects(repo)
    with repo.session("main") as session:
        for number in range(30):
            session.store.set_sync("x", cpu.Buffer.from_bytes(bytes([number]) * 900))
            session.store.set_sync(f"deleted{number}", cpu.Buffer.from_bytes(bytes(900)))
            session.store.delete_sync(f"deleted{number}")
        assert objects(repo) == before
        for number in range(30):
            session.store.set_sync(f"x{number}", cpu.Buffer.from_bytes(bytes([number]) * 900))
        assert len(objects(repo) - before) == 20
        made = session.commit()
    store = made.zarr().store
    for number in range(30):
        value = asyncio.run(store.get(f"x{number}", cpu.buffer_prototype))
        assert value is not None
        assert value.to_bytes() == bytes([number]) * 900


def test_a_branch_that_moved_is_a_conflict_and_nothing_is_lost(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        zarr.open_group(session.store).create_array("new", data=np.arange(4))
        repo.commit(STATE, step=2)
        for _ in range(2):  # so to commit again helps in a new session only
            with pytest.raises(ckptstore.ConflictError, match=r"moved to .*from a new session"):
                session.commit(step=3)
    assert repo.resolve("main").step == 2


def test_a_session_whose_objects_a_gc_took_says_so(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.create_array("big", data=RNG.normal(size=50_000), chunks=(50_000,), compressors=None)
        repo.gc(MaxToKeep(10), grace=0)
        with pytest.raises(ckptstore.ConflictError, match="gc"):
            session.commit()
    assert len(repo.log("main")) == 1
    assert repo.verify().ok


def test_gc_keeps_what_zarr_arrays_need_and_frees_what_expired(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        for step in range(2, 6):
            group = zarr.open_group(session.store)
            group.create_array("big", data=RNG.normal(size=20_000), chunks=(7_000,), overwrite=True)
            group.create_array("curves/small", data=np.arange(step), overwrite=True)
            session.commit(step=step)
    expected = repo.checkout("main")
    report = repo.gc(MaxToKeep(1), grace=0)
    assert len(report.expired) == 4
    np.testing.assert_array_equal(repo.checkout("main")["big"], expected["big"])
    assert repo.verify().ok
    with pytest.raises(ckptstore.ExpiredError):
        repo.resolve("main~1").zarr()
    repo.delete_branch("main")
    repo.gc(MaxToKeep(1), grace=0)
    assert objects(repo) == set()


def test_verify_finds_a_damaged_or_missing_chunk_that_came_in_through_zarr(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    before = objects(repo)
    with repo.session("main") as session:
        zarr.open_group(session.store).create_array("big", data=RNG.normal(size=20_000))
        made = session.commit()
    keys = sorted(objects(repo) - before)
    for key in keys:
        path = tmp_path / "store" / key
        data = path.read_bytes()
        for damage in (data[:-1], bytes([data[0] ^ 1]) + data[1:], None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            report = ckptstore.open(repo.url).verify()
            assert made.id in {id for problem in report.problems for id in problem.checkpoints}
            with pytest.raises(ckptstore.CkptStoreError):
                ckptstore.open(repo.url).checkout("main")
            path.write_bytes(data)
    assert ckptstore.open(repo.url).verify().ok


def test_zarr_arrays_go_into_existing_arrays(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        zarr.open_group(session.store)["model/weight"][3] = 9
        session.commit()
    expected = WEIGHT.copy()
    expected[3] = 9
    tensor = torch.zeros(600, 100)
    repo.checkout("main", into={"weight": tensor, "bias": torch.zeros(5)}, part="model")
    np.testing.assert_array_equal(tensor.numpy(), expected)
    wrong = {"weight": torch.zeros(600, 100, dtype=torch.float64), "bias": torch.zeros(5)}
    with pytest.raises(ckptstore.CheckoutMismatchError, match="float32"):
        repo.checkout("main", into=wrong, part="model")


def test_a_follower_takes_arrays_that_were_changed_through_zarr(
    repo: ckptstore.Repository,
) -> None:
    model = {"weight": torch.zeros(600, 100), "bias": torch.zeros(5)}
    follower = repo.follow("main")
    follower.update({"model": model, "layers": [np.zeros(3, int), np.zeros(20_000)], "lr": 0.0})
    with repo.session("main") as session:
        zarr.open_group(session.store)["model/weight"][3] = 9
        session.commit()
    state = {"model": model, "layers": [np.zeros(3, int), np.zeros(20_000)], "lr": 0.0}
    update = follower.update(state)
    assert "model/weight" in update.changed
    assert (model["weight"][3] == 9).all()
    assert torch.equal(model["weight"][4:], STATE["model"]["weight"][4:])


def test_diff_names_zarr_arrays(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.create_array("curves/loss", data=np.arange(7.0), chunks=(3,))
        group.create_array("curves/same", data=np.arange(7.0), chunks=(3,))
        session.commit()
        zarr.open_group(session.store)["curves/loss"][5] = 0
        session.commit()
    found = repo.diff("main~2", "main~1")
    assert [change.path for change in found.added] == ["curves/loss", "curves/same"]
    found = repo.diff("main~1", "main", numeric=True)
    assert [change.path for change in found.arrays] == ["curves/loss"]
    assert found.arrays[0].kind == "changed"
    numbers = found.arrays[0].numbers
    assert numbers is not None
    assert (numbers.max_abs, numbers.changed_share) == (5, 1 / 7)
    assert found.unchanged == 5
    assert repo.diff("main", "main").is_empty


def test_a_numeric_diff_tells_that_an_array_is_the_same_in_other_codecs(
    repo: ckptstore.Repository,
) -> None:
    with repo.session("other") as session:
        group = zarr.open_group(session.store, mode="w")
        group.create_array("model/weight", data=WEIGHT, chunks=(50, 33))
        group.create_array("model/bias", data=np.arange(5.0, dtype="f4") + 1)
        session.commit()
    found = repo.diff("main", "other", include="model")
    assert [change.path for change in found.undecided] == ["model/bias", "model/weight"]
    found = repo.diff("main", "other", include="model", numeric=True)
    assert [change.path for change in found.changed] == ["model/bias"]
    assert found.changed[0].numbers is not None
    assert found.changed[0].numbers.max_abs == 1
    assert found.unchanged == 1


def test_a_seed_takes_zarr_arrays_under_other_names(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        group = zarr.open_group(session.store)
        group.create_group("curves", attributes={"by": "step"})
        group.create_array("curves/loss", data=np.arange(7.0), chunks=(3,))
        group.create_array("curves/more/acc", data=np.arange(3))
        session.commit(step=9)
    before = objects(repo)
    repo.branch("seed", "main", include=["curves", "model/bias"], rename={"curves/(.*)": r"old/\1"})
    state = repo.checkout("seed")
    np.testing.assert_array_equal(state["old"]["loss"], np.arange(7.0))
    np.testing.assert_array_equal(state["old"]["more"]["acc"], np.arange(3))
    assert torch.equal(state["model"]["bias"], torch.arange(5.0))
    assert sorted(state) == ["model", "old"]
    group = repo.resolve("seed").zarr()
    assert sorted(path for path, _ in group.members(max_depth=None)) == [
        "model",
        "model/bias",
        "old",
        "old/loss",
        "old/more",
        "old/more/acc",
    ]
    assert repo.verify().ok
    assert sum(item.size for _, item in repo._objects.list() if item.key not in before) < 10_000
    repo.branch("same", "main", exclude="layers")
    assert repo.resolve("same").zarr()["curves"].attrs["by"] == "step"


def test_a_store_pickles_and_reads_in_another_process(repo: ckptstore.Repository) -> None:
    store = ckptstore.zarr.CheckpointStore(repo.url, "main")
    code = (
        "import pickle, sys, zarr; store = pickle.loads(sys.stdin.buffer.read());"
        "print(zarr.open_group(store, mode='r')['model/bias'][:].tolist())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, check=True
    )
    assert told.stdout.decode().strip() == "[0.0, 1.0, 2.0, 3.0, 4.0]"


def test_a_range_of_a_large_value_reads_only_the_segments_that_hold_it(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = RNG.bytes(1_000_000)
    with repo.session("shards") as session:
        session.store.set_sync("c/0", cpu.Buffer.from_bytes(data))
        session.commit()
    store = ckptstore.zarr.CheckpointStore(repo.url, "shards")
    asyncio.run(store.getsize("c/0"))
    read: list[int] = []
    whole = ckptstore.store.objects.ObjectStore.read_into

    def counted(self: Any, digest: Any, buffer: memoryview) -> None:
        read.append(len(buffer))
        whole(self, digest, buffer)

    monkeypatch.setattr(ckptstore.store.objects.ObjectStore, "read_into", counted)
    part = zarr.abc.store.RangeByteRequest(65_530, 65_540)
    found = store.get_sync("c/0", byte_range=part)
    assert found is not None
    assert found.to_bytes() == data[65_530:65_540]
    assert read == [65_536, 65_536]


@pytest.mark.filterwarnings("ignore:Both zarr.json")
@pytest.mark.parametrize(("above", "below"), [(2, 3), (3, 2)])
def test_of_a_node_with_documents_of_both_versions_the_newer_one_counts(
    above: Any, below: Any, repo: ckptstore.Repository
) -> None:
    """As in zarr-python, which makes the groups above an array in that array's version."""
    with repo.session("both") as session:
        store = session.store
        zarr.create_array(store, name="c", data=np.arange(3), zarr_format=above, overwrite=True)
        zarr.create_array(store, name="c/g/x", data=np.arange(4), zarr_format=below)
        is_array = isinstance(zarr.open(store, path="c", mode="r"), zarr.Array)
        made = session.commit()
    assert is_array == (above == 3)
    state = repo.checkout("both")
    found = state["c"] if is_array else state["c"]["g"]["x"]
    np.testing.assert_array_equal(found, np.arange(3 if is_array else 4))
    assert ("c" in {array.path for array in made.arrays}) == is_array


def test_a_node_that_no_group_leads_to_hinders_nobody(repo: ckptstore.Repository) -> None:
    with repo.session("main") as session:
        zarr.create_array(session.store, name="in/group", data=np.arange(3))
        zarr.create_array(session.store, name="lost/array", data=np.arange(4))
        session.store.delete_sync("lost/zarr.json")
        made = session.commit()
    group = made.zarr()
    assert group.metadata.consolidated_metadata is not None
    assert group["in/group"][:].tolist() == [0, 1, 2]
    assert "lost" not in group
    assert made.array("lost/array")[:].tolist() == [0, 1, 2, 3]


def test_an_array_that_needs_what_is_not_installed_says_so_and_the_others_are_read(
    repo: ckptstore.Repository,
) -> None:
    with repo.session("codec") as session:
        group = zarr.open_group(session.store, mode="w")
        group.create_array("bad", data=np.arange(3))
        group.create_array("good", data=np.arange(4))
        value = session.store.get_sync("bad/zarr.json")
        assert value is not None
        document = json.loads(value.to_bytes())
        document["codecs"].append({"name": "not-here", "configuration": {}})
        text = json.dumps(document).encode()
        session.store.set_sync("bad/zarr.json", cpu.Buffer.from_bytes(text))
        made = session.commit()
    for act in (lambda: made.array("bad"), lambda: repo.checkout("codec")):
        with pytest.raises(ckptstore.InvalidInputError, match=r"'bad' .*not-here.*exclude"):
            act()
    np.testing.assert_array_equal(made.zarr()["good"][:], np.arange(4))
    np.testing.assert_array_equal(repo.checkout("codec", exclude="bad")["good"], np.arange(4))
    assert repo.verify().ok


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_checkpoint_that_is_one_array_is_no_group_and_says_how_to_read_it(
    zarr_format: Any, repo: ckptstore.Repository
) -> None:
    with repo.session("one") as session:
        zarr.create_array(session.store, data=np.arange(5), zarr_format=zarr_format)
        made = session.commit()
    with pytest.raises(ckptstore.NotFoundError, match=r"checkpoint\.array\('array'\)"):
        made.zarr()
    np.testing.assert_array_equal(made.array("array")[1:3], [1, 2])
    with repo.session("in-a-group") as session:
        zarr.create_array(session.store, name="array", data=np.arange(6), zarr_format=zarr_format)
        made = session.commit()
    assert made.zarr()["array"].shape == made.array("array").shape == (6,)


EDGES = st.integers(0, 3).map(lambda segment: segment << 16)
PLACES = st.builds(lambda edge, by: max(0, edge + by), EDGES, st.integers(-2, 2)) | st.integers(
    0, 200_010
)


@pytest.fixture(scope="module")
def large_value() -> tuple[list[Any], bytes]:
    """The stores that have a value of some segments, and it."""
    repo, data = ckptstore.init("memory://large-value", chunk_size=64 << 10), RNG.bytes(200_000)
    session = repo.session()
    session.store.set_sync("c/0", cpu.Buffer.from_bytes(data))
    session.commit()
    return [session.store, ckptstore.zarr.CheckpointStore(repo.url)], data


@given(start=PLACES, stop=PLACES)
def test_any_part_of_a_large_value_is_that_of_the_whole(
    start: int, stop: int, large_value: tuple[list[Any], bytes]
) -> None:
    stores, data = large_value
    start, stop = sorted((start, stop))
    for shown in stores:
        found = shown.get_sync("c/0", byte_range=zarr.abc.store.RangeByteRequest(start, stop))
        assert found.to_bytes() == data[start:stop]


SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
STEPS = st.sampled_from(["create", "write", "resize", "delete", "attrs", "commit", "reopen"])


@given(
    steps=st.lists(st.tuples(STEPS, st.sampled_from(["a", "g/b", "g/h/c", "s/x"])), max_size=12),
    shapes=st.lists(SHAPES, min_size=4, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_any_changes_through_zarr_are_what_a_checkout_gives(
    steps: list[tuple[str, str]], shapes: list[tuple[int, ...]], seed: int, tmp_path_factory: Any
) -> None:
    rng = np.random.default_rng(seed)
    repo = ckptstore.init(tmp_path_factory.mktemp("store") / "store", chunk_size=64 << 10)
    repo.commit({"s": {"x": rng.integers(0, 9, (4, 3)), "n": 1}})
    model: dict[str, np.ndarray] = {"s/x": repo.checkout("main")["s"]["x"]}
    session = repo.session("main")
    for number, (step, path) in enumerate([*steps, ("commit", "")]):
        group = zarr.open_group(session.store)
        if step == "create" and path not in model:
            shape = shapes[number % 4]
            data = rng.integers(0, 9, shape)
            chunks = tuple(max(1, int(rng.integers(1, 4))) for _ in shape)
            group.create_array(path, data=data, chunks=chunks)
            model[path] = data
        elif step == "write" and path in model and model[path].size:
            row = int(rng.integers(0, model[path].shape[0]))
            model[path] = model[path].copy()
            model[path][row] = number
            group[path][row] = number
        elif step == "resize" and path in model:
            longer = (model[path].shape[0] + 2, *model[path].shape[1:])
            resized = np.zeros(longer, model[path].dtype)
            resized[: model[path].shape[0]] = model[path]
            model[path] = resized
            group[path].resize(longer)
        elif step == "delete" and path in model:
            del group[path]
            del model[path]
        elif step == "attrs" and path in model:
            group[path].attrs["number"] = number
        elif step == "commit":
            session.commit(step=number)
            check(repo, model)
        elif step == "reopen":
            session.commit(step=number)
            session.close()
            session = repo.session("main")
    session.close()
    assert repo.verify().ok


def check(repo: ckptstore.Repository, model: dict[str, np.ndarray]) -> None:
    state = repo.checkout("main")
    assert state.get("s", {}).get("n") == 1
    found = {}
    stack = [("", state)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack += [(f"{path}/{key}" if path else key, item) for key, item in value.items()]
        elif isinstance(value, np.ndarray):
            found[path] = value
    assert found.keys() == model.keys()
    group = repo.resolve("main").zarr()
    for path, expected in model.items():
        np.testing.assert_array_equal(found[path], expected)
        np.testing.assert_array_equal(group[path][...], expected)
        np.testing.assert_array_equal(repo.resolve("main").array(path)[...], expected)


@pytest.mark.parametrize("field", ["filters", "compressor", "codecs", "nested"])
def test_an_array_that_is_stored_with_pickle_is_never_decoded(
    repo: ckptstore.Repository, tmp_path: Path, field: str
) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return (open, (str(tmp_path / "ran"), "w"))

    codec = {"id": "pickle", "name": "numcodecs.pickle", "configuration": {}}
    v2 = {
        "zarr_format": 2,
        "shape": [1],
        "chunks": [1],
        "dtype": "<f8",
        "fill_value": 0,
        "order": "C",
    }
    v3 = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1],
        "data_type": "float64",
        "fill_value": 0,
    }
    v3 |= {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}}}
    v3 |= {"chunk_key_encoding": {"name": "default"}, "attributes": {}}
    shards = {"chunk_shape": [1], "codecs": [codec], "index_codecs": [{"name": "bytes"}]}
    documents: dict[str, tuple[str, dict[str, Any]]] = {
        "filters": (
            ".zarray",
            v2 | {"filters": [{"id": "delta", "dtype": "<f8"}, codec], "compressor": None},
        ),
        "compressor": (".zarray", v2 | {"filters": None, "compressor": codec}),
        "codecs": ("zarr.json", v3 | {"codecs": [codec]}),
        "nested": (
            "zarr.json",
            v3 | {"codecs": [{"name": "sharding_indexed", "configuration": shards}]},
        ),
    }
    name, document = documents[field]
    text = json.dumps(document).replace("pickle", r"pi\u0063kle")
    with repo.session("evil") as session:
        for key, data in ((f"a/{name}", text.encode()), ("a/0", b""), ("a/c/0", b"")):
            session.store.set_sync(key, cpu.Buffer.from_bytes(data or pickle.dumps(Runs())))
        session.commit()
    for act in (
        lambda: repo.checkout("evil"),
        lambda: repo.checkout("evil", lazy=True)["a"][...],
        lambda: repo.resolve("evil").array("a"),
        lambda: ckptstore.zarr.CheckpointStore(repo.url, "evil").get_sync(f"a/{name}"),
        lambda: zarr.open_array(
            ckptstore.zarr.CheckpointStore(repo.url, "evil"), path="a", mode="r"
        ),
    ):
        with pytest.raises(ckptstore.InvalidInputError, match="pickle"):
            act()
    assert not (tmp_path / "ran").exists()
    assert repo.verify().ok


def test_a_document_that_is_too_long_is_refused_before_it_is_committed(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canonical, "DOCUMENT_BYTES_MAX", 10_000)
    with repo.session("long") as session:
        group = zarr.open_group(session.store, mode="w")
        array = group.create_array("a", data=np.arange(3))
        array.attrs["text"] = "x" * 10_000
        with pytest.raises(ckptstore.InvalidInputError, match=r"'a/zarr.json' has 1\d+ bytes"):
            session.commit()
        array.attrs["text"] = "x" * 5_000
        session.commit()
    np.testing.assert_array_equal(repo.checkout("long")["a"], np.arange(3))


def test_a_document_that_claims_more_than_this_machine_holds_is_refused(
    repo: ckptstore.Repository,
) -> None:
    with repo.session("huge") as session:
        group = zarr.open_group(session.store, mode="w")
        group.create_array("a", shape=(1 << 40,), chunks=(1 << 20,), dtype="f8")
        session.commit()
    with pytest.raises(ckptstore.InvalidInputError, match=r"bytes_max=8796093022208"):
        repo.checkout("huge")
    with pytest.raises(ckptstore.StorageError, match="memory"):
        repo.checkout("huge", bytes_max=1 << 43)
    assert repo.resolve("huge").array("a")[5:7].tolist() == [0, 0]
