"""Gc: what a policy gives up expires, what nothing reaches goes, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import ckptstore
from ckptstore import ConflictError, CorruptError, ExpiredError, InvalidInputError
from ckptstore.documents.operation import OPERATION_BYTES_MAX, Condemned
from ckptstore.gc import execute
from ckptstore.gc.ownership import Ownership
from ckptstore.retention import KeepAll, KeepBest, KeepIf, MaxToKeep
from ckptstore.storage.local import RESERVE
from ckptstore.store.catalog import key_of
from ckptstore.store.objects import key_of as object_key
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore.documents.operation import Operation
    from ckptstore.retention import Policy

CHUNK = 64 << 10


def arrays(number: int) -> dict[str, Any]:
    """A state that shares nothing large with those of other numbers."""
    return {"large": np.arange(20_000) + number, "small": np.full(10, number), "number": number}


class Line:
    """A repository with some checkpoints on main, one a second."""

    def __init__(self, count: int = 4, url: Any = "memory://") -> None:
        self.time = 1_000_000.0
        self.repo = ckptstore.init(url, chunk_size=CHUNK, clock=self.clock)
        self.storage = self.repo._storage
        self.ids = [self.commit(number) for number in range(count)]

    def clock(self) -> float:
        self.time += 1
        return self.time

    def commit(self, number: int, **options: Any) -> Any:
        metrics = {"loss": float(number)}
        return self.repo.commit(arrays(number), step=number, metrics=metrics, **options).id

    def objects(self) -> dict[str, int]:
        return {item.key: item.size for item in self.storage.list("objects/")}

    def assert_whole(self, *numbers: int) -> None:
        """These are there, bit for bit, and nothing of the others is."""
        assert self.repo.verify().problems == ()
        for number, id in enumerate(self.ids):
            if number in numbers:
                assert difference(arrays(number), self.repo.checkout(id)) is None
            else:
                with pytest.raises(ExpiredError):
                    self.repo.checkout(id)


def test_the_newest_stay_and_the_others_expire() -> None:
    line = Line()
    before = line.objects()
    plan = line.repo.plan_gc(MaxToKeep(2), grace=0)
    assert line.objects() == before
    assert [verdict.id for verdict in plan.verdicts] == line.ids[::-1]
    assert [verdict.kept for verdict in plan.verdicts] == [True, True, False, False]
    report = plan.execute()
    assert set(report.expired) == set(line.ids[:2])
    gone = {key: size for key, size in before.items() if key not in line.objects()}
    assert (report.objects, report.bytes) == (len(gone), sum(gone.values()))
    assert report.bytes == plan.bytes == sum(plan.frees.values()) > 2 * 160_000
    line.assert_whole(2, 3)


def test_a_second_gc_finds_nothing_and_appends_nothing() -> None:
    line = Line()
    line.repo.gc(MaxToKeep(1), grace=0)
    operations = list(line.storage.list("ops/"))
    report = line.repo.gc(MaxToKeep(1), grace=0)
    assert (report.expired, report.objects, report.bytes) == ((), 0, 0)
    assert list(line.storage.list("ops/")) == operations


def test_what_expired_keeps_its_facts_and_says_when_and_why() -> None:
    line = Line()
    line.repo.gc(MaxToKeep(1), grace=0)
    log = line.repo.log()
    assert [(c.step, c.metrics, c.expired) for c in log] == [
        (3, {"loss": 3.0}, False),
        (2, {"loss": 2.0}, True),
        (1, {"loss": 1.0}, True),
        (0, {"loss": 0.0}, True),
    ]
    with pytest.raises(ExpiredError, match=r"newest.*deleted on 1970-01-12") as caught:
        line.repo.checkout(line.ids[0])
    assert "step and metrics remain" in str(caught.value)
    for read in (lambda c: c.arrays, lambda c: c.values, lambda c: c.names):
        with pytest.raises(ExpiredError):
            read(ckptstore.open(line.repo.url).resolve(line.ids[0]))


def test_heads_and_tags_stay_whatever_the_policy() -> None:
    line = Line()
    line.repo.tag("v1", line.ids[0])
    line.repo.branch("side", line.ids[1])
    line.repo.gc(MaxToKeep(1), grace=0)
    line.assert_whole(0, 1, 3)


def test_objects_that_another_checkpoint_shares_stay() -> None:
    line = Line(1)
    shared = {**arrays(0), "extra": np.arange(9_000)}
    kept = line.repo.commit(shared)
    line.repo.gc(MaxToKeep(1), grace=0)
    assert difference(shared, line.repo.checkout(kept.id)) is None
    assert line.repo.verify().ok


def test_each_frees_what_it_alone_had_and_the_sum_is_what_goes() -> None:
    line = Line(0)
    big = np.arange(20_000)
    first = line.repo.commit({"a": big, "n": 1}).id
    second = line.repo.commit({"a": big, "n": 2}).id
    line.repo.commit({"b": big + 1})
    plan = line.repo.plan_gc(MaxToKeep(1), grace=0)
    assert plan.frees[second] > big.nbytes > plan.frees[first] > 0
    assert plan.execute().bytes == plan.bytes


def test_leftovers_go_when_they_are_old_enough() -> None:
    line = Line(1)
    line.storage.put(object_key(ckptstore.digest.Digest.of(b"left")), b"left")
    plan = line.repo.plan_gc(KeepAll())
    assert (plan.leftover_objects, plan.leftover_bytes) == (0, 0)
    plan = line.repo.plan_gc(KeepAll(), grace=0)
    assert (plan.leftover_objects, plan.leftover_bytes) == (1, 4)
    assert plan.execute().bytes == 4
    line.assert_whole(0)


def test_a_deleted_branch_is_given_up_after_the_grace_time_only() -> None:
    line = Line(2)
    line.ids.append(line.commit(2, branch="side"))
    line.repo.delete_branch("side")
    line.repo.gc(KeepAll())
    line.assert_whole(0, 1, 2)
    (lost,) = line.repo.plan_gc(KeepAll(), grace=0).expired
    assert lost.id == line.ids[2]
    assert str(lost.reasons[0]).startswith("branch side was deleted on 1970-01-12")
    line.repo.gc(KeepAll(), grace=0)
    line.assert_whole(0, 1)
    with pytest.raises(ExpiredError, match="Branch side was deleted on 1970-01-12"):
        line.repo.checkout(line.ids[2])


def test_undo_brings_a_deleted_branch_back_while_its_arrays_exist() -> None:
    line = Line(1)
    line.ids.append(line.commit(1, branch="side"))
    line.repo.delete_branch("side")
    line.repo.gc(KeepAll())
    line.repo.undo()
    line.assert_whole(0, 1)
    line.repo.delete_branch("side")
    line.repo.gc(KeepAll(), grace=0)
    with pytest.raises(ExpiredError):
        line.repo.undo()
    assert set(line.repo.branches()) == {"main"}


def test_no_branch_or_tag_can_be_made_at_what_has_expired() -> None:
    line = Line(2)
    line.repo.gc(MaxToKeep(1), grace=0)
    for make in (line.repo.branch, line.repo.tag):
        with pytest.raises(ExpiredError):
            make("again", line.ids[0])
    line.repo.branch("fine", line.ids[1])


def test_what_gets_a_name_between_plan_and_execution_stays() -> None:
    line = Line(4)
    plan = line.repo.plan_gc(MaxToKeep(1), grace=0)
    line.repo.branch("wanted", line.ids[1])
    assert set(plan.execute().expired) == {line.ids[0], line.ids[2]}
    line.assert_whole(1, 3)


@pytest.mark.parametrize("is_late", [False, True])
def test_a_deleted_branch_that_comes_back_after_the_plan_stays_whole(
    monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """With all that it reaches, also when it comes back once the gc has begun to delete."""
    line = Line(4)
    line.repo.branch("side", at=line.ids[-1])
    line.repo.delete_branch("main")
    line.repo.delete_branch("side")
    plan = line.repo.plan_gc(KeepAll(), grace=0)
    assert len(plan.expired) == 4
    begin = execute.find_remaining

    def then_undo(*args: Any, **options: Any) -> Any:
        found = begin(*args, **options)
        ckptstore.open(line.repo.url).undo()
        return found

    if is_late:
        monkeypatch.setattr(execute, "find_remaining", then_undo)
    else:
        line.repo.undo()
    plan.execute()
    line.assert_whole(0, 1, 2, 3)


def test_without_a_policy_only_what_nothing_reaches_is_deleted() -> None:
    line = Line(3)
    line.repo.commit(arrays(70), branch="mistake")
    line.repo.delete_branch("mistake")
    assert line.repo.retention() is None
    assert line.repo.gc().objects == 0  # it may belong to a commit in progress
    report = line.repo.gc(grace=0)
    assert (len(report.expired), report.bytes > 100_000) == (1, True)
    line.assert_whole(0, 1, 2)


def test_a_saved_policy_is_applied_and_can_be_changed_and_undone() -> None:
    line = Line(3)
    line.repo.set_retention(MaxToKeep(2) | KeepBest("loss"))
    assert line.repo.retention() == MaxToKeep(2) | KeepBest("loss")
    assert line.repo.plan_gc(grace=0).expired == ()
    line.repo.set_retention(MaxToKeep(1))
    line.repo.undo()
    assert line.repo.retention() == MaxToKeep(2) | KeepBest("loss")
    line.repo.set_retention(None)
    assert line.repo.retention() is None
    with pytest.raises(InvalidInputError):
        line.repo.set_retention(KeepIf(lambda manifest: True))
    line.repo.gc(KeepIf(lambda manifest: manifest.step == 0), grace=0)
    line.assert_whole(0, 2)


def test_a_metric_that_nobody_logged_is_an_error_before_anything_is_touched() -> None:
    line = Line(2)
    before = sorted(line.storage.list(""))
    with pytest.raises(InvalidInputError, match="loss"):
        line.repo.gc(KeepBest("los"), grace=0)
    assert sorted(line.storage.list("")) == before


@pytest.mark.parametrize("what", ["page", "manifest", "head"])
def test_damage_stops_gc_before_anything_is_touched(what: str) -> None:
    line = Line(3)
    head = line.repo.resolve("main")
    key = object_key(head._manifest.pages[0].digest) if what == "page" else key_of(head.id)
    if what == "head":
        line.storage.delete([key])
    else:
        line.storage.put(key, b"x" * (line.storage.size(key) or 0))
    before = sorted(line.storage.list(""))
    repo = ckptstore.open(line.repo.url)
    with pytest.raises((CorruptError, ckptstore.NotFoundError)):
        repo.gc(MaxToKeep(1), grace=0)
    assert sorted(line.storage.list("")) == before


def test_damage_in_what_expires_does_not_matter() -> None:
    line = Line(2)
    page = object_key(line.repo.resolve(line.ids[0])._manifest.pages[0].digest)
    line.storage.put(page, b"x" * (line.storage.size(page) or 0))
    repo = ckptstore.open(line.repo.url)
    repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().ok
    line.assert_whole(1)


def test_a_part_of_the_history_that_is_missing_makes_nothing_unreachable() -> None:
    line = Line(3)
    line.storage.delete([key_of(line.ids[1])])
    repo = ckptstore.open(line.repo.url)
    repo.gc(KeepAll(), grace=0)
    assert difference(arrays(0), repo.checkout(line.ids[0])) is None


@pytest.mark.parametrize("moved", [False, True])
def test_a_gc_that_died_is_finished_by_the_next(moved: bool) -> None:
    line = Line(3)
    old = line.repo.resolve(line.ids[0])
    page = line.repo._catalog.page(old._manifest.pages[0].digest)
    digests = tuple(digest for digest, _ in page.digests())
    condemned = Condemned(checkpoints=(old.id,), digests=digests, why="Because.")
    line.repo._oplog.append(
        lambda newest: newest.__class__(heads=newest.heads, condemned=condemned)
    )
    if moved:
        part = Condemned(checkpoints=(old.id,), why="Because.")
        ownership = Ownership(line.repo._stores(), held=part)
        execute.delete(line.repo._stores(), part, ownership=ownership)
    line.repo.gc(KeepAll(), grace=0)
    assert line.repo._oplog.newest().condemned is None
    line.assert_whole(1, 2)


def test_a_commit_that_needs_what_a_dead_gc_condemned_finishes_it_and_puts_it_again() -> None:
    line = Line(2)
    old = line.repo.resolve(line.ids[0])
    page = line.repo._catalog.page(old._manifest.pages[0].digest)
    digests = tuple(digest for digest, _ in page.digests())
    condemned = Condemned(checkpoints=(old.id,), digests=digests, why="Because.")
    line.repo._oplog.append(
        lambda newest: newest.__class__(heads=newest.heads, condemned=condemned)
    )
    again = line.repo.commit(arrays(0))
    assert line.repo._oplog.newest().condemned is None
    assert difference(arrays(0), line.repo.checkout(again.id)) is None
    assert line.repo.verify().ok


def test_a_plan_that_waited_knows_what_came_meanwhile() -> None:
    """Another gc expires more than the plan did, and then what it deleted is committed again."""
    line = Line(4)
    plan = line.repo.plan_gc(MaxToKeep(2), grace=0)
    line.repo.gc(MaxToKeep(1), grace=0)
    line.commit(2, branch="again")
    line.commit(0, branch="first")
    line.repo.branch("newest", at="main")
    plan.execute()
    assert line.repo.verify().ok
    for rev, number in (("main", 3), ("again", 2), ("first", 0)):
        assert difference(arrays(number), line.repo.checkout(rev)) is None
    line.repo.gc(MaxToKeep(1), grace=0)
    assert line.repo.usage().objects == len(line.objects())
    assert line.repo.verify().ok


def test_a_plan_can_be_executed_twice() -> None:
    line = Line(4)
    plan = line.repo.plan_gc(MaxToKeep(2), grace=0)
    plan.execute()
    line.commit(0)
    line.ids.append(line.repo.resolve("main").id)
    again = plan.execute()
    assert (again.expired, again.objects) == ((), 0)
    assert difference(arrays(0), line.repo.checkout("main")) is None
    assert line.repo.verify().ok


def test_many_checkpoints_and_objects_are_condemned_in_several_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptstore.gc.remaining.BATCH", 3)
    monkeypatch.setattr("ckptstore.gc.remaining.BATCH_CHECKPOINTS", 3)
    line = Line(9)
    before = line.repo._oplog.newest().seq
    line.repo.gc(MaxToKeep(2), grace=0)
    operations = list(line.repo._oplog.between(before + 1, line.repo._oplog.newest()))
    condemned = [operation.condemned for operation in operations]
    assert condemned[-1] is None
    assert len(condemned) > 4
    assert all(len(c.checkpoints) <= 3 and len(c.digests) <= 3 for c in condemned if c)
    assert not any(c.digests for c in condemned[:2] if c)
    line.assert_whole(7, 8)


def test_all_that_one_gc_condemns_names_it_and_the_operation_since_which_it_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Operations that others append meanwhile carry it along."""
    monkeypatch.setattr("ckptstore.gc.remaining.BATCH", 3)
    monkeypatch.setattr("ckptstore.gc.remaining.BATCH_CHECKPOINTS", 3)
    line = Line(6)
    before = line.repo._oplog.newest().seq
    delete, names = execute.delete, iter(range(100))

    def beside_a_tag(stores: Any, condemned: Condemned, **by: Any) -> Any:
        line.repo.tag(f"beside-{next(names)}", "main")
        return delete(stores, condemned, **by)

    monkeypatch.setattr(execute, "delete", beside_a_tag)
    line.repo.gc(MaxToKeep(1), grace=0)
    operations = list(line.repo._oplog.between(before + 1, line.repo._oplog.newest()))
    parts = [(op.seq, op.condemned) for op in operations if op.condemned]
    owners = {part.owner for _, part in parts}
    assert [len(owner) for owner in owners] == [16]
    made = [seq for seq, part in parts if part.since == seq]
    assert len(made) > 2
    carried = [(seq, part.since) for seq, part in parts if seq not in made]
    assert carried == [(seq + 1, seq) for seq in made]
    line.commit(50)
    line.repo.gc(MaxToKeep(1), grace=0)
    again = line.repo._oplog.between(operations[-1].seq + 1, line.repo._oplog.newest())
    assert owners.isdisjoint({op.condemned.owner for op in again if op.condemned})
    assert line.repo.verify().ok


def test_a_folder_is_left_clean(tmp_path: Path) -> None:
    line = Line(3, url=tmp_path / "store")
    line.repo.gc(MaxToKeep(1), grace=0)
    line.assert_whole(2)
    assert len(list((tmp_path / "store" / "history").iterdir())) == 2
    assert len(list((tmp_path / "store" / "expired").iterdir())) == 2
    assert {path.name for path in (tmp_path / "store" / "tmp").iterdir()} == set(RESERVE)


def test_gc_does_not_lose_to_commits_that_come_all_the_time() -> None:
    line = Line(4)
    plan = line.repo.plan_gc(MaxToKeep(1), grace=0)
    real, left = line.storage.create, [5]

    def create(key: str, data: Any, **options: Any) -> bool:
        if left[0]:
            left[0] -= 1
            line.storage.create = real  # type: ignore[method-assign]
            line.ids.append(line.commit(10 + left[0]))
            line.storage.create = create  # type: ignore[method-assign]
        return bool(real(key, data, **options))

    line.storage.create = create  # type: ignore[method-assign]
    plan.execute()
    assert left == [0]
    assert line.repo.verify().ok
    with pytest.raises(ExpiredError):
        line.repo.checkout(line.ids[0])
    assert difference(arrays(14), line.repo.checkout(line.ids[4])) is None


def test_a_commit_in_the_middle_of_a_gc_is_never_lost() -> None:
    """It relies on what the gc condemned just then: it waits, puts it again, and is whole."""
    line = Line(3)
    plan = line.repo.plan_gc(MaxToKeep(1), grace=0)
    other = ckptstore.open(line.repo.url)
    with pytest.raises(ConflictError):
        other.branch("main", line.ids[0])
    plan.execute()
    made = other.commit(arrays(0))
    assert difference(arrays(0), other.checkout(made.id)) is None


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> Line:
    """A second gc that begins before the arrays are looked up."""
    line = Line(2)
    refs = line.repo._refs
    check_live, lost = refs._check_live, []

    def collect(newest: Operation, decided: Operation) -> None:
        if not lost:
            lost.append(decided.heads["new"])
            line.repo.gc(KeepAll(), grace=0)
            assert line.repo._catalog.is_expired(lost[0])
        check_live(newest, decided)

    monkeypatch.setattr(refs, "_check_live", collect)
    return line


@pytest.mark.parametrize(
    "make",
    [
        lambda repo: repo.commit(arrays(1), branch="new"),
        lambda repo: repo.branch("new", "main", include=["large"]),
    ],
    ids=["a commit", "a seed"],
)
def test_what_a_gc_takes_before_any_branch_has_it_is_made_again(
    make: Callable[[ckptstore.Repository], ckptstore.Checkpoint], overtaken: Line
) -> None:
    made = make(overtaken.repo)
    assert overtaken.repo.resolve("new").id == made.id
    assert np.array_equal(overtaken.repo.checkout("new")["large"], arrays(1)["large"])
    assert overtaken.repo.verify().problems == ()


def test_what_a_gc_takes_of_a_session_before_any_branch_has_it_is_a_conflict(
    overtaken: Line,
) -> None:
    """What it wrote is nowhere else, so only who wrote it can write it again."""
    with overtaken.repo.session("new") as session:
        zarr.open_group(session.store).create_array("large", data=np.arange(20_000))
        with pytest.raises(ConflictError, match="gc deleted objects it had written"):
            session.commit()
    assert overtaken.repo.verify().problems == ()


def test_a_commit_that_died_beside_a_gc_and_lost_its_objects_stops_no_later_gc() -> None:
    line = Line(2)
    died = line.repo.commit(arrays(9), branch="side")
    line.repo.delete_branch("side")
    page = line.repo._catalog.page(died._manifest.pages[0].digest)
    line.storage.delete([object_key(digest) for digest, _ in page.digests()])
    line.storage.delete([object_key(died._manifest.pages[0].digest)])
    repo = ckptstore.open(line.repo.url)
    assert repo.verify().ok  # nothing that anybody can name is wrong
    repo.gc(MaxToKeep(1))
    repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().ok
    line.assert_whole(1)


@pytest.mark.parametrize("is_planned_before", [True, False])
def test_a_page_that_comes_back_while_a_gc_is_at_work_keeps_what_it_lists(
    monkeypatch: pytest.MonkeyPatch, is_planned_before: bool
) -> None:
    """A commit whose page another gc took is made again, after this gc missed the page."""
    line = Line(2)
    line.repo.commit({"large": arrays(9)["large"]})  # what it shares has no grace when it expires
    line.commit(3)

    def plan() -> Any:
        return line.repo.plan_gc(MaxToKeep(1), grace=0 if is_planned_before else 3600)

    early = plan() if is_planned_before else None
    lost = line.repo.commit(arrays(9), branch="side")._manifest
    line.repo.delete_branch("side")
    line.storage.delete([object_key(ref.digest) for ref in lost.pages])
    begin, made = execute.find_remaining, []

    def then_commit(*args: Any, **options: Any) -> Any:
        found = begin(*args, **options)
        made.append(ckptstore.open(line.repo.url).commit(arrays(9), branch="new"))
        assert made[0]._manifest.pages == lost.pages
        return found

    monkeypatch.setattr(execute, "find_remaining", then_commit)
    (early or plan()).execute()
    repo = ckptstore.open(line.repo.url)
    assert repo.verify().problems == ()
    assert difference(arrays(9), repo.checkout("new")) is None


def test_pages_that_are_restored_one_by_one_keep_what_they_list() -> None:
    """Each gc between looks at the pages that are there, and stops at the first that is missing."""
    line = Line(0)
    many = {f"n{number:04}": np.full(3, number) for number in range(1200)}
    state = {"a": np.arange(20_000), **many}
    pages = [object_key(ref.digest) for ref in line.repo.commit(state)._manifest.pages]
    assert len(pages) > 2
    kept = {key: line.storage.get(key, bytes_max=1 << 20) for key in pages}
    line.storage.delete(pages)
    for key in pages:
        with pytest.raises(CorruptError):
            line.repo.gc(KeepAll(), grace=0)
        line.storage.put(key, kept[key])
    assert line.repo.gc(KeepAll(), grace=0).objects == 0
    assert difference(state, line.repo.checkout("main")) is None


def test_a_gc_frees_beside_more_tags_than_an_operation_could_hold() -> None:
    line = Line(3)
    tags = {f"release-{number:05}-{'x' * 180}": line.ids[1] for number in range(16_000)}
    line.repo._oplog.append(lambda newest: replace(newest, tags=tags))
    assert sum(len(name) + 70 for name in tags) > OPERATION_BYTES_MAX
    assert line.repo.gc(MaxToKeep(1), grace=0).expired == (line.ids[0],)
    line.assert_whole(1, 2)
    assert len(line.repo.ref_names()[1]) == 16_000


def test_what_only_a_tag_reaches_expires_by_the_policy() -> None:
    repo = ckptstore.init("memory://")
    ids = [repo.commit({"a": number}, branch="gone").id for number in range(3)]
    repo.commit({"a": 3})
    repo.tag("kept", at=ids[2])
    repo.delete_branch("gone")
    assert set(repo.gc(MaxToKeep(1), grace=0).expired) == set(ids[:2])
    assert repo.checkout("kept") == {"a": 2}


@pytest.mark.parametrize(
    ("policy", "gone"),
    [
        (MaxToKeep(2), [2]),
        (MaxToKeep(2) | KeepBest("loss"), [2]),
        (MaxToKeep(2) | KeepBest("loss", "max"), [2]),
        (KeepAll(), []),
        (KeepIf(lambda manifest: manifest.metrics["loss"] < 2), []),
    ],
    ids=str,
)
def test_a_plan_tells_what_goes_next(policy: Policy, gone: list[int]) -> None:
    line = Line()
    plan = line.repo.plan_gc(policy, grace=0)
    assert [line.ids.index(id) for id in plan.next_to_go] == gone
    plan.execute()
    line.ids.append(line.commit(4))
    if gone:
        assert [v.id for v in line.repo.plan_gc(policy, grace=0).expired] == list(plan.next_to_go)


def test_what_a_name_keeps_is_not_the_next_to_go() -> None:
    line = Line()
    line.repo.tag("v1", line.ids[2])
    assert line.repo.plan_gc(MaxToKeep(2), grace=0).next_to_go == ()


def test_a_plan_names_the_metrics_by_which_it_decides() -> None:
    """Those of the policies that apply, and not of the branches left alone."""
    line = Line()
    line.repo.branch("side")
    assert line.repo.plan_gc(KeepBest("loss") | MaxToKeep(2)).metrics == {"loss"}
    line.repo.set_retention(KeepBest('mAP@".5:.95"', "max"), branch="side")
    assert line.repo.plan_gc().metrics == {'mAP@".5:.95"'}
    assert line.repo.plan_gc(branches=["main"]).metrics == set()
    line.repo.set_retention(MaxToKeep(1) | KeepBest("loss"))
    assert line.repo.plan_gc().metrics == {"loss", 'mAP@".5:.95"'}
    assert line.repo.expire("main~1").metrics == set()
