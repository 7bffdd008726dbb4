"""Usage: figures that add up to what the folder holds, by branch and by checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore.store.reach import reached_by

ARRAYS = [np.full(20_000, float(number)) for number in range(4)]
BRANCHES = ("main", "other", "third")

COMMITS = st.tuples(
    st.just("commit"), st.sampled_from(BRANCHES), st.lists(st.integers(0, 3), min_size=1)
)
OTHERS = st.one_of(
    st.tuples(st.just("branch"), st.sampled_from(BRANCHES), st.sampled_from(BRANCHES)),
    st.tuples(st.just("delete"), st.sampled_from(BRANCHES), st.none()),
    st.tuples(st.just("tag"), st.sampled_from(BRANCHES), st.integers()),
    st.tuples(st.just("note"), st.sampled_from(BRANCHES), st.none()),
    st.tuples(st.just("gc"), st.integers(1, 3), st.none()),
    st.tuples(st.just("stray"), st.integers(1, 5000), st.none()),
)


def play(repo: ckptstore.Repository, steps: list[tuple[str, Any, Any]]) -> None:
    for number, (what, a, b) in enumerate(steps):
        if what == "commit":
            repo.commit({str(place): ARRAYS[value] for place, value in enumerate(b)}, branch=a)
        elif what == "gc":
            repo.gc(MaxToKeep(a), grace=0)
        elif what == "stray":
            repo._storage.put(f"objects/ab/{number:062x}", bytes(a))
        elif a in repo.branches():
            if what == "delete":
                repo.delete_branch(a)
            elif what == "note":
                repo.annotate(a, metrics={"val_loss": number})
            elif what == "tag":
                repo.tag(f"tag-{number}", a)
            elif b not in repo.branches():
                repo.branch(b, a)


def file_bytes(repo: ckptstore.Repository) -> int:
    return sum(path.stat().st_size for path in Path(repo.url).rglob("*") if path.is_file())


def own_and_shared(
    reached: dict[str, set[Any]], sizes: dict[Any, int]
) -> dict[str, tuple[int, int]]:
    """The bytes that only one of some sets of objects has, and the rest of it, by its name."""
    parts = {}
    for name, objects in reached.items():
        others = set().union(*(set_ for other, set_ in reached.items() if other != name))
        own = sum(sizes[digest] for digest in objects - others)
        parts[name] = own, sum(sizes[digest] for digest in objects) - own
    return parts


@pytest.mark.property
@settings(max_examples=40)
@given(st.lists(st.one_of(COMMITS, OTHERS), max_size=12))
def test_the_sum_is_what_the_folder_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any, Any]]
) -> None:
    repo = ckptstore.init(tmp_path_factory.mktemp("usage") / "store", chunk_size=64 << 10)
    play(repo, steps)
    usage = repo.usage(by_checkpoint=True)
    assert usage.bytes == file_bytes(repo)
    own = sum(share.own_bytes for share in usage.by_branch)
    assert own + usage.shared_bytes + usage.unreached_bytes == usage.stored_bytes

    sizes = {digest: item.size for digest, item in repo._objects.list()}
    live = [c for c in repo.log(expired=False) if c.expired is False]
    of_each = {c.id: set(reached_by(c.id, repo._catalog).digests) for c in live}
    shares = {share.name: (share.own_bytes, share.shared_bytes) for share in usage.by_checkpoint}
    assert shares == own_and_shared(of_each, sizes)
    of_branch: dict[str, set[Any]] = {}
    for c in live:
        of_branch.setdefault(c.branch or "", set()).update(of_each[c.id])
    shares = {share.name: (share.own_bytes, share.shared_bytes) for share in usage.by_branch}
    assert shares == own_and_shared(of_branch, sizes)
    assert sum(share.checkpoints for share in usage.by_branch) == usage.checkpoints == len(live)
    assert repo.usage().by_checkpoint == ()


def test_what_the_newest_added_and_kept_tells_the_growth() -> None:
    clock = iter(range(0, 10**9, 3600))
    repo = ckptstore.init("memory://", clock=lambda: float(next(clock)))
    assert repo.usage().growth is None
    sizes = [
        repo.commit({"x": np.full(50_000, float(n))}, branch=BRANCHES[n % 2]).new_bytes
        for n in range(30)
    ]
    growth = repo.usage().growth
    assert growth is not None
    assert growth.checkpoints == 20
    assert growth.new_bytes == growth.kept_bytes == sum(sizes[-19:])
    assert growth.seconds % 3600 == 0
    assert growth.bytes_per_day == pytest.approx(growth.kept_bytes * 86400 / growth.seconds)
    repo.gc(MaxToKeep(1))
    after = repo.usage().growth
    assert after is not None
    assert (after.new_bytes, after.kept_bytes) == (sum(sizes[-19:]), sum(sizes[-2:]))


def test_a_clock_that_stands_still_tells_no_growth() -> None:
    repo = ckptstore.init("memory://", clock=lambda: 1e9)
    for n in range(3):
        repo.commit({"x": n})
    assert repo.usage().growth is None
