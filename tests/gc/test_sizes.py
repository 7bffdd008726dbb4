"""Sizes: what checkpoints take together, each object once, and a limit of bytes on a branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import Repository
from ckptstore.retention import KeepBest, MaxBytes, MaxToKeep
from ckptstore.store.objects import key_of as object_key
from ckptstore.store.reach import reached_by
from tests.helpers.counting_storage import CountingStorage, repository

ARRAY = 10_000  # elements of 8 bytes: more than a small array has, and than a chunk of these tests


def unique_bytes(repo: Repository, ids: Any) -> int:
    """The bytes of all objects that some checkpoints reach."""
    digests = {digest for id in ids for digest in reached_by(id, repo._catalog).digests}
    return sum(repo._storage.size(object_key(digest)) or 0 for digest in digests)


def live(repo: Repository, branch: str = "main") -> list[Any]:
    return [found.id for found in repo.log(branch, expired=False) if found.branch == branch]


states = st.lists(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=3),
    min_size=1,
    max_size=6,
)


@given(states, st.randoms(use_true_random=False))
def test_each_frees_what_no_later_one_has(found: Any, random: Any) -> None:
    repo = repository(CountingStorage())
    for step, state in enumerate(found):
        arrays = {name: np.arange(ARRAY) + value for name, value in state}
        repo.commit({**arrays, "small": np.full(3, step % 2), "step": step}, step=step)
    ids = live(repo)
    random.shuffle(ids)
    stores = repo._stores()
    stores.live.update(repo._oplog.newest())
    freed = stores.freed(ids)
    for position in range(len(ids) + 1):
        assert sum(freed[position:]) == unique_bytes(repo, ids[position:])


@pytest.mark.parametrize("leftovers", [False, True])
def test_a_branch_stays_below_its_limit(leftovers: bool) -> None:
    repo = ckptstore.init("memory://")
    shared = np.random.default_rng(0).standard_normal(50 * ARRAY)
    repo.commit({"w": shared}, branch="other")
    policy = MaxToKeep(100) | KeepBest("loss") | MaxBytes(shared.nbytes + 40 * ARRAY)
    for step in range(12):
        state = {"shared": shared, "own": np.arange(ARRAY) + step}
        repo.commit(state, step=step, metrics={"loss": abs(3.0 - step)})
        repo.gc(policy, branches=["main"], leftovers=leftovers)
        assert unique_bytes(repo, live(repo)) <= shared.nbytes + 40 * ARRAY
    assert sorted(repo.resolve(id).step or 0 for id in live(repo)) == [3, 9, 10, 11]
    assert repo.verify().ok


def test_what_zarr_wrote_counts_too() -> None:
    repo = ckptstore.init("memory://")
    for step in range(4):
        with repo.session() as session:
            group = zarr.open_group(session.store, mode="a")
            group[f"w{step}"] = np.random.default_rng(step).standard_normal(ARRAY)
            session.commit(step=step)
    stores = repo._stores()
    stores.live.update(repo._oplog.newest())
    ids = live(repo)
    assert sum(stores.freed(ids)) == unique_bytes(repo, ids) > 4 * 8 * ARRAY * 0.8
    assert sum(stores.freed(ids[1:])) == unique_bytes(repo, ids[1:])


def test_the_best_and_the_newest_stay_over_the_limit() -> None:
    repo = ckptstore.init("memory://")
    for step in range(5):
        repo.commit({"w": np.arange(ARRAY) + step}, step=step, metrics={"loss": abs(1.0 - step)})
    plan = repo.plan_gc(MaxToKeep(3) | KeepBest("loss") | MaxBytes(1))
    assert [verdict.manifest.step for verdict in plan.kept] == [4, 1]
    assert {tuple(map(str, verdict.reasons)) for verdict in plan.expired} == {
        ("over the limit of 1 B",),
        ("nothing keeps it",),
    }
    said = "Branch main: The checkpoints that always stay take more than the limit of 1 B: "
    assert plan.warning.startswith(said)
    assert plan.execute().warning == plan.warning
    assert repo.gc(MaxBytes(1), leftovers=False).warning == plan.warning
    assert not repo.plan_gc(MaxBytes(10**9)).warning


def test_the_pages_of_what_stays_are_read_once() -> None:
    """Not again at each save, however many of them there are."""
    storage = CountingStorage()
    repo = repository(storage)
    policy = MaxToKeep(50) | MaxBytes(10**9)
    counts = []
    for step in range(12):
        repo.commit({"w": np.arange(ARRAY) + step}, step=step)
        storage.forget()
        repo.gc(policy, leftovers=False)
        counts.append((storage.calls["get"], storage.calls["size"]))
    assert len(set(counts[1:])) == 1
