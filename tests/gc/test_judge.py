"""A gc judges again once something changed beside it, and what is kept by then stays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import ckptstore
from ckptstore.gc import remaining
from ckptstore.gc.remaining import Remaining
from ckptstore.gc.stores import Stores
from ckptstore.retention import KeepBest, MaxToKeep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore import GcReport, Repository
    from ckptstore.digest import Digest

OLDEST, GONE = "main@step=0", "gone"


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """A gc is about to give up all of main but its head and its best, and a deleted branch."""
    made = ckptstore.init(tmp_path / "store")
    made.set_grace(0)
    made.set_retention(MaxToKeep(1) | KeepBest("loss"))
    for step in range(4):
        loss = 0.5 if step == 3 else 0.9
        made.commit({"w": np.arange(30_000.0) + step}, step=step, metrics={"loss": loss})
    made.gc(MaxToKeep(9))
    made.commit({"w": np.zeros(30_000)}, step=9, branch=GONE)
    return made


def branch_from(other: Repository, id: Digest) -> None:
    other.branch("run", id)
    for step in (10, 11):
        other.commit({"w": np.ones(30_000) * step}, branch="run", step=step)


def tagged_for_a_moment(other: Repository, id: Digest) -> None:
    other.set_grace(None)
    other.tag("v1", id)
    other.delete_tag("v1")


CHANGES: dict[str, tuple[str, Callable[[Repository, Digest], object]]] = {
    "seed": (OLDEST, branch_from),
    "tag": (OLDEST, lambda other, id: other.tag("v1", id)),
    "lease": (OLDEST, lambda other, id: other.tag("reader", id, ttl="1h")),
    "deleted tag": (OLDEST, tagged_for_a_moment),
    "note": (OLDEST, lambda other, id: other.annotate(id, metrics={"loss": 0.1})),
    "policy": (OLDEST, lambda other, id: other.set_retention(MaxToKeep(9))),
    "own policy": (OLDEST, lambda other, id: other.set_retention(MaxToKeep(9), branch="main")),
    "grace": (GONE, lambda other, id: other.set_grace(None)),
    "branch": (GONE, lambda other, id: other.branch("back", id)),
    "undo": (GONE, lambda other, id: other.undo()),
}


def at_append(
    number: int, change: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Repository], GcReport]:
    """Return a gc beside which a change is made just before it appends an operation."""
    append, count = Stores.append, 0

    def changed(self: Stores, *args: object) -> object:
        nonlocal count
        count += 1
        if count == number:
            change()
        return append(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Stores, "append", changed)
    return lambda repo: repo.gc(leftovers=False)


def run(repo: Repository, moment: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a change while a gc runs in another process, and see that it is obeyed."""
    rev, make = CHANGES[name]
    id = repo.resolve(rev).id
    repo.delete_branch(GONE)
    other = ckptstore.open(repo.url)

    def change() -> None:
        make(other, id)

    if moment == "planned":
        plan = repo.plan_gc()
        assert id in {verdict.id for verdict in plan.expired}
        change()
        report = plan.execute()
        assert {*report.expired} <= {verdict.id for verdict in plan.expired}
    elif moment == "listed":
        at_append(1, change, monkeypatch)
        report = repo.gc()
    elif moment == "judged":
        report = at_append(1, change, monkeypatch)(repo)
    else:
        monkeypatch.setattr(remaining, "BATCH_CHECKPOINTS", 1)
        report = at_append(2, change, monkeypatch)(repo)
        assert report.expired
    monkeypatch.undo()
    assert id not in report.expired
    assert len(report.expired) < 4
    assert len(repo.checkout(id)["w"]) == 30_000
    assert repo.verify().ok


@pytest.mark.parametrize("moment", ["planned", "listed", "judged", "in parts"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_kept_by_now_stays(
    repo: Repository, name: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(repo, moment, name, monkeypatch)


@pytest.mark.seeded
@pytest.mark.parametrize("name", ["note", "policy", "grace"])
def test_a_gc_that_looks_only_at_names_is_caught(
    repo: Repository, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded bug: what was judged once is not judged again."""
    monkeypatch.setattr(Remaining, "judge_again", lambda self, newest: None)
    with pytest.raises(AssertionError):
        run(repo, "judged", name, monkeypatch)


@pytest.mark.seeded
@pytest.mark.parametrize("name", ["seed", "note"])
def test_a_plan_that_is_executed_as_it_was_made_is_caught(
    repo: Repository, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded bug: what a plan gives up never stays."""
    as_planned = lambda judged, plan: replace(judged, verdicts=plan.verdicts)  # noqa: E731
    monkeypatch.setattr(remaining, "_shrunk", as_planned)
    with pytest.raises(AssertionError):
        run(repo, "planned", name, monkeypatch)


def test_the_parts_of_a_gc_alone_are_judged_once(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.delete_branch(GONE)
    monkeypatch.setattr(remaining, "BATCH_CHECKPOINTS", 1)
    monkeypatch.setattr(Remaining, "judge_again", lambda self, newest: pytest.fail("again"))
    assert len(repo.gc(leftovers=False).expired) == 4


def test_a_plan_only_shrinks(repo: Repository) -> None:
    """What was kept when it was made stays, though nothing keeps it any more."""
    repo.tag("v1", OLDEST)
    plan = repo.plan_gc()
    repo.delete_tag("v1")
    kept = {verdict.id for verdict in plan.kept}
    assert kept.isdisjoint(plan.execute().expired)
    assert repo.resolve(OLDEST).step == 0
    assert not repo.resolve(OLDEST).expired


def test_a_policy_that_was_passed_holds_although_another_is_saved(repo: Repository) -> None:
    plan = repo.plan_gc(MaxToKeep(1))
    repo.set_retention(MaxToKeep(9))
    assert {*plan.execute().expired} == {verdict.id for verdict in plan.expired}
