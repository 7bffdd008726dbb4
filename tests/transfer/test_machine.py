"""Two repositories change and exchange checkpoints in any order, and both stay sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import ckptstore
from ckptstore.errors import ConflictError
from ckptstore.retention import MaxToKeep
from tests.helpers.equality import difference
from tests.helpers.transfers import assert_sound, keys_of, log_of, state

BRANCHES = st.sampled_from(["main", "fine/tuned"])
SIDES = st.sampled_from([0, 1])


class Exchange(RuleBasedStateMachine):
    """Commits, refs, notes, expiries and transfers between two repositories in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.repos = [ckptstore.init("memory://"), ckptstore.init("memory://")]
        self.step = 0

    def _other(self, side: int) -> ckptstore.Repository:
        return self.repos[1 - side]

    @rule(side=SIDES, branch=BRANCHES, number=st.integers(0, 3))
    def commit(self, side: int, branch: str, number: int) -> None:
        self.step += 1
        self.repos[side].commit(
            state(number), branch=branch, step=self.step, metrics={"loss": 1.0 / self.step}
        )

    @rule(side=SIDES, back=st.integers(0, 2))
    def seed(self, side: int, back: int) -> None:
        repo = self.repos[side]
        found = [c for c in repo.log() if not c.expired]
        if found and "fine/tuned" not in repo.ref_names()[0]:
            repo.branch("fine/tuned", at=found[min(back, len(found) - 1)].id)

    @rule(side=SIDES, name=st.sampled_from(["v1", "v2"]), back=st.integers(0, 3))
    def tag(self, side: int, name: str, back: int) -> None:
        repo = self.repos[side]
        found = [c for c in repo.log() if not c.expired]
        if found and name not in repo.ref_names()[1]:
            repo.tag(name, at=found[min(back, len(found) - 1)].id)

    @rule(side=SIDES, back=st.integers(0, 3), number=st.integers(0, 2))
    def annotate(self, side: int, back: int, number: int) -> None:
        if found := self.repos[side].log():
            id = found[min(back, len(found) - 1)].id
            self.repos[side].annotate(id, metrics={"acc": number})

    @rule(side=SIDES)
    def expire(self, side: int) -> None:
        self.repos[side].gc(MaxToKeep(1), grace=0)

    @rule(side=SIDES, branch=BRANCHES)
    def delete(self, side: int, branch: str) -> None:
        if branch in self.repos[side].ref_names()[0]:
            self.repos[side].delete_branch(branch)

    @rule(side=SIDES, branch=BRANCHES, back=st.integers(0, 3))
    def reset(self, side: int, branch: str, back: int) -> None:
        repo = self.repos[side]
        if branch in repo.ref_names()[0]:
            found = [c for c in repo.log(branch) if not c.expired]
            repo.reset_branch(branch, found[min(back, len(found) - 1)].id)

    @rule(side=SIDES)
    def reopen(self, side: int) -> None:
        self.repos[side] = ckptstore.open(self.repos[side].url)

    @rule(
        side=SIDES,
        is_pull=st.booleans(),
        depth=st.sampled_from([None, None, 1, 2]),
        tags=st.sampled_from([None, True, False]),
        force=st.booleans(),
        is_dry=st.booleans(),
    )
    def transfer(
        self,
        side: int,
        is_pull: bool,
        depth: int | None,
        tags: bool | None,
        force: bool,
        is_dry: bool,
    ) -> None:
        repo, other = self.repos[side], self._other(side)
        source, target = (other, repo) if is_pull else (repo, other)
        before = keys_of(target), keys_of(source)
        plan_: Callable[..., Any] = repo.plan_pull if is_pull else repo.plan_push
        try:
            plan = plan_(other.url, depth=depth, tags=tags, force=force)
        except ConflictError:
            assert not force
            assert (keys_of(target), keys_of(source)) == before
            return
        assert (keys_of(target), keys_of(source)) == before
        if is_dry:
            return
        report = plan.execute()
        assert report.bytes == plan.bytes
        assert keys_of(source) == before[1]
        heads = source.ref_names()[0]
        for name, id in heads.items():
            if force or not is_pull:
                assert target.ref_names()[0][name] == id
            else:
                assert any(c.id == id for c in target.log(name))
            assert [c.id for c in target.log(id)] == [c.id for c in source.log(id)]
        again = plan_(other.url, depth=depth, tags=tags, force=force)
        assert (again.moves, again.checkpoints, again.objects, again.notes) == ((), (), 0, 0)
        for repo in self.repos:
            assert_sound(repo)

    @precondition(lambda self: self.step)
    @rule(side=SIDES)
    def mirror(self, side: int) -> None:
        repo, other = self.repos[side], self._other(side)
        if not repo.ref_names()[0]:
            return  # refused, as it would delete all
        repo.push(other.url, mirror=True)
        repo.pull(other.url)  # notes are never deleted, so the mirror may have more
        assert repo.ref_names() == other.ref_names()
        for name in repo.ref_names()[0]:
            assert log_of(repo, name) == log_of(ckptstore.open(other.url), name)
            assert difference(repo.checkout(name), other.checkout(name)) is None
        for repo in self.repos:
            assert_sound(repo)

    @invariant()
    def heads_can_be_read(self) -> None:
        for repo in self.repos:
            for name in repo.ref_names()[0]:
                assert not repo.resolve(name).expired

    def teardown(self) -> None:
        """After a gc of what nothing keeps, all heads still have their arrays."""
        for repo in self.repos:
            kept = [c.id for name in repo.ref_names()[0] for c in repo.log(name) if not c.expired]
            fresh = ckptstore.open(repo.url)
            fresh.gc(grace=0)
            assert_sound(fresh)
            for id in kept:
                assert not fresh.resolve(id).expired, "a gc expired what a branch reaches"
                fresh.checkout(id)


Exchange.TestCase.settings = settings(deadline=None, stateful_step_count=15)
TestExchange = pytest.mark.property(Exchange.TestCase)
