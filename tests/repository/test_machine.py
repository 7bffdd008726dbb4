"""A repository against a model of dicts under random operations."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

import ckptstore
from ckptstore import (
    CheckoutMismatchError,
    ConflictError,
    ExpiredError,
    Incompatible,
    NotFoundError,
)
from ckptstore.retention import KeepBest, KeepEveryNSteps, MaxToKeep
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Callable

BRANCHES = ("main", "task-b", "seed/1")
TAGS = ("v1", "v2")


@dataclass(frozen=True)
class Made:
    """What the model knows of a checkpoint."""

    state: Any
    step: int
    loss: float
    parent: str | None
    branch: str


@dataclass(frozen=True)
class Refs:
    """Branches and tags at one moment."""

    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class RepositoryMachine(RuleBasedStateMachine):
    """Every rule does the same to the repository and to the model, and compares what they say."""

    checkpoints = Bundle("checkpoints")
    url = "memory://"

    @initialize()
    def make(self) -> None:
        self.now = 1_700_000_000.0
        self.repo = ckptstore.init(self.url, chunk_size=64 << 10, clock=self.clock)
        self.url = self.repo.url
        self.other = ckptstore.open(self.url, clock=self.clock)
        self.made: dict[str, Made] = {}
        self.moments = [Refs()]
        self.expired: set[str] = set()

    def clock(self) -> float:
        self.now += 1
        return self.now

    @property
    def refs(self) -> Refs:
        return self.moments[-1]

    def history(self, id: str | None) -> list[str]:
        found = []
        while id is not None:
            found.append(id)
            id = self.made[id].parent
        return found

    def own(self, name: str) -> list[str]:
        """The checkpoints that were made on a branch, newest first."""
        history = self.history(self.refs.heads.get(name))
        return list(takewhile(lambda id: self.made[id].branch == name, history))

    @rule(
        target=checkpoints,
        branch=st.sampled_from(BRANCHES),
        large=st.integers(0, 3),
        small=st.integers(0, 3),
        step=st.integers(0, 9),
        loss=st.sampled_from([0.5, 0.25, 0.5, math.nan, math.inf]),
        many=st.sampled_from([0, 40]),
    )
    def commit(self, branch: str, large: int, small: int, step: int, loss: float, many: int) -> str:
        """Add many small arrays, all but one equal in every checkpoint, on two pages."""
        state = {
            "model": {
                "w": np.full(20_000, large, np.float64),
                "b": np.full(3, small),
                "twin": [large],
            },
            "step": step,
        }
        if many:
            moments = {n: np.full(n + 1, n, np.float16) for n in range(many)}
            state["optimizer"] = {**moments, 7: np.full(3, small, np.int8)}
        parent = self.refs.heads.get(branch)
        found = self.repo.commit(state, branch=branch, step=step, metrics={"val_loss": loss})
        assert found.parents == ((parent,) if parent else ())
        self.made[found.id] = Made(state, step, loss, parent, branch)
        self.moments.append(Refs({**self.refs.heads, branch: found.id}, self.refs.tags))
        return found.id

    @rule(
        branch=st.sampled_from(BRANCHES),
        losses=st.lists(st.sampled_from([0.1, 0.3, 0.6]), min_size=2),
    )
    def train(self, branch: str, losses: list[float]) -> None:
        """Several commits, so that there is something for gc to give up."""
        for number, loss in enumerate(losses[:6]):
            self.commit(branch, number % 3, len(losses) % 4, number, loss, 0)

    @rule(id=checkpoints, digits=st.integers(8, 64))
    def checkout(self, id: str, digits: int) -> None:
        if self.refuses(id, lambda: self.repo.checkout(id[:digits])):
            return
        assert difference(self.made[id].state, self.repo.checkout(id[:digits])) is None

    @rule(id=checkpoints)
    def checkout_a_part(self, id: str) -> None:
        if self.refuses(id, lambda: self.repo.checkout(id, include="model/b")):
            return
        state = self.made[id].state
        found = self.repo.checkout(id, include=["model/b", "optimizer/7"], exclude="model/w")
        expected = {"model": {"b": state["model"]["b"]}}
        if "optimizer" in state:
            expected["optimizer"] = {7: state["optimizer"][7]}
        assert difference(expected, found) is None

    def partly(self, id: str, into: Any) -> Incompatible:
        """What did not fit of a checkpoint."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Incompatible = self.repo.checkout(id, into=into, strict=False)
        return found

    @rule(id=checkpoints)
    def checkout_into(self, id: str) -> None:
        """A destination without an optimizer is a misfit exactly for a checkpoint with one."""
        if self.refuses(id, lambda: self.partly(id, {})):
            return
        state = self.made[id].state
        target = {
            "model": {"w": np.zeros(20_000), "b": np.zeros(3, np.int64), "twin": [9]},
            "step": 0,
        }
        kept = target["model"]["w"]
        unexpected = tuple(f"optimizer/{n}" for n in state.get("optimizer", ()))
        if unexpected:
            with pytest.raises(CheckoutMismatchError):
                self.repo.checkout(id, into=target)
            assert not kept.any()
        assert self.partly(id, target).unexpected == unexpected
        expected = {"model": state["model"], "step": state["step"]}
        assert difference(expected, target) is None
        assert target["model"]["w"] is kept

    @rule(name=st.sampled_from(BRANCHES), id=checkpoints)
    def branch(self, name: str, id: str) -> None:
        if name in self.refs.heads:
            with pytest.raises(ConflictError):
                self.repo.branch(name, at=id)
            return
        if self.refuses(id, lambda: self.repo.branch(name, at=id)):
            return
        assert self.repo.branch(name, at=id).id == id
        self.moments.append(Refs({**self.refs.heads, name: id}, self.refs.tags))

    @rule(name=st.sampled_from(TAGS), id=checkpoints)
    def tag(self, name: str, id: str) -> None:
        if name in self.refs.tags:
            with pytest.raises(ConflictError):
                self.repo.tag(name, at=id)
            return
        if self.refuses(id, lambda: self.repo.tag(name, at=id)):
            return
        assert self.repo.tag(name, at=id).id == id
        self.moments.append(Refs(self.refs.heads, {**self.refs.tags, name: id}))

    @rule(name=st.sampled_from(BRANCHES))
    def delete_branch(self, name: str) -> None:
        if name not in self.refs.heads:
            with pytest.raises(NotFoundError):
                self.repo.delete_branch(name)
            return
        self.repo.delete_branch(name)
        heads = {other: id for other, id in self.refs.heads.items() if other != name}
        self.moments.append(Refs(heads, self.refs.tags))

    @rule(name=st.sampled_from(TAGS))
    def delete_tag(self, name: str) -> None:
        if name not in self.refs.tags:
            with pytest.raises(NotFoundError):
                self.repo.delete_tag(name)
            return
        self.repo.delete_tag(name)
        tags = {other: id for other, id in self.refs.tags.items() if other != name}
        self.moments.append(Refs(self.refs.heads, tags))

    @rule()
    def undo(self) -> None:
        """Undoing goes back step by step; what is done after an undo is undone first."""
        if len(self.moments) == 1:
            with pytest.raises(NotFoundError):
                self.repo.undo()
            return
        before = self.moments[-2]
        named = {*before.heads.values(), *before.tags.values()}
        if gone := named & self.expired:
            self.refuses(next(iter(gone)), self.repo.undo)
            return
        self.repo.undo()
        self.moments.pop()

    def refuses(self, id: str, call: Callable[[], object]) -> bool:
        """Whether a checkpoint has expired, and so cannot be read or named."""
        if id in self.expired:
            with pytest.raises(ExpiredError):
                call()
        return id in self.expired

    @rule(
        keep=st.integers(1, 3),
        best=st.booleans(),
        steps=st.none() | st.integers(1, 5),
        only=st.none() | st.sampled_from(BRANCHES),
    )
    def gc(self, keep: int, best: bool, steps: int | None, only: str | None) -> None:
        """What no branch's policy keeps expires, and so does what nothing reaches any more."""
        refs = self.refs
        if only is not None and only not in refs.heads:
            with pytest.raises(NotFoundError):
                self.repo.gc(MaxToKeep(keep), branches=[only])
            return
        policy = MaxToKeep(keep)
        best = best and any(map(self.own, refs.heads if only is None else [only]))
        policy = policy | KeepBest("val_loss") if best else policy
        policy = policy | KeepEveryNSteps(steps) if steps else policy
        kept = {*refs.heads.values(), *refs.tags.values()}
        for name, head in refs.heads.items():
            live = [id for id in self.history(head) if id not in self.expired]
            own = [id for id in self.own(name) if id not in self.expired]
            kept.update(live[len(own) :][:1])  # the seed
            if only not in (None, name):
                kept.update(live)
                continue
            newest = {self.made[id].step: id for id in reversed(own)}
            kept.update([id for id in own if newest[self.made[id].step] == id][:keep])
            known = [id for id in own if math.isfinite(self.made[id].loss)]
            if best and own:
                kept.add(min(known, key=lambda id: self.made[id].loss, default=own[0]))
            if steps:
                kept.update({self.made[id].step // steps: id for id in own}.values())
        expiring = set(self.made) - self.expired - kept
        plan = self.repo.plan_gc(policy, branches=only and [only], grace=0)
        assert {verdict.id for verdict in plan.expired} == expiring
        report = self.repo.gc(policy, branches=only and [only], grace=0)
        assert set(report.expired) == expiring
        self.expired |= expiring

    @rule()
    def reopen(self) -> None:
        self.repo = ckptstore.open(self.url, clock=self.clock)

    @rule()
    def go_on_in_another_process(self) -> None:
        """With what that one read of the repository when it last had its turn."""
        self.repo, self.other = self.other, self.repo

    @rule()
    def find_latest(self) -> None:
        order = list(self.made)
        self.expect("latest", max(self.refs.heads.values(), key=order.index, default=None))

    @rule(name=st.sampled_from((*BRANCHES, *TAGS)), back=st.integers(0, 4))
    def go_back(self, name: str, back: int) -> None:
        start = {**self.refs.tags, **self.refs.heads}.get(name)
        history = self.history(start)
        if back < len(history):
            assert self.repo.resolve(f"{name}~{back}").id == history[back]
        else:
            with pytest.raises(NotFoundError):
                self.repo.resolve(f"{name}~{back}")

    @rule(name=st.sampled_from(BRANCHES), step=st.integers(0, 9))
    def find_step(self, name: str, step: int) -> None:
        history = self.history(self.refs.heads.get(name))
        expected = next((id for id in history if self.made[id].step == step), None)
        self.expect(f"{name}@step={step}", expected)

    @rule(name=st.sampled_from(BRANCHES), mode=st.sampled_from(["", ":min", ":max"]))
    def find_best(self, name: str, mode: str) -> None:
        """The newest of the best that were made on the branch; NaN and infinity are none."""
        known = [id for id in self.own(name) if math.isfinite(self.made[id].loss)]
        sign = -1 if mode == ":max" else 1
        best = min(known, key=lambda id: sign * self.made[id].loss, default=None)
        self.expect(f"{name}@best:val_loss{mode}", best)
        if name == "main":
            self.expect(f"best:val_loss{mode}", best)

    def expect(self, revision: str, id: str | None) -> None:
        if id is None:
            with pytest.raises(NotFoundError):
                self.repo.resolve(revision)
        else:
            assert self.repo.resolve(revision).id == id

    @rule(name=st.sampled_from((*BRANCHES, *TAGS)), limit=st.none() | st.integers(0, 5))
    def log(self, name: str, limit: int | None) -> None:
        start = {**self.refs.tags, **self.refs.heads}.get(name)
        if start is None:
            with pytest.raises(NotFoundError):
                self.repo.log(name)
        else:
            found = [checkpoint.id for checkpoint in self.repo.log(name, limit=limit)]
            assert found == self.history(start)[:limit]

    @rule()
    def log_of_everything(self) -> None:
        """Each reachable checkpoint once, newest first."""
        starts = [*self.refs.heads.values(), *self.refs.tags.values()]
        reachable = {id for start in starts for id in self.history(start)}
        found = self.repo.log()
        assert {checkpoint.id for checkpoint in found} == reachable
        assert len(found) == len(reachable)
        times = [checkpoint.created for checkpoint in found]
        assert times == sorted(times, reverse=True)

    @rule()
    def verify(self) -> None:
        report = self.repo.verify()
        assert report.ok
        assert report.checkpoints == len(self.made) - len(self.expired)

    @precondition(lambda self: self.made)
    @rule()
    def stored_once(self) -> None:
        """No more than the different arrays there can be, and their pages and structures."""
        usage = self.repo.usage()
        assert usage.stored_bytes <= 4 * 3 * 64_000 + len(self.made) * 10_000
        assert (usage.branches, usage.tags) == (len(self.refs.heads), len(self.refs.tags))

    @rule(id=consumes(checkpoints), name=st.sampled_from(TAGS))
    def forget(self, id: str, name: str) -> None:
        """The test lets go of a checkpoint; the repository still knows its step and metrics."""
        assert self.repo.resolve(id).step == self.made[id].step

    @invariant()
    def refs_agree(self) -> None:
        if hasattr(self, "repo"):
            heads, tags = self.repo.ref_names()
            assert (heads, tags) == (self.refs.heads, self.refs.tags)


class RepositoryOnDiskMachine(RepositoryMachine):
    """The same in a folder."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.url = f"{self.folder}/store"
        super().make()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)


TestRepository = RepositoryMachine.TestCase
TestRepositoryOnDisk = RepositoryOnDiskMachine.TestCase
TestRepositoryOnDisk.settings = settings(max_examples=max(5, settings().max_examples // 5))
