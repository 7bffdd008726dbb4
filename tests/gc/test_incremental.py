"""A gc that goes by what changed does what a full one would, at a cost that does not grow."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore import (
    ConflictError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.marker import Marker
from ckptstore.gc import execute
from ckptstore.history import OwnChain, ancestors, own_chain
from ckptstore.repository import Repository
from ckptstore.retention import (
    KeepAll,
    KeepBest,
    KeepEveryNHours,
    KeepEveryNSteps,
    KeepWithin,
    MaxToKeep,
    Policies,
    Policy,
    decide,
)
from ckptstore.store.catalog import EXPIRIES
from ckptstore.store.objects import key_of as object_key
from tests.helpers.counting_storage import CHUNK_BYTES, CountingStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.documents.manifest import Manifest

POLICIES = [
    MaxToKeep(1),
    MaxToKeep(3) | KeepBest("loss"),
    KeepBest("loss") | KeepEveryNSteps(4),
    KeepAll(),
]
ACTIONS = ["commit", "commit", "commit", "branch", "drop", "tag", "untag", "undo", "gc", "full"]


class World:
    """Several handles on one repository, with a clock that goes on by a second a look."""

    def __init__(self, handles: int = 2) -> None:
        self.storage = CountingStorage()
        self.time = 1_000_000.0
        marker = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)
        self.storage.create("ckptstore.json", marker.encode())
        self.open = lambda: Repository(self.storage, marker, clock=self.clock)
        self.handles = [self.open() for _ in range(handles)]
        self.number = 0

    def clock(self) -> float:
        self.time += 0.001
        return self.time

    def commit(
        self,
        repo: Repository,
        branch: str = "main",
        value: int | None = None,
        loss: float | None = None,
    ) -> Any:
        self.number += 1
        value = self.number if value is None else value
        state = {"large": np.arange(9_000) + value, "small": np.full(9, self.number), "same": 1}
        metrics = {"loss": float((self.number * 7) % 11) if loss is None else loss}
        return repo.commit(state, branch=branch, step=self.number, metrics=metrics)

    def act(self, action: str, handle: int, choice: int) -> None:
        repo = self.handles[handle % len(self.handles)]
        heads, tags = map(list, repo.ref_names())
        branch = f"branch-{choice % 3}"
        if action == "commit":
            self.commit(repo, branch, value=choice % 5)
        elif action == "branch" and heads:
            repo.branch(branch, at=(heads + tags)[choice % len(heads + tags)])
        elif action == "drop" and heads:
            repo.delete_branch(heads[choice % len(heads)])
        elif action == "tag" and heads:
            back = f"~{choice % 3}"
            repo.tag(f"tag-{choice}", at=heads[choice % len(heads)] + back)
        elif action == "untag" and tags:
            repo.delete_tag(tags[choice % len(tags)])
        elif action == "undo":
            repo.undo()
        elif action in ("gc", "full"):
            self.collect(repo, choice, leftovers=action == "full")

    def collect(self, repo: Repository, choice: int, *, leftovers: bool) -> None:
        """Compare a gc with what a fresh handle plans, and that with what the manifests say."""
        policy = POLICIES[choice % len(POLICIES)]
        only = [branch] if (branch := f"branch-{choice % 3}") in repo.ref_names()[0] else None
        plan = self.open().plan_gc(policy, branches=only, grace=0)
        named = [verdict for verdict in plan.verdicts if not verdict.is_let_go]
        assert {(v.id, v.kept, v.reasons, v.branches) for v in named} == self.by_definition(
            policy, only
        )
        listed = repo._stores().is_listing_due() or leftovers
        report = repo.gc(policy, branches=only, grace=0, leftovers=leftovers)
        assert set(report.expired) == {verdict.id for verdict in plan.expired}
        left = 0 if listed else plan.leftover_bytes
        assert report.bytes == plan.bytes - left
        after = self.open().plan_gc(policy, branches=only, grace=0)
        assert after.expired == ()
        assert after.leftover_bytes == left
        assert self.open().verify().problems == ()

    def by_definition(self, policy: Any, branches: Any) -> set[Any]:
        """The verdicts by a walk over all manifests, those of expired checkpoints too."""
        repo = self.open()
        newest, catalog = repo._oplog.newest(), repo._catalog

        def reached(starts: Any) -> list[tuple[Any, Manifest]]:
            walk = ancestors(starts, catalog.lookup)
            return [(id, manifest) for id, manifest in walk if catalog.is_live(id)]

        def own(name: str, head: Any) -> OwnChain:
            return own_chain(
                head,
                newest.claim_of(name),
                catalog.lookup,
                lambda _, item: first_live(item.parents),
            )

        def first_live(parents: Any) -> Any:
            while parents and not catalog.is_live(parents[0]):
                parents = catalog.manifest(parents[0]).parents
            return parents[:1]

        decision = decide(
            Policies.given(policy, only=branches),
            heads=newest.heads,
            tags=newest.tags,
            reached=reached,
            own=own,
        )
        return {(v.id, v.kept, v.reasons, v.branches) for v in decision.verdicts}


steps = st.tuples(st.sampled_from(ACTIONS), st.integers(0, 1), st.integers(0, 11))


@pytest.mark.property
@given(actions=st.lists(steps, min_size=10, max_size=60), keeps_few=st.booleans())
def test_it_expires_and_deletes_what_a_full_gc_would(
    actions: list[tuple[str, int, int]], keeps_few: bool
) -> None:
    """Also where other handles did the like meanwhile, or operations were pruned."""
    with pytest.MonkeyPatch.context() as patch:
        if keeps_few:
            patch.setattr("ckptstore.store.oplog.KEPT_OPERATIONS", 4)
            patch.setattr("ckptstore.store.oplog.PRUNE_EVERY", 1)
        world = World()
        for action in actions:
            with suppress(ConflictError, ExpiredError, NotFoundError, InvalidInputError):
                world.act(*action)
        if world.handles[0].ref_names()[0]:
            for handle in world.handles:
                world.collect(handle, 1, leftovers=False)


def test_a_commit_in_the_middle_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs what is about to expire, and is there before that is condemned."""
    world = World()
    ours, other = world.handles
    for value in range(4):
        world.commit(ours, value=value)
        ours.gc(MaxToKeep(2), grace=0, leftovers=False)
    condemn, made = execute.condemn, []

    def after_a_commit(*args: Any, **options: Any) -> Any:
        if not made:
            made.append(world.commit(other, "new", value=2))
        return condemn(*args, **options)

    world.commit(ours, value=4)
    monkeypatch.setattr(execute, "condemn", after_a_commit)
    assert len(ours.gc(MaxToKeep(2), grace=0, leftovers=False).expired) == 1
    fresh = world.open()
    assert fresh.verify().problems == ()
    assert np.array_equal(fresh.checkout("new")["large"], np.arange(9_000) + 2)


def test_a_commit_that_is_faster_than_the_gc_that_would_condemn_it_is_spared() -> None:
    """It needs what expires, which was chosen for the operation that then comes too late."""
    world = World()
    ours, other = world.handles
    for value in range(4):
        world.commit(ours, value=value)
        ours.gc(MaxToKeep(3), grace=0, leftovers=False)
    create, made = world.storage.create, []

    def late(key: str, data: Any, **options: Any) -> bool:
        if not made and b"condemned what" in data:
            made.append(world.commit(other, "new", value=1))
        return create(key, data, **options)

    world.storage.create = late  # type: ignore[method-assign]
    ours.gc(MaxToKeep(1), grace=0, leftovers=False)
    fresh = world.open()
    assert made
    assert fresh.verify().problems == ()
    assert np.array_equal(fresh.checkout("new")["large"], np.arange(9_000) + 1)


@pytest.mark.parametrize("error", [CorruptError, StorageError])
def test_a_gc_that_fails_leaves_the_next_one_right(error: type[Exception]) -> None:
    world = World()
    repo = world.handles[0]
    for value in range(3):
        world.commit(repo, value=value)
    repo.gc(MaxToKeep(3), leftovers=False)
    made = [world.commit(repo, value=value) for value in (8, 9)]
    pages = [object_key(checkpoint._manifest.pages[0].digest) for checkpoint in made]
    get = world.storage.get

    def fail(key: str, *, bytes_max: int) -> bytes:
        if key in pages and (error is CorruptError or world.storage.reads[key] == 0):
            world.storage.reads[key] += 1
            raise error("As if the disk had failed.")
        return get(key, bytes_max=bytes_max)

    world.storage.forget()
    world.storage.get = fail  # type: ignore[method-assign]
    for _ in pages:
        with pytest.raises(error):
            repo.gc(MaxToKeep(1), grace=0, leftovers=False)
    world.storage.get = get  # type: ignore[method-assign]
    assert len(repo.gc(MaxToKeep(1), grace=0, leftovers=False).expired) == 4
    assert world.open().verify().problems == ()
    if error is CorruptError:  # the page of one that expired was not read again
        repo.gc(MaxToKeep(1), grace=0)
    assert world.open().plan_gc(MaxToKeep(1), grace=0).leftover_objects == 0


def test_what_expires_together_names_the_ancestors_that_stay() -> None:
    world = World(1)
    repo = world.handles[0]
    made = [world.commit(repo, loss=float(number)) for number in range(6)]
    repo.gc(MaxToKeep(2) | KeepBest("loss"), grace=0)
    ancestors_of = [repo._catalog.expiry(checkpoint.id) for checkpoint in made]
    assert [expiry and expiry.ancestors for expiry in ancestors_of] == [
        None,
        *[(made[0].id,)] * 3,
        *[None] * 2,
    ]


def costs(storage: CountingStorage, act: Callable[[], object]) -> Counter[str]:
    """The calls of an action by method, and the keys it listed outside of the operations."""
    storage.forget()
    act()
    counted = Counter(storage.calls)
    counted["listed"] = sum(n for prefix, n in storage.listed.items() if prefix != "ops/")
    return counted


POLICY = MaxToKeep(3) | KeepBest("loss")


class Run:
    """A run of many saves, the first of which is the best, and of other branches beside it."""

    def __init__(
        self,
        saves: int,
        siblings: int = 0,
        *,
        policy: Policy = POLICY,
        records_ancestors: bool = True,
    ) -> None:
        self.world, self.policy = World(1), policy
        self.repo = self.world.handles[0]
        self.count = 0
        for number in range(siblings):
            self.world.commit(self.repo, f"sibling-{number}")
        for _ in range(saves):
            self.save(self.repo)
        if not records_ancestors:  # as earlier versions wrote them
            for id, _ in list(self.repo._catalog.list(EXPIRIES)):
                assert id
                expiry = Expiry(time=1, why="Because.")
                self.world.storage.put(self.repo._catalog.key(id, EXPIRIES), expiry.encode())

    def save(self, repo: Repository) -> None:
        self.world.commit(repo, loss=float(self.count))
        self.count += 1
        repo.gc(self.policy, branches=["main"], leftovers=False)

    def costs(self, act: Callable[[Repository], object], *, fresh: bool) -> Counter[str]:
        repo = self.world.open() if fresh else self.repo
        return costs(self.world.storage, lambda: act(repo))


def test_a_save_of_a_run_costs_the_same_however_long_the_run_is() -> None:
    short, long = Run(12), Run(100)
    assert short.costs(short.save, fresh=False) == long.costs(long.save, fresh=False)


def test_the_first_save_of_a_process_costs_what_is_live() -> None:
    short, long = Run(12), Run(100)
    assert short.costs(short.save, fresh=True) == long.costs(long.save, fresh=True)


@pytest.mark.parametrize("policy", [MaxToKeep(3), POLICY], ids=str)
def test_expiries_of_earlier_versions_name_no_ancestors(policy: Policy) -> None:
    """The history is walked once, where something live is behind it, and not by later processes."""
    short, long = (Run(saves, policy=policy, records_ancestors=False) for saves in (80, 160))
    if policy == POLICY:
        for run in (short, long):
            run.save(run.world.open())
    assert short.costs(short.save, fresh=True) == long.costs(long.save, fresh=True)


def test_hours_over_expired_checkpoints_cost_no_look_at_them() -> None:
    policy = MaxToKeep(3) | KeepEveryNHours(24) | KeepWithin(1e-6)
    short, long = Run(12, policy=policy), Run(100, policy=policy)
    for fresh in (False, True):
        assert short.costs(short.save, fresh=fresh) == long.costs(long.save, fresh=fresh)


def test_a_branch_in_its_grace_time_costs_a_save_the_same_however_long_the_run_is() -> None:
    short, long = Run(12, siblings=5), Run(100, siblings=5)
    for run in (short, long):
        for number in range(4):
            for _ in range(3):
                run.world.commit(run.repo, f"sibling-{number}")
            run.repo.delete_branch(f"sibling-{number}")
        run.save(run.repo)
    for fresh in (False, True):
        costs = short.costs(short.save, fresh=fresh)
        assert costs == long.costs(long.save, fresh=fresh)
    assert not any(found.expired for found in long.repo.log("sibling-4"))
    assert len(long.repo.plan_gc().verdicts) == 3 + 1 + 5 + 4 * 3


def test_a_save_costs_the_same_however_many_branches_there_are() -> None:
    few, many = Run(12, siblings=2), Run(12, siblings=40)
    assert few.costs(few.save, fresh=False) == many.costs(many.save, fresh=False)


AT_THE_END: dict[str, Callable[[Repository], object]] = {
    "log -n 3": lambda repo: repo.log("main", limit=3),
    "log of live ones": lambda repo: repo.log("main", expired=False),
    "resolve": lambda repo: repo.resolve("main~2"),
    "checkout": lambda repo: repo.checkout("main"),
    "commit": lambda repo: repo.commit({"lr": 0.1}),
    "branch": lambda repo: repo.branch("other", at="main"),
    "tag": lambda repo: repo.tag("v1"),
    "undo": lambda repo: repo.undo(),
}


@pytest.mark.parametrize("name", AT_THE_END)
def test_what_is_done_at_the_end_of_a_run_costs_the_same_however_long_it_is(name: str) -> None:
    act = AT_THE_END[name]
    short, long = Run(12), Run(100)
    assert short.costs(act, fresh=True) == long.costs(act, fresh=True)


def test_what_a_conflict_leaves_is_found_by_the_next_listing() -> None:
    world = World()
    ours, other = world.handles
    world.commit(ours)
    ours.gc(MaxToKeep(1), grace=0, leftovers=False)
    with ours.session("main") as session:
        world.commit(other)
        with pytest.raises(ConflictError):
            session.commit()
    assert ours.gc(MaxToKeep(1), grace=0, leftovers=False).expired != ()
    ours.gc(MaxToKeep(1), grace=0)
    assert world.open().plan_gc(MaxToKeep(1), grace=0).leftover_objects == 0
