"""Everything that is promised was flushed: unflushed keys are lost here. No strace needed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count

import pytest

from ckptstore import Digest, Repository
from ckptstore.documents.marker import Marker
from ckptstore.storage import Storage
from ckptstore.testing.faults import Killed, LosingStorage
from ckptstore.testing.storage_suite import StorageSuite
from tests.helpers.crash.checker import equal
from tests.helpers.crash.victim import CHUNK_BYTES, state

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread")]

MARKER = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)


def test_a_kill_and_a_power_failure_at_any_change_cost_nothing_that_was_acknowledged() -> None:
    for changes in count():
        storage = initialised()
        acknowledged: list[tuple[str, Digest]] = []
        storage.changes_left = changes
        with suppress(Killed):
            work(opened(storage), acknowledged)
        for survives in choices(storage, seed=changes):
            repo = opened(storage.after_power_failure(survives))
            check(repo, acknowledged)
        if storage.changes_left:
            break
    assert changes > 30


@pytest.mark.parametrize("name", ["branch", "tag"])
def test_a_name_given_to_what_a_killed_process_stored_outlives_a_power_failure(name: str) -> None:
    for changes in count():
        storage = initialised()
        opened(storage).commit(state(1), step=1)
        storage.changes_left = changes
        with suppress(Killed):
            opened(storage).commit(state(3), step=3)
        done = storage.changes_left
        storage.changes_left = None
        repo = opened(storage)
        for key, *_ in list(storage.list("checkpoints/")):
            id = Digest(key.removeprefix("checkpoints/").removesuffix(".json"))
            getattr(repo, name)(f"at-{id.short}", id)
        left = opened(storage.after_power_failure(lambda key: False))
        for found in [*left.branches().values(), *left.tags().values()]:
            assert equal(left.checkout(found.id), state(found.step or 0))
        if done:
            break


def test_no_operation_is_missing_when_a_commit_follows_one_that_was_killed() -> None:
    for changes in count():
        for more in count():
            storage = initialised()
            storage.changes_left = changes
            with suppress(Killed):
                opened(storage).commit({"n": 1})
            has_ended = bool(storage.changes_left)
            storage.changes_left = more
            with suppress(Killed):
                opened(storage).commit({"n": 2})
            left = opened(storage.after_power_failure(lambda key: False))
            assert left.verify().ok, f"killed at change {changes}, then at {more}"
            if storage.changes_left:
                break
        if has_ended:
            break


def test_what_was_lost_and_is_put_again_is_flushed_again() -> None:
    storage = initialised()
    opened(storage).commit(state(1), step=1)
    storage.delete([item.key for item in storage.list("objects/")])
    opened(storage).commit(state(1), step=1)
    left = opened(storage.after_power_failure(lambda key: False))
    assert equal(left.checkout(), state(1))


class TestLosingStorage(StorageSuite):
    @pytest.fixture
    def storage(self) -> Storage:
        return LosingStorage()


def work(repo: Repository, acknowledged: list[tuple[str, Digest]]) -> None:
    """Commits, a branch, a tag, and an undo; each is noted when it has returned."""
    for n in (1, 2, 3):
        made = repo.commit(state(n), step=n)
        acknowledged.append(("commit", made.id))
    acknowledged.append(("branch", repo.branch("other", at="main~1").id))
    acknowledged.append(("commit", repo.commit(state(4), branch="other", step=4).id))
    acknowledged.append(("tag", repo.tag("good", at="main").id))
    repo.branch("mistake")
    repo.undo()
    acknowledged.append(("undo", repo.resolve("main").id))


def check(repo: Repository, acknowledged: list[tuple[str, Digest]]) -> None:
    """All that was acknowledged is there, and one more commit works."""
    assert repo.verify().ok
    reached = {found.id for found in repo.log()}
    assert {id for _, id in acknowledged} <= reached
    for found in repo.log():
        assert equal(repo.checkout(found.id), state(found.step or 0))
    kinds = [kind for kind, _ in acknowledged]
    assert ("branch" not in kinds) or "other" in repo.branches()
    assert ("tag" not in kinds) or "good" in repo.tags()
    assert ("undo" not in kinds) or "mistake" not in repo.branches()
    repo.commit(state(9), step=9)
    assert equal(repo.checkout(), state(9))


def choices(storage: LosingStorage, *, seed: int) -> Iterator[Callable[[str], bool]]:
    """Which unflushed keys survive: all, none, all but one, and random ones."""
    yield lambda key: True
    yield lambda key: False
    for lost in storage.unflushed:
        yield lambda key, lost=lost: key != lost
    rng = random.Random(seed)
    for _ in range(3):
        kept = {key for key in storage.unflushed if rng.random() < 0.5}
        yield lambda key, kept=kept: key in kept


def initialised() -> LosingStorage:
    storage = LosingStorage()
    storage.create("ckptstore.json", MARKER.encode())
    return storage


def opened(storage: Storage) -> Repository:
    """A new handle, as a new process would have."""
    return Repository(storage, MARKER)
