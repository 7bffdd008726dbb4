"""Copies that were cut short, mixed or put over newer ones: what is missing is named and kept."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import CorruptError, Repository
from ckptstore.documents.operation import Operation
from ckptstore.retention import MaxToKeep
from ckptstore.store import oplog
from ckptstore.store.objects import key_of as object_key
from ckptstore.training import CheckpointManager

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def state(step: int) -> dict[str, Any]:
    return {"model": {"w": np.full((60, 60), step + 0.5)}, "step": step}


class Clock:
    """A clock that moves on by a second whenever it is read."""

    def __init__(self) -> None:
        self.seconds = 1e9

    def __call__(self) -> float:
        self.seconds += 1
        return self.seconds


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """Five checkpoints on main."""
    repo = ckptstore.init(tmp_path / "store", clock=Clock())
    add(repo, range(5))
    return repo


def add(repo: Repository, steps: Iterable[int], branch: str = "main") -> list[str]:
    return [repo.commit(state(step), step=step, branch=branch).id for step in steps]


def copy(repo: Repository, *folders: str, to: str = "copy") -> Repository:
    """Copy the marker and some folders, as old as they are."""
    root = _root(repo)
    target = root.parent / to
    target.mkdir(exist_ok=True)
    shutil.copy(root / "ckptstore.json", target)
    for folder in folders:
        shutil.rmtree(target / folder, ignore_errors=True)
        shutil.copytree(root / folder, target / folder)
    return ckptstore.open(target, clock=Clock())


def manifests(repo: Repository) -> set[str]:
    return {path.stem for path in (_root(repo) / "checkpoints").iterdir()}


def objects(repo: Repository) -> set[str]:
    return {path.name for path in (_root(repo) / "objects").rglob("*") if path.is_file()}


def _root(repo: Repository) -> Path:
    from pathlib import Path

    return Path(repo.url)


def test_without_operations_reads_and_commits_are_refused_and_name_the_newest(
    repo: Repository,
) -> None:
    """The copy of a repository that was cut off before its last folder."""
    cut = copy(repo, "checkpoints", "objects")
    head = repo.resolve("main").id
    for act in (
        cut.log,
        cut.branches,
        cut.tags,
        lambda: cut.resolve("main"),
        lambda: cut.checkout("latest"),
        lambda: cut.commit(state(9)),
        lambda: cut.commit(state(9), branch="other"),
        lambda: cut.session("main"),
    ):
        with pytest.raises(CorruptError, match=rf"5 checkpoints.*{head[:8]}, step 4"):
            act()
    report = cut.verify()
    (problem,) = report.problems
    assert problem.key == "ops/"
    assert set(problem.checkpoints) == manifests(cut)
    assert "ops/" in problem.heal
    assert cut.usage().unreachable == 5
    assert cut.usage().is_torn


def test_a_repository_that_was_new_a_moment_ago_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes two checkpoints between the two looks of a reader and of a commit."""
    for number, act in enumerate(
        (lambda repo: repo.log(), lambda repo: repo.commit(state(9), branch="own"))
    ):
        repo = ckptstore.init(tmp_path / f"new-{number}", clock=Clock())
        listed = repo._catalog.live

        def after_two_commits(repo: Repository = repo, listed: Any = listed) -> Any:
            monkeypatch.undo()
            add(ckptstore.open(repo.url), range(2))
            return listed()

        monkeypatch.setattr(repo._catalog, "live", after_two_commits)
        act(repo)
        assert len(ckptstore.open(repo.url).log()) >= 2


def test_a_training_does_not_start_at_0_on_a_copy_without_operations(repo: Repository) -> None:
    cut = copy(repo, "checkpoints", "objects")
    before = manifests(cut)
    manager = CheckpointManager(
        cut.url, model=torch.nn.Linear(2, 2), max_to_keep=2, async_save=False
    )
    with manager:
        with pytest.raises(CorruptError, match="operations"):
            manager.restore_or_initialize()
        with pytest.raises(CorruptError, match="operations"):
            manager.save(1)
    assert manifests(cut) == before


def test_without_operations_gc_refuses_and_a_branch_brings_all_back(
    repo: Repository,
) -> None:
    cut = copy(repo, "checkpoints", "objects")
    before = manifests(cut), objects(cut)
    for collect in (cut.plan_gc, cut.gc, partial(cut.gc, leftovers=False)):
        with pytest.raises(CorruptError, match="none of the operations"):
            collect(MaxToKeep(1), grace=0)
    assert (manifests(cut), objects(cut)) == before
    newest = max(cut.lost(), key=lambda checkpoint: checkpoint.step or 0)
    cut.branch("main", at=newest.id)
    assert [checkpoint.step for checkpoint in cut.log()] == [4, 3, 2, 1, 0]
    assert cut.verify().ok
    assert cut.lost() == []
    add(cut, [5])


def test_a_first_commit_that_died_is_no_copy_that_was_cut_short(tmp_path: Path) -> None:
    """Its checkpoint has no parent, and is deleted as any that no branch reaches."""
    repo = ckptstore.init(tmp_path / "store", clock=Clock())
    add(repo, [0])
    for path in (tmp_path / "store/ops").iterdir():
        path.unlink()
    again = ckptstore.open(tmp_path / "store", clock=Clock())
    assert again.log() == []
    assert again.verify().ok
    assert len(again.verify().unreachable.checkpoints) == 1
    add(again, [1])
    assert len(again.gc(MaxToKeep(1), grace=0).expired) == 1


def test_a_missing_head_is_named_and_nothing_is_committed_on_it(repo: Repository) -> None:
    """A copy made while somebody committed: ops/ came last."""
    copy(repo, "checkpoints", "objects")
    add(repo, range(5, 8))
    cut = copy(repo, "ops")
    head = repo.resolve("main").id
    cut_before = manifests(cut), objects(cut)
    for act in (
        cut.log,
        cut.branches,
        lambda: cut.log("main"),
        lambda: cut.checkout("main"),
        lambda: cut.checkout("main~1"),
        lambda: cut.resolve("latest"),
        lambda: cut.resolve("best:loss"),
        lambda: cut.commit(state(9)),
        lambda: cut.session("main"),
        lambda: cut.gc(MaxToKeep(1), grace=0),
    ):
        with pytest.raises(CorruptError, match=f"{head[:8]}, which 'main' names, is missing"):
            act()
    assert (manifests(cut), objects(cut)) == cut_before
    report = cut.verify()
    assert [problem.key for problem in report.problems] == [f"checkpoints/{head}.json"]
    assert len(report.unreachable.checkpoints) == 5
    assert cut.usage().unreachable == 5
    newest = report.unreachable.checkpoints[0]
    assert cut.resolve(newest).step == 4
    cut.delete_branch("main")
    cut.branch("main", at=newest)
    assert [checkpoint.step for checkpoint in cut.log()] == [4, 3, 2, 1, 0]
    assert cut.verify().ok
    add(cut, [5])
    assert len(cut.gc(MaxToKeep(1), grace=0).expired) == 5


def test_other_branches_than_the_one_without_its_head_are_committed_to(repo: Repository) -> None:
    repo.branch("side")
    (head,) = add(repo, [5])
    (_root(repo) / f"checkpoints/{head}.json").unlink()
    again = ckptstore.open(repo.url)
    add(again, [6], branch="side")
    assert again.resolve("side").step == 6
    with pytest.raises(CorruptError, match=head[:8]):
        add(again, [6])


@pytest.mark.parametrize("number", [0, 2], ids=["first", "middle"])
@pytest.mark.parametrize("leftovers", [True, False])
def test_nothing_expires_while_a_checkpoint_of_the_history_is_missing(
    repo: Repository, number: int, leftovers: bool
) -> None:
    """It may share objects with the others, and with those of other branches."""
    shared = {"shared": np.arange(9_000.0)}
    made = [repo.commit(shared | state(step), step=step, branch="run") for step in range(4)]
    missing = made[number].id
    path = _root(repo) / f"checkpoints/{missing}.json"
    manifest = path.read_bytes()
    path.unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    if not leftovers:
        again._stores().listed_at = again._stores().now()
    before = manifests(again), objects(again)
    plan = again.plan_gc(MaxToKeep(1), grace=0)
    report = again.gc(MaxToKeep(1), grace=0, leftovers=leftovers)
    for said in (plan.warning, report.warning):
        assert f"Checkpoint {missing[:8]} is missing" in said
        assert f"checkpoints/{missing}.json" in said
    assert (plan.expired, plan.bytes, report.expired, report.objects) == ((), 0, (), 0)
    assert (manifests(again), objects(again)) == before
    assert again.usage().is_torn
    path.write_bytes(manifest)
    assert not again.usage().is_torn
    whole = ckptstore.open(repo.url)
    np.testing.assert_array_equal(whole.checkout(missing)["shared"], shared["shared"])
    assert len(again.gc(MaxToKeep(1), grace=0).expired) == 7
    assert not again.gc(MaxToKeep(1), grace=0).warning
    assert whole.verify().ok


def test_a_checkpoint_that_is_missing_behind_an_expired_one_is_found(repo: Repository) -> None:
    """The expiry of its child names it as the nearest checkpoint that is live."""
    first = repo.resolve("main~4")
    repo.tag("first", first.id)
    repo.gc(MaxToKeep(1), grace=0)
    repo.delete_tag("first")
    path = _root(repo) / f"checkpoints/{first.id}.json"
    path.unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    before = objects(again)
    assert first.id[:8] in again.gc(MaxToKeep(1), grace=0).warning
    assert objects(again) == before


def test_a_history_with_a_missing_checkpoint_can_be_given_up(repo: Repository) -> None:
    """What is to stay is committed to a new branch; the old one is deleted."""
    (_root(repo) / f"checkpoints/{repo.resolve('main~2').id}.json").unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    again.commit(again.checkout("main", lazy=True), step=4, branch="rest")
    again.delete_branch("main")
    report = again.gc(MaxToKeep(1), grace=0)
    assert not report.warning
    assert [checkpoint.step for checkpoint in again.log()] == [4]
    assert again.usage().unreached_objects == 0
    assert again.verify().ok


def test_a_training_logs_once_why_nothing_expires(
    repo: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    (_root(repo) / f"checkpoints/{repo.resolve('main~2').id}.json").unlink()
    repo.branch("run")
    manager = CheckpointManager(
        repo.url, branch="run", model=torch.nn.Linear(2, 2), max_to_keep=2, async_save=False
    )
    with manager:
        for step in range(5, 8):
            manager.save(step)
    (record,) = caplog.records
    assert "missing" in record.message
    assert len(manifests(repo)) == 7


def test_newer_checkpoints_than_the_operations_are_kept_and_named(repo: Repository) -> None:
    """An older copy of ops/ was put over a newer one."""
    old = copy(repo, "ops", to="old")
    newer = add(repo, range(5, 8))
    shutil.rmtree(_root(repo) / "ops")
    shutil.copytree(_root(old) / "ops", _root(repo) / "ops")
    again = ckptstore.open(repo.url, clock=Clock())
    assert {checkpoint.id for checkpoint in again.lost()} == set(newer)
    (problem,) = again.verify().problems
    assert (problem.key, set(problem.checkpoints)) == ("ops/", set(newer))
    add(again, [9])  # the copies went apart
    assert [checkpoint.step for checkpoint in again.log()][:2] == [9, 4]
    assert len(again.gc(MaxToKeep(1), grace=0).expired) == 5
    assert {checkpoint.id for checkpoint in again.lost()} == set(newer)
    again.branch("rescued", at=newer[-1])
    assert again.lost() == []
    assert again.verify().ok
    assert np.array_equal(again.checkout("rescued")["model"]["w"], state(7)["model"]["w"])


def test_no_gc_takes_what_a_lost_checkpoint_may_share_while_its_pages_are_missing(
    repo: Repository,
) -> None:
    """The objects of one that expires may be listed in a page that is still to be copied."""
    shared = {"shared": np.arange(9_000.0)}
    repo.commit(shared | state(5), step=5)
    mixed = copy(repo, "ops")
    lost = [repo.commit(shared | state(step), step=step) for step in (6, 7)]
    mixed = copy(repo, "checkpoints", "objects")
    add(mixed, [8])
    pages = [_root(mixed) / object_key(ref.digest) for made in lost for ref in made._manifest.pages]
    kept = [page.read_bytes() for page in pages]
    for page in pages:
        page.unlink()
    mixed = ckptstore.open(mixed.url, clock=Clock())
    with pytest.raises(CorruptError, match="missing"):
        mixed.gc(MaxToKeep(1), grace=0)
    for page, data in zip(pages, kept, strict=True):
        page.write_bytes(data)
    for made in lost:
        np.testing.assert_array_equal(mixed.checkout(made.id)["shared"], shared["shared"])


def test_what_a_lost_branch_is_made_of_can_be_given_up(repo: Repository) -> None:
    old = copy(repo, "ops", to="old")
    newer = add(repo, range(5, 8))
    shutil.rmtree(_root(repo) / "ops")
    shutil.copytree(_root(old) / "ops", _root(repo) / "ops")
    again = ckptstore.open(repo.url, clock=Clock())
    again.branch("rescued", at=newer[-1])
    again.delete_branch("rescued")
    assert again.lost() == []
    assert set(newer) <= set(again.gc(MaxToKeep(5), grace=0).expired)


@pytest.mark.parametrize("way", ["deleted", "undone"])
def test_a_branch_that_was_deleted_or_undone_is_not_lost(repo: Repository, way: str) -> None:
    """Older operations name it, so gc takes it away."""
    repo.branch("side", "main~3")
    made = add(repo, range(10, 14), branch="side")
    if way == "deleted":
        repo.delete_branch("side")
    else:
        for _ in range(5):
            repo.undo()
    again = ckptstore.open(repo.url, clock=Clock())
    assert again.lost() == []
    assert again.verify().ok
    assert set(again.verify().unreachable.checkpoints) == set(made)
    assert set(made) <= set(again.gc(MaxToKeep(9), grace=0).expired)


def test_a_branch_deleted_before_the_operations_that_are_kept_is_not_lost(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oplog, "KEPT_OPERATIONS", 10)
    made = add(repo, range(10, 14), branch="side")
    repo.delete_branch("side")
    for number in range(12):
        repo.tag(f"v{number}")
    for seq in range(1, repo._oplog.newest().seq - 9):
        (_root(repo) / f"ops/{seq:012}.json").unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    assert again.lost() == []
    assert set(made) <= set(again.gc(MaxToKeep(9), grace=0).expired)


def test_a_log_that_begins_too_late_explains_no_more_than_it_names(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first operations were not copied, among them those that name a deleted branch."""
    monkeypatch.setattr(Operation, "after", lambda self, newest, **options: self)
    made = add(repo, range(10, 14), branch="side")
    repo.delete_branch("side")
    repo.tag("v1")
    last = repo._oplog.newest().seq
    for seq in range(1, last):
        (_root(repo) / f"ops/{seq:012}.json").unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    report = again.verify()
    assert report.missing_operations == last - 1
    assert [problem.key for problem in report.problems] == ["ops/"]
    assert {checkpoint.id for checkpoint in again.lost()} == set(made)
    assert not set(made) & set(again.gc(MaxToKeep(9), grace=0).expired)


def test_an_operation_that_says_what_was_let_go_accounts_for_it(repo: Repository) -> None:
    """Though it is the only one that is left."""
    made = add(repo, range(10, 14), branch="side")
    repo.delete_branch("side")
    repo.tag("v1")
    for seq in range(1, repo._oplog.newest().seq):
        (_root(repo) / f"ops/{seq:012}.json").unlink()
    again = ckptstore.open(repo.url, clock=Clock())
    assert (again.verify().problems, again.lost()) == ((), [])
    assert not set(made) & set(again.gc(MaxToKeep(9)).expired)
    assert set(made) <= set(again.gc(MaxToKeep(9), grace=0).expired)


def test_a_branch_at_an_expired_checkpoint_is_a_problem(repo: Repository) -> None:
    """Operations from before a gc name what it took away."""
    old = copy(repo, "ops", to="old")
    old_head = repo.resolve("main").id
    add(repo, [5])
    repo.gc(MaxToKeep(1), grace=0)
    shutil.rmtree(_root(repo) / "ops")
    shutil.copytree(_root(old) / "ops", _root(repo) / "ops")
    again = ckptstore.open(repo.url, clock=Clock())
    problems = {problem.key: problem for problem in again.verify().problems}
    assert problems.keys() == {f"checkpoints/{old_head}.json"}
    (problem,) = problems.values()
    assert "has expired" in problem.error
    assert "older" in problem.heal
    with pytest.raises(CorruptError, match="has expired"):
        again.gc(MaxToKeep(1), grace=0)


@pytest.mark.seeded
def test_a_gc_that_takes_everything_without_an_operation_for_garbage_is_caught(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded bug: nothing is ever lost."""
    from ckptstore.gc import judge

    monkeypatch.setattr(judge, "lost", lambda orphans, **options: set())
    with pytest.raises(AssertionError):
        test_newer_checkpoints_than_the_operations_are_kept_and_named(repo)
