"""Commits that lose a race for their branch leave nothing that stays for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError
from ckptstore.retention import KeepAll, MaxToKeep

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository


def state(number: int) -> dict[str, Any]:
    return {"w": np.full(2000, number), "number": number}


def manifests(repo: Repository) -> dict[str, int]:
    """How many documents of checkpoints there are, by folder."""
    listed = [item.key.split("/")[0] for item in repo._storage.list("")]
    return {
        name: listed.count(name) for name in ("checkpoints", "history", "expired") if name in listed
    }


def raced(repo: Repository, monkeypatch: pytest.MonkeyPatch, *, rounds: int = 1) -> Checkpoint:
    """Commit with retry while others are faster, just before its operation."""
    create, left = repo._storage.create, list(range(rounds))

    def behind(key: str, data: Any, **options: Any) -> bool:
        if left:
            number = left.pop()
            with monkeypatch.context() as patch:
                patch.setattr(repo._storage, "create", create)
                ckptstore.open(repo.url).commit(state(100 + number), step=100 + number)
        return create(key, data, **options)

    monkeypatch.setattr(repo._storage, "create", behind)
    made = repo.commit(state(7), step=7, metrics={"loss": float("nan")}, retry=True)
    monkeypatch.undo()
    return made


def test_a_commit_that_is_late_leaves_no_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moved while its objects were written."""
    repo = ckptstore.init("memory://late")
    repo.commit(state(0))
    flush, left = repo._storage.flush, [1]

    def flush_behind(keys: Any) -> None:
        if left:
            left.pop()
            ckptstore.open("memory://late").commit(state(1))
        flush(keys)

    monkeypatch.setattr(repo._storage, "flush", flush_behind)
    with pytest.raises(ConflictError):
        repo.commit(state(2))
    assert manifests(repo) == {"checkpoints": 2}


def test_what_a_commit_left_at_each_attempt_goes_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = ckptstore.init("memory://attempts")
    repo.commit(state(0))
    made = raced(repo, monkeypatch, rounds=3)
    assert manifests(repo) == {"checkpoints": 8}
    assert repo.gc(KeepAll()).expired == ()  # a commit may still be about to use them
    assert len(repo.gc(KeepAll(), grace=0).expired) == 3
    assert manifests(repo) == {"checkpoints": 5}
    assert repo.verify().problems == ()
    assert [c.step for c in repo.log()] == [7, 100, 101, 102, None]
    assert repo.checkout(made.id)["number"] == 7


def test_it_goes_too_when_the_one_that_won_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = ckptstore.init("memory://expired")
    repo.commit(state(0))
    raced(repo, monkeypatch)
    for step in range(3):
        repo.commit(state(20 + step), step=step)
    repo.gc(MaxToKeep(1))
    assert manifests(repo) == {"checkpoints": 2, "history": 5, "expired": 5}
    repo.gc(MaxToKeep(1), grace=0)
    assert manifests(repo) == {"checkpoints": 1, "history": 5, "expired": 5}
    assert repo.verify().problems == ()


def test_one_that_somebody_uses_or_that_is_nowhere_else_stays_as_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = ckptstore.init("memory://used")
    repo.commit(state(0))
    raced(repo, monkeypatch)
    reached = {c.id for c in repo.log()}
    (lost,) = {id for id in repo._catalog.live() if id not in reached}
    plan = repo.plan_gc(KeepAll(), grace=0)
    assert [verdict.id for verdict in plan.expired] == [lost]
    repo.branch("side", lost)
    repo.commit(state(9), branch="side")
    plan.execute()
    assert repo.verify().problems == ()
    assert lost in {c.id for c in repo.log("side")}
    repo.delete_branch("side")  # only here is the commit that was made on it
    repo.gc(KeepAll(), grace=0)
    assert manifests(repo)["history"] == 2
    assert repo.verify().problems == ()
