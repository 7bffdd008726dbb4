"""Branches are renamed and moved, with the way back."""

from __future__ import annotations

import pytest

import ckptstore
from ckptstore import ConflictError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.retention import MaxToKeep


@pytest.fixture
def repo() -> ckptstore.Repository:
    made = ckptstore.init("memory://")
    for step in range(4):
        made.commit({"n": step}, step=step, metrics={"val_loss": 1.0 - step % 3 / 10})
    made.branch("other", "main~2")
    made.tag("v1")
    return made


def test_a_renamed_branch_has_its_history_and_a_free_old_name(repo: ckptstore.Repository) -> None:
    head = repo.resolve("main").id
    assert repo.rename_branch("main", "pretraining") == head
    assert repo.ref_names()[0].keys() == {"other", "pretraining"}
    made = repo.commit({"n": 4}, branch="pretraining", step=4)
    assert made.parents == (head,)
    repo.commit({"n": 9}, branch="main")
    assert len(repo.log("main")) == 1


def test_the_checkpoints_of_a_renamed_branch_stay_its_own(repo: ckptstore.Repository) -> None:
    repo.rename_branch("main", "a")
    repo.rename_branch("a", "b")
    repo.commit({"n": 4}, branch="b", step=4, metrics={"val_loss": 0.99})
    assert repo.resolve("b@best:val_loss").step == 2


def test_a_rename_is_taken_back(repo: ckptstore.Repository) -> None:
    before = repo.ref_names()
    repo.rename_branch("main", "pretraining")
    repo.undo()
    assert repo.ref_names() == before
    assert repo._oplog.newest().settings == {}


def test_a_branch_that_was_reset_goes_on_from_there(repo: ckptstore.Repository) -> None:
    old = repo.resolve("main")
    target = repo.resolve("main~2")
    assert repo.reset_branch("main", "main~2") == old.id
    assert repo.resolve("main").id == target.id
    assert repo.commit({"n": 7}, step=7).parents == (target.id,)
    repo.undo()
    assert repo.reset_branch("main", old.id) == target.id
    assert repo.resolve("main").id == old.id


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("nowhere", "x", NotFoundError),
        ("main", "other", ConflictError),
        ("main", "main", ConflictError),
        ("main", "v1", ConflictError),
        ("main", "a b", InvalidInputError),
        (None, "x", NotFoundError),
    ],
)
def test_a_rename_that_cannot_be_is_refused(
    repo: ckptstore.Repository, old: str, new: str, error: type[Exception]
) -> None:
    before = repo.ref_names()
    with pytest.raises(error):
        repo.rename_branch(old, new)
    assert repo.ref_names() == before


def test_a_branch_is_not_reset_to_what_is_not_there(repo: ckptstore.Repository) -> None:
    repo.delete_branch("other")
    repo.gc(MaxToKeep(1), grace=0)
    with pytest.raises(ExpiredError, match="'main~1' cannot be used"):
        repo.reset_branch("main", "main~1")
    with pytest.raises(NotFoundError):
        repo.reset_branch("main", "nowhere")
    with pytest.raises(NotFoundError, match="no branch 'mian'"):
        repo.reset_branch("mian", "main")


def test_gc_leaves_the_checkpoints_of_a_renamed_branch_alone() -> None:
    repo = ckptstore.init("memory://")
    for step in range(3):
        repo.commit({"n": step}, step=step)
    repo.set_retention(MaxToKeep(2), branch="main")
    repo.rename_branch("main", "renamed")
    for step in range(3, 6):
        repo.commit({"n": step}, branch="renamed", step=step)
    assert repo.retention("renamed") == MaxToKeep(2)
    assert {item.manifest.step for item in repo.plan_gc(grace=0).kept} == {4, 5}
    repo.set_retention(None, branch="renamed")
    assert repo.gc(grace=0).expired == ()
