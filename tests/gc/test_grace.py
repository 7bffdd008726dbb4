"""The grace time: what an operation let go stays for as long from then, whenever it was stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore import ExpiredError, InvalidInputError
from ckptstore.documents import let_go
from ckptstore.documents.let_go import LetGo, limited
from ckptstore.documents.operation import Operation
from ckptstore.retention import KeepAll, MaxToKeep

HOUR = 3600.0
DAY = 24 * HOUR


class World:
    """A repository with a clock of its own, in which storing happened long ago."""

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.repo = ckptstore.init("memory://", clock=lambda: self.time)
        self.number = 0

    def commit(self, branch: str = "main") -> Any:
        self.number += 1
        self.time += 1
        return self.repo.commit(
            {"w": np.arange(20_000) + self.number}, branch=branch, step=self.number
        )

    def gc(self, policy: Any = None, **options: Any) -> list[int | None]:
        """The steps of what expired."""
        repo = ckptstore.open(self.repo.url, clock=lambda: self.time)
        steps = {checkpoint.id: checkpoint.step for checkpoint in map(repo.resolve, self.ids())}
        return sorted(steps[id] for id in repo.gc(policy, **options).expired)

    def ids(self) -> list[str]:
        return list(self.repo._catalog.ids())


@pytest.mark.parametrize("leftovers", [False, True])
def test_a_branch_that_was_deleted_by_mistake_comes_back(leftovers: bool) -> None:
    """Days after it was stored, with the gc of another training between."""
    world = World()
    ids = [world.commit("months-of-work").id for _ in range(3)]
    world.time += 90 * DAY
    world.repo.delete_branch("months-of-work")
    world.time += DAY - HOUR
    for _ in range(3):
        world.commit("other")
        assert world.gc(MaxToKeep(1), branches=["other"], leftovers=leftovers) in ([], [5], [4])
    assert [world.repo.resolve(id).expired for id in ids] == [False] * 3
    world.repo.branch("again", at=ids[-1])
    assert world.repo.resolve("again~2").step == 1
    assert world.repo.verify().ok


def test_it_expires_once_the_time_is_over_and_the_expiry_says_why() -> None:
    world = World()
    world.commit()
    world.repo.branch("side")
    ids = [world.commit("side").id for _ in range(2)]
    world.repo.delete_branch("side")
    world.time += DAY - 1
    plan = world.repo.plan_gc(KeepAll())
    assert (plan.expired, plan.young_checkpoints, plan.young_seconds) == ((), 2, pytest.approx(1))
    (reason,) = map(str, plan.verdicts[-1].reasons)
    assert reason.startswith("branch side was deleted on 1970-01-12 13:46")
    world.time += 2
    assert world.gc() == [2, 3]
    with pytest.raises(ExpiredError, match=r"Branch side was deleted on 1970-01-12"):
        world.repo.checkout(ids[0])
    assert world.repo._oplog.newest().let_go == ()


def test_the_grace_time_is_a_setting_of_the_repository() -> None:
    world = World()
    world.commit()
    world.commit("side")
    assert world.repo.grace() == DAY
    world.repo.set_grace(7 * DAY)
    world.repo.delete_branch("side")
    world.time += 6 * DAY
    assert world.gc() == []
    assert world.gc(grace=7 * DAY) == []
    assert world.repo.grace() == 7 * DAY
    for seconds, text in ((0, "0 s"), (None, "a day")):
        world.repo.set_grace(seconds)
        assert world.repo.operations(1)[0].description == f"saved a grace time of {text}"
    assert world.repo.grace() == DAY
    for wrong in (-1, float("nan"), True, "1d"):
        with pytest.raises(InvalidInputError, match="grace"):
            world.repo.set_grace(wrong)  # type: ignore[arg-type]
    assert world.gc() == [2]


def test_no_grace_frees_at_once() -> None:
    world = World()
    world.commit()
    world.commit("side")
    world.repo.delete_branch("side")
    assert world.gc(grace=0) == [2]


def test_a_tag_that_was_deleted_leaves_its_checkpoint_for_as_long() -> None:
    world = World()
    for _ in range(4):
        world.commit()
    world.repo.tag("v1", "main~2")
    assert world.gc(MaxToKeep(1)) == [1, 3]
    world.time += 30 * DAY
    world.repo.delete_tag("v1")
    assert world.gc(MaxToKeep(1)) == []
    world.time += DAY
    assert world.gc(MaxToKeep(1)) == [2]


def test_the_history_of_a_tag_is_let_go_with_its_branch() -> None:
    world = World()
    world.commit()
    for _ in range(3):
        world.commit("side")
    world.repo.tag("v1", "side")
    world.repo.delete_branch("side")
    world.time += DAY - 1
    assert world.gc() == []
    world.time += 2
    assert world.gc() == [2, 3]
    assert not world.repo.resolve("v1").expired


def test_what_another_branch_was_started_from_is_let_go_with_its_own_branch() -> None:
    world = World()
    for _ in range(3):
        world.commit()
    world.repo.branch("side")
    for _ in range(2):
        world.commit("side")
    world.repo.delete_branch("main")
    assert world.gc(MaxToKeep(1)) == [4]
    world.time += DAY
    assert world.gc() == []  # side keeps everything
    assert world.gc(MaxToKeep(1)) == [1, 2]
    plan = world.repo.plan_gc(MaxToKeep(1))
    reasons = [tuple(map(str, verdict.reasons)) for verdict in plan.verdicts]
    assert reasons == [("head of side", "newest 1 of 1 on side"), ("seed of side",)]


def test_a_branch_that_came_back_starts_the_time_anew() -> None:
    world = World()
    world.commit()
    world.commit("side")
    world.repo.delete_branch("side")
    world.time += DAY - 1
    world.repo.undo()
    assert world.repo._oplog.newest().let_go == ()
    world.time += DAY
    world.repo.delete_branch("side")
    assert world.gc() == []
    world.time += DAY
    assert world.gc() == [2]


def test_an_undo_lets_go_of_what_it_takes_back() -> None:
    world = World()
    world.commit()
    world.commit("side")
    world.time += 30 * DAY
    world.repo.undo()
    assert set(world.repo.branches()) == {"main"}
    assert world.gc() == []
    world.time += DAY
    assert world.gc() == [2]


def test_an_undo_of_a_commit_lets_go_of_the_checkpoint() -> None:
    world = World()
    for _ in range(2):
        world.commit()
    world.time += 30 * DAY
    world.repo.undo()
    (entry,) = world.repo._oplog.newest().let_go
    assert (entry.name, entry.way) == ("main", "branch moved")
    assert world.gc(MaxToKeep(1)) == []
    world.time += DAY
    assert world.gc(MaxToKeep(1)) == [2]


def test_a_clock_that_went_back_delays_it_unless_there_is_no_grace() -> None:
    world = World()
    world.commit()
    world.commit("side")
    world.repo.delete_branch("side")
    world.time -= 10 * HOUR
    assert 33 * HOUR < world.repo.plan_gc().young_seconds < 35 * HOUR
    assert world.gc(grace=0) == [2]


def test_a_branch_that_comes_back_after_the_plan_keeps_what_it_had() -> None:
    """The plan is older than the undo."""
    world = World()
    for _ in range(3):
        world.commit()
    world.repo.branch("side")
    world.commit("side")
    world.repo.delete_branch("main")
    plan = world.repo.plan_gc(MaxToKeep(1), grace=0)
    assert len(plan.expired) == 2
    world.repo.undo()
    assert plan.execute().expired == ()
    assert [found.expired for found in world.repo.log("main")] == [False] * 3


def test_commits_carry_entries_along_and_make_none() -> None:
    world = World()
    world.commit()
    assert world.repo._oplog.newest().let_go == ()
    world.commit("side")
    world.repo.delete_branch("side")
    (entry,) = world.repo._oplog.newest().let_go
    for _ in range(3):
        world.commit()
    assert world.repo._oplog.newest().let_go == (entry,)
    data = world.repo._oplog.newest().encode()
    assert Operation.decode(data, name="x").let_go == (entry,)


def test_entries_are_limited_and_the_newest_of_the_rest_stands_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(let_go, "LET_GO_MAX", 3)
    world = World()
    world.commit()
    made = []
    for number in range(6):
        made.append(world.commit(f"side-{number}"))
        world.time += HOUR
        world.repo.delete_branch(f"side-{number}")
    entries = world.repo._oplog.newest().let_go
    assert [(entry.id, entry.name) for entry in entries] == [
        (None, ""),
        (made[4].id, "side-4"),
        (made[5].id, "side-5"),
    ]
    world.time += DAY - 3 * HOUR
    assert world.gc() == []
    world.time += HOUR
    assert world.gc() == [2, 3, 4, 5]
    world.time += DAY
    assert world.gc() == [6, 7]


def test_the_limit_holds_however_many_there_are() -> None:
    entries = [
        LetGo(id=ckptstore.digest.Digest.of(b"%d" % time), name="x", way="tag deleted", time=time)
        for time in range(1200)
    ]
    kept = limited(entries)
    assert len(kept) == let_go.LET_GO_MAX
    assert [entry.time for entry in kept[:2]] == [1200 - let_go.LET_GO_MAX, 1200 - 499]
    assert limited([*kept]) == kept


def cut(world: World, id: str, *, damaged: bool) -> None:
    """Lose the manifest of a checkpoint."""
    storage, key = world.repo._storage, world.repo._catalog.key(id)
    if damaged:
        storage.put(key, b"x" * (storage.size(key) or 0))
    else:
        storage.delete([key])


@pytest.mark.parametrize("leftovers", [False, True])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_parent_that_is_lost_stops_a_gc_for_a_day_and_no_longer(
    damaged: bool, leftovers: bool
) -> None:
    world = World()
    made = [world.commit().id for _ in range(6)]
    cut(world, made[2], damaged=damaged)
    repo = ckptstore.open(world.repo.url, clock=lambda: world.time)
    repo._stores().listed_at = None if leftovers else repo._now()
    for _ in range(3):
        report = repo.gc(MaxToKeep(1), grace=0, leftovers=leftovers)
        assert report.expired == ()
        assert f"Checkpoint {made[2][:8]} is missing from the history" in report.warning
        assert "a day after" in report.warning
        world.time += 8 * HOUR - 1
    world.time += 4
    again = ckptstore.open(world.repo.url, clock=lambda: world.time)
    report = again.gc(MaxToKeep(1), grace=0, leftovers=leftovers)
    assert report.warning == ""
    assert set(report.expired) == {made[3], made[4]}  # what is behind the gap stays
    assert not any(again.resolve(id).expired for id in made[:2])
    assert np.array_equal(again.checkout(made[0])["w"], np.arange(20_000) + 1)
    assert np.array_equal(again.checkout("main")["w"], np.arange(20_000) + 6)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_head_that_is_lost_refuses_a_gc_and_is_named(damaged: bool) -> None:
    world = World()
    world.commit()
    world.commit("run-7")
    cut(world, world.commit("run-7").id, damaged=damaged)
    again = ckptstore.open(world.repo.url, clock=lambda: world.time)
    for _ in range(2):
        with pytest.raises(ckptstore.CorruptError, match="'run-7' names"):
            again.gc(KeepAll(), grace=0)
        world.time += 2 * DAY
