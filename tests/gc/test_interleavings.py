"""A gc beside a commit that needs what is being deleted, in every order."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError, ExpiredError, NotFoundError, Repository
from ckptstore.digest import Digest
from ckptstore.documents.marker import Marker
from ckptstore.gc import execute
from ckptstore.gc.remaining import Remaining
from ckptstore.retention import KeepAll, MaxToKeep
from ckptstore.store import condemned, refs
from ckptstore.store.objects import ObjectStore
from tests.helpers.crash.parts import some
from tests.helpers.equality import difference
from tests.helpers.schedule import Schedule, ScheduledStorage, sticky

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractContextManager

PARTS = 8
SCHEDULES = 640  # in each part: 5,120 in all, twice as many in a deep run
pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("one_thread")]

EXPECTED = (ConflictError, ExpiredError, NotFoundError)


def state(number: int) -> dict[str, Any]:
    return {"large": np.full(9000, number), "small": np.full(3, number), "number": number}


class World:
    """A fresh repository: on main one checkpoint that will expire and one that will not."""

    def __init__(self) -> None:
        self.marker = Marker(store="0" * 32, chunk_bytes=64 << 10)
        storage = ScheduledStorage()
        storage.create("ckptstore.json", self.marker.encode())
        repo = Repository(storage, self.marker, clock=lambda: 1e9)
        self.old = repo.commit(state(0)).id
        self.new = repo.commit(state(1)).id
        repo.commit(state(2), branch="side")
        repo.delete_branch("side")
        self.data = dict(storage._data)

    def open(self) -> tuple[ScheduledStorage, Callable[[], Repository]]:
        storage = ScheduledStorage()
        for key, data in self.data.items():
            storage.put(key, data)
        return storage, lambda: Repository(storage, self.marker, clock=lambda: 1e9 + 1)


Actor = "Callable[[Repository, World], Any]"


def collect(repo: Repository, world: World) -> Any:
    return repo.gc(MaxToKeep(1), grace=0)


def collect_what_changed(repo: Repository, world: World) -> Any:
    repo.gc(KeepAll(), leftovers=False)
    return repo.gc(MaxToKeep(1), grace=0, leftovers=False)


def commit_the_same_again(repo: Repository, world: World) -> Any:
    return repo.commit(state(0), branch="again")


def commit_partly_the_same(repo: Repository, world: World) -> Any:
    return repo.commit({**state(0), "more": np.arange(9000)}, retry=True)


def commit_of_the_deleted_branch(repo: Repository, world: World) -> Any:
    return repo.commit(state(2), branch="again")


def branch_at_the_old(repo: Repository, world: World) -> Any:
    return repo.branch("kept", world.old)


def tag_the_old(repo: Repository, world: World) -> Any:
    return repo.tag("kept", world.old)


def undo_the_deletion(repo: Repository, world: World) -> Any:
    return repo.undo()


def read_the_old(repo: Repository, world: World) -> Any:
    assert difference(state(0), repo.checkout(world.old)) is None


CASTS: list[tuple[Any, ...]] = [
    (commit_the_same_again, collect),
    (commit_partly_the_same, collect),
    (commit_of_the_deleted_branch, collect),
    (branch_at_the_old, collect),
    (tag_the_old, collect),
    (undo_the_deletion, collect),
    (read_the_old, collect),
    (collect, collect),
    (commit_the_same_again, collect_what_changed),
    (commit_partly_the_same, collect_what_changed, branch_at_the_old),
    (commit_of_the_deleted_branch, collect, collect_what_changed),
    (collect_what_changed, collect_what_changed),
    (commit_the_same_again, commit_partly_the_same, collect),
    (commit_the_same_again, collect, collect),
    (branch_at_the_old, commit_the_same_again, collect),
]


def play(world: World, cast: Sequence[Any], seed: int) -> str | None:
    """One schedule; what is wrong afterwards, or None."""
    choose = sticky(random.Random(seed), [0.0, 0.5, 0.8, 0.95])
    storage, handle = world.open()
    handles = [handle() for _ in cast]
    storage.schedule = Schedule(choose)
    pairs = zip(cast, handles, strict=True)
    results = storage.schedule.run(
        [lambda act=act, repo=repo: act(repo, world) for act, repo in pairs]
    )
    storage.schedule = None
    return complaint(handle(), world, cast, results)


def complaint(
    repo: Repository, world: World, cast: Sequence[Any], results: Sequence[Any]
) -> str | None:
    for act, result in zip(cast, results, strict=True):
        if isinstance(result, Exception) and not isinstance(result, EXPECTED):
            return f"{act.__name__}: {type(result).__name__}: {result}"
        if act.__name__.startswith("commit") and not isinstance(result, Exception):
            expected = {
                "commit_the_same_again": state(0),
                "commit_partly_the_same": {**state(0), "more": np.arange(9000)},
                "commit_of_the_deleted_branch": state(2),
            }[act.__name__]
            if difference(expected, repo.checkout(result.id)) is not None:
                return f"{act.__name__}: another state came back"
    report = repo.verify()
    if not report.ok:
        return str(report.problems[0])
    for name, head in repo.branches().items():
        if head.expired:
            return f"branch {name} has expired"
    if repo._oplog.newest().condemned is not None:
        return "something is still condemned"
    repo.gc(MaxToKeep(1), grace=0)
    return None if repo.verify().ok else "the next gc destroyed something"


@pytest.mark.parametrize("part", some(range(PARTS), range(2 * PARTS)))
def test_whatever_the_order_nothing_that_was_acknowledged_is_lost(
    part: int, record_property: Callable[[str, object], None]
) -> None:
    world = World()
    first = part // PARTS * SCHEDULES
    seeds = [number * PARTS + part % PARTS for number in range(first, first + SCHEDULES)]
    record_property("commits beside gc", commits_of(partial(play, world), seeds))


def commits_of(play: Callable[[Sequence[Any], int], str | None], seeds: Iterable[int]) -> int:
    """Play the schedules of some seeds, none of which may end badly; return their commits."""
    commits = 0
    for seed in seeds:
        cast = CASTS[seed % len(CASTS)]
        try:
            found = play(cast, seed)
        except ckptstore.CkptStoreError as error:
            found = f"{type(error).__name__}: {error}"
        names = ", ".join(act.__name__ for act in cast)
        assert found is None, f"schedule {seed} of {names}: {found}"
        commits += names.count("commit")
    return commits


def never_condemned() -> AbstractContextManager[object]:
    return patch.object(refs, "refuse_condemned", lambda *args, **options: None)


def only_the_newest() -> AbstractContextManager[object]:
    real = condemned.refuse_condemned

    def newest_only(oplog: Any, newest: Any, *, since: int, digests: Any, ids: Any) -> None:
        real(oplog, newest, since=newest.seq, digests=digests, ids=ids)

    return patch.object(refs, "refuse_condemned", newest_only)


def nothing_is_spared() -> AbstractContextManager[object]:
    return patch.object(Remaining, "spare", lambda sweep, refs: None)


def deleted_before_it_is_condemned() -> AbstractContextManager[object]:
    real = execute.condemn

    def early(stores: Any, left: Any, ownership: Any) -> Any:
        if part := left.next_part(owner=ownership.owner, since=1):
            stores.objects.delete(part.digests)
        return real(stores, left, ownership)

    return patch.object(execute, "condemn", early)


def released_before_it_is_deleted() -> AbstractContextManager[object]:
    real = execute.delete

    def late(stores: Any, condemned: Any, *, ownership: Any, by: Any) -> Any:
        stores.append(lambda newest: replace(newest, condemned=None), "too early")
        return real(stores, condemned, ownership=ownership, by=by)

    return patch.object(execute, "delete", late)


def names_for_what_expires() -> AbstractContextManager[object]:
    return patch.object(refs.Refs, "_check_live", lambda *args: None)


def found_without_a_look() -> AbstractContextManager[object]:
    """After it waited, a commit believes that everything is still there."""
    seen: set[Digest] = set()
    real = ObjectStore.has

    def has(self: ObjectStore, digest: Digest, *, size: int) -> bool:
        found = digest in seen or real(self, digest, size=size)
        if found:
            seen.add(digest)
        return found

    return patch.object(ObjectStore, "has", has)


@pytest.mark.seeded
@pytest.mark.parametrize(
    "bug",
    [
        never_condemned,
        only_the_newest,
        nothing_is_spared,
        deleted_before_it_is_condemned,
        released_before_it_is_deleted,
        names_for_what_expires,
        found_without_a_look,
    ],
    ids=lambda bug: bug.__name__.replace("_", "-"),
)
def test_the_schedules_catch_mistakes(bug: Callable[[], AbstractContextManager[object]]) -> None:
    world = World()
    for seed in range(SCHEDULES * PARTS):
        with bug():
            try:
                found = play(world, CASTS[seed % len(CASTS)], seed)
            except ckptstore.CkptStoreError as error:
                found = str(error)
        if found is not None:
            assert "TypeError" not in found, "the mistake is in the test"
            return
    raise AssertionError("no schedule caught it")
