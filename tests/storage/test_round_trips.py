"""The requests that operations on an object store make, as budgets.

Round trips, not bytes, are the time that a far repository takes. The state has 40 arrays of 1.6 MB
and 40 small ones; `docs/how-to/object-stores.md` says what the numbers mean for other states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import ckptstore
from ckptstore.commit.put import LOOK_EVERY
from ckptstore.retention import MaxToKeep
from ckptstore.store import oplog
from ckptstore.testing.s3_server import S3Server
from tests.helpers.counting_storage import CountingStorage, repository

LARGE = 40  # arrays, each an object of its own
DOCUMENTS = 4  # bundle, pages and structure of this state
HISTORY = 1000  # checkpoints


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # However busy the machine is, the operations of a test are a moment apart.
    monkeypatch.setattr(oplog, "CONFIRM_SECONDS", 1e9)
    monkeypatch.setattr(oplog, "SETTLE_SECONDS", 1e9)
    with S3Server() as server:
        yield server


def _state() -> dict[str, torch.Tensor]:
    large = {f"large.{number}": torch.full((400_000,), float(number)) for number in range(LARGE)}
    return large | {f"small.{number}": torch.full((9,), float(number)) for number in range(LARGE)}


def _requests(server: S3Server, call: Callable[[], object]) -> int:
    server.counts.clear()
    call()
    return sum(server.counts.values())


def test_each_operation_stays_within_its_budget(server: S3Server) -> None:
    """Of one handle, which knows the newest operation."""
    url, state = server.url("run"), _state()
    repo = ckptstore.open(url, create=True)
    total = _requests(server, lambda: repo.commit(state, step=1))
    # A look for one object of eight, as none can be there, and the empty log.
    assert total <= server.counts["put"] + (LARGE + DOCUMENTS) // LOOK_EVERY + 7
    assert server.counts["put"] <= LARGE + DOCUMENTS + 1
    assert _requests(server, lambda: repo.commit(state, step=2)) <= 4
    state["large.3"] = state["large.3"] + 1
    assert _requests(server, lambda: repo.commit(state, step=3)) <= 4 + 2 * (1 + 1)
    assert _requests(server, lambda: repo.branch("other", "main")) <= 5
    assert _requests(server, lambda: repo.tag("first", "main~2")) <= 5
    assert _requests(server, lambda: repo.annotate("main", metrics={"acc": 0.5})) <= 6
    assert _requests(server, lambda: repo.resolve("main")) <= 2


def test_a_new_handle_needs_few_more(server: S3Server) -> None:
    url, state = server.url("run"), _state()
    ckptstore.open(url, create=True).commit(state, step=1)
    new = [ckptstore.open(url) for _ in range(2)]
    assert _requests(server, lambda: new[0].commit(state, step=2)) <= 11
    assert _requests(server, lambda: new[1].checkout("main")) <= LARGE + DOCUMENTS + 4
    assert server.counts["head"] <= 1, "the manifest is read where only a live one is"


def test_a_checkpoint_that_expired_is_named_so(server: S3Server) -> None:
    """Also if another one has the same arrays, so that they are there."""
    repo = ckptstore.open(server.url("run"), create=True)
    for step in (1, 2):
        repo.commit({"w": torch.ones(3)}, step=step)
    old = repo.resolve("main~1").id
    repo.gc(MaxToKeep(1), grace=0)
    for reader in (repo, ckptstore.open(server.url("run"))):
        with pytest.raises(ckptstore.ExpiredError, match=r"^'main~1' cannot be used.*expired"):
            reader.checkout("main~1")
    with pytest.raises(ckptstore.ExpiredError, match=r"cannot be used.*expired"):
        ckptstore.open(server.url("run")).checkout(old)
    server.damage(f"run/history/{old}.json", b"{}")
    with pytest.raises(ckptstore.CkptStoreError):
        ckptstore.open(server.url("run")).checkout(old)


def test_a_checkpoint_that_expires_after_the_look_is_not_read_from_history(
    server: S3Server,
) -> None:
    """The branch names it still, and its arrays are there, as they are those of another one."""
    repo = ckptstore.open(server.url("run"), create=True)
    id = repo.commit({"w": torch.ones(3)}).id
    repo._catalog.expire([id])
    with pytest.raises(ckptstore.ExpiredError, match=id[:8]):
        ckptstore.open(server.url("run")).checkout("main")


def test_a_commit_that_lost_makes_few_more(server: S3Server) -> None:
    """It reads the operation that was first, and the checkpoint it made, and puts its manifest."""
    url, state = server.url("run"), _state()
    repo = ckptstore.open(url, create=True)
    repo.commit(state, step=1)
    other = ckptstore.open(url)
    storage = repo._oplog._storage
    create = storage.create

    def late(key: str, data: bytes, **options: Any) -> bool:
        storage.create = create  # type: ignore[method-assign]
        other.commit(state, step=2)
        server.counts.clear()
        return create(key, data, **options)

    storage.create = late  # type: ignore[method-assign]
    repo.commit(state, step=3, retry=True)
    assert sum(server.counts.values()) <= 7
    assert [checkpoint.step for checkpoint in repo.log()] == [3, 2, 1]


def test_a_poll_of_a_follower_that_finds_nothing_is_one_request(server: S3Server) -> None:
    repo = ckptstore.open(server.url("run"), create=True)
    repo.commit(_state(), step=1)
    reader = ckptstore.open(server.url("run"))
    follower = reader.follow("main")
    assert follower.poll() is not None
    assert _requests(server, follower.poll) == 1


def _with_history(server: S3Server) -> ckptstore.Repository:
    """A repository with a thousand checkpoints, one a minute, which differ in their facts alone."""
    storage = CountingStorage()
    crafted = repository(storage)
    first = crafted.commit({"w": torch.ones(3)}, step=0, metrics={"loss": 9.0})
    manifest, id = first._manifest, first.id
    times = {id: 0.0}
    for step in range(1, HISTORY):
        manifest = replace(
            manifest,
            parents=(id,),
            step=step,
            metrics={"loss": 1 / step},
            created=manifest.created + 60_000_000,
        )
        id = crafted._catalog.store(manifest)
        times[id] = 60.0 * step
    crafted.reset_branch("main", id)
    for item in storage.list(""):
        time = times.get(item.key.removeprefix("checkpoints/").removesuffix(".json"), 0.0)
        server.damage(
            f"run/{item.key}", storage.get(item.key, bytes_max=item.size), modified=1e9 + time
        )
    return ckptstore.open(server.url("run"))


def test_a_long_history_is_read_ahead(server: S3Server) -> None:
    repo = _with_history(server)
    assert _requests(server, lambda: repo.log("main", limit=20)) <= 34
    assert _requests(server, lambda: repo.log("main~2", limit=4)) <= 12
    whole = _requests(server, lambda: repo.log("main"))
    assert whole <= HISTORY - 20 + 12
    assert _requests(server, lambda: repo.log("main")) <= 5
    for call in (
        lambda repo: repo.resolve("best:loss"),
        lambda repo: repo.log("main", own=True),
        lambda repo: repo.log("main", expired=False),
        lambda repo: repo.plan_gc(MaxToKeep(5)),
        lambda repo: repo.verify(),
    ):
        new = ckptstore.open(server.url("run"))
        assert _requests(server, lambda call=call, repo=new: call(repo)) <= HISTORY + 30  # type: ignore[misc]


def test_a_walk_reads_no_more_than_twice_what_it_needs(server: S3Server) -> None:
    """Where it ends is not known."""
    repo = _with_history(server)
    assert _requests(server, lambda: repo.resolve("main~3")) <= 10
    assert _requests(server, lambda: repo.resolve("main~40")) <= 2 * 40 + 16


def test_many_checkpoints_have_their_pages_read_once(server: S3Server) -> None:
    repo = ckptstore.open(server.url("run"), create=True)
    for step in range(20):
        repo.commit({"w": torch.full((3,), float(step))}, step=step)
    new = ckptstore.open(server.url("run"))
    assert _requests(server, lambda: new.plan_gc(MaxToKeep(5))) <= 2 * 20 + 12
    assert _requests(server, lambda: new.gc(MaxToKeep(5), grace=0)) <= 6 * 15 + 40
    assert len(new.log(expired=False)) == 5


def test_what_is_read_of_two_states(server: S3Server) -> None:
    url, state = server.url("run"), _state()
    repo = ckptstore.open(url, create=True)
    repo.commit(state, step=1)
    repo.commit(state | {"large.0": torch.zeros(400_000)}, step=2)
    new = [ckptstore.open(url) for _ in range(3)]
    assert _requests(server, lambda: new[0].diff("main~1", "main")) <= 16
    # Each object by one request, documents once more, and what is listed.
    assert _requests(server, lambda: new[1].verify()) <= LARGE + 1 + 2 * 2 * DOCUMENTS + 20
    assert _requests(server, lambda: new[2].checkout(include="small.1*")) <= 9
