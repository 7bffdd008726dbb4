"""Policies of a manager that its repository cannot hold, and the best after a correction."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import ckptstore
from ckptstore.documents.settings import with_part
from ckptstore.retention import KeepBest, KeepIf, KeepSteps, MaxToKeep
from ckptstore.training import CheckpointManager


class Nothing:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


def manager(repo: ckptstore.Repository, **options: Any) -> CheckpointManager:
    return CheckpointManager(repo, it=Nothing(), rng=False, async_save=False, **options)


def steps(repo: ckptstore.Repository, branch: str = "main") -> list[int | None]:
    return [checkpoint.step for checkpoint in repo.log(branch, expired=False)][::-1]


def is_first(manifest: Any) -> bool:
    return bool(manifest.step == 0)


@pytest.mark.parametrize("default", [None, MaxToKeep(1)], ids=str)
@pytest.mark.parametrize("rest", [None, KeepBest("acc")], ids=str)
def test_a_gc_beside_a_manager_with_a_function_leaves_its_branch_alone(
    rest: Any, default: Any
) -> None:
    repo = ckptstore.init("memory://")
    repo.set_retention(default)
    policy = KeepIf(is_first) if rest is None else rest | KeepIf(is_first)
    found = manager(repo, policy=policy)
    for step, value in enumerate([0.1, 0.9, 0.3, 0.2]):
        found.save(step, metrics={"acc": value})
    kept = [0, 3] if rest is None else [0, 1, 3]
    assert steps(repo) == kept
    found.save(4, metrics={"acc": 0.0})
    beside = ckptstore.open(repo.url)
    plan = beside.plan_gc(grace=0)
    assert plan.expired == ()
    (reason,) = map(str, plan.verdicts[-1].reasons)
    assert reason == "left to the program whose function decides (KeepIf) on main"
    (sentence,) = plan.sentences
    assert "those that is_first accepts" in sentence
    assert beside.gc(grace=0).expired == ()
    assert steps(repo) == [*kept[:-1], 4]
    assert manager(repo).repository.retention("main") == repo.retention("main")  # any later run


def test_a_policy_saved_by_hand_takes_the_place_of_a_function() -> None:
    repo = ckptstore.init("memory://")
    found = manager(repo, policy=KeepIf(is_first))
    found.save(0)
    repo.set_retention(KeepSteps([1]), branch="main")
    found.save(1)
    found.save(2)
    assert steps(repo) == [1, 2]
    assert repo.retention("main") == KeepSteps([1])


@pytest.mark.parametrize(
    "policy",
    [{"kind": "keep_lucky", "n": 3}, {"kind": "max_to_keep", "n": 1, "since": 5}, [], "all"],
    ids=str,
)
@pytest.mark.parametrize("where", ["retention", "branch_retention/main"])
def test_a_policy_of_a_later_version_keeps_its_branches(where: str, policy: Any) -> None:
    repo = ckptstore.init("memory://")
    for step in range(3):
        repo.commit({"it": {"step": step}}, step=step)
    repo.branch("other", "main~2")
    for step in range(3, 6):
        repo.commit({"it": {}}, step=step, branch="other")
    if where != "retention":
        repo.set_retention(MaxToKeep(1))
    repo._refs.change_settings(lambda old: with_part(old, where, policy), done="by a later one")
    plan = repo.plan_gc(grace=0)
    reason = "this version does not know the saved policy on main"
    assert [str(r) for v in plan.verdicts if v.manifest.step == 1 for r in v.reasons] == [reason]
    assert [*map(str, repo.why("main~1").reasons)] == [reason]
    assert any("does not know the saved policy" in sentence for sentence in plan.sentences)
    plan.execute()
    assert steps(repo) == [0, 1, 2]
    assert steps(repo, "other") == ([0, 3, 4, 5] if where == "retention" else [0, 5])
    resumed = manager(repo)
    resumed.restore()
    resumed.save(9)
    assert steps(repo) == [0, 1, 2, 9]
    branch = None if where == "retention" else "main"
    assert "does not know" in str(repo.retention(branch))
    repo.set_retention(MaxToKeep(1), branch=branch)  # the way out
    assert repo.retention(branch) == MaxToKeep(1)


def test_policies_of_branches_in_a_later_form_keep_everything() -> None:
    repo = ckptstore.init("memory://")
    for step in range(3):
        repo.commit({"step": step}, step=step)
    repo.set_retention(MaxToKeep(1))
    repo._refs.change_settings(lambda old: {**old, "branch_retention": {"v": 2}}, done="later")
    assert repo.gc(grace=0).expired == ()
    assert repo.why("main~1").kept


def test_the_best_after_a_correction_is_the_best_that_is_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    repo = ckptstore.init("memory://")
    found = manager(repo, keep_best="acc")
    with caplog.at_level(logging.WARNING):
        for step, value in enumerate([0.5, 0.8, 0.3, 0.2]):
            found.save(step, metrics={"acc": value})
    assert steps(repo) == [1, 3]
    repo.annotate("main@step=1", metrics={"acc": 0.1})  # now the expired step 0 is the best
    best = found.best
    assert best is not None
    assert best.step == 3
    assert best.metrics["acc"] == 0.2
    repo.annotate("main@step=1", metrics={"acc": float("nan")})
    repo.annotate("main", metrics={"acc": float("nan")})
    assert found.best is None
    assert caplog.messages == []
