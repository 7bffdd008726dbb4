"""Branches are renamed and moved, with the way back."""

from __future__ import annotations

import pytest

import ckptstore
from ckptstore import ConflictError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.retention import KeepBest, MaxToKeep


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


def best_of(repo: ckptstore.Repository, branch: str) -> float:
    return repo.resolve(f"{branch}@best:val_acc").metrics["val_acc"]


def commit_each(repo: ckptstore.Repository, branch: str, values: list[float]) -> None:
    for value in values:
        repo.commit({"value": value}, branch=branch, metrics={"val_acc": value})


KEPT = KeepBest("val_acc") | MaxToKeep(1)


@pytest.fixture
def reused() -> ckptstore.Repository:
    """Branch b, which was a, and a new a that was started from it."""
    made = ckptstore.init("memory://")
    commit_each(made, "a", [0.5, 0.99, 0.6])
    made.rename_branch("a", "b")
    made.branch("a", "b")
    commit_each(made, "a", [0.62, 0.71, 0.65])
    return made


def test_a_new_branch_does_not_own_what_one_committed_that_had_its_name(
    reused: ckptstore.Repository,
) -> None:
    assert (best_of(reused, "a"), best_of(reused, "b")) == (0.71, 0.99)
    reused.gc(KEPT, grace=0)
    values = [found.metrics["val_acc"] for found in reused.log("a", expired=False)]
    assert values == [0.65, 0.71, 0.6, 0.99]


@pytest.mark.parametrize("expires", [False, True], ids=["all live", "after a gc"])
def test_a_branch_with_a_reused_name_owns_its_checkpoints_wherever_it_is_put(
    reused: ckptstore.Repository, expires: bool
) -> None:
    head, first = reused.resolve("a").id, reused.resolve("a~2").id
    if expires:
        reused.gc(KEPT, grace=0)
    else:
        reused.reset_branch("a", first)
        assert best_of(reused, "a") == 0.62
        reused.reset_branch("a", "b~1")
        commit_each(reused, "a", [0.3])
        assert best_of(reused, "a") == 0.3
        reused.reset_branch("a", head)
    assert best_of(reused, "a") == 0.71
    reused.delete_branch("a")
    reused.branch("a", at=head)
    assert best_of(reused, "a") == 0.71
    verdicts = [v for v in reused.plan_gc(KEPT).verdicts if not v.is_let_go]
    assert {v.branches for v in verdicts} == {("a",), ("b",)}
    reused.rename_branch("a", "c")
    assert best_of(reused, "c") == 0.71
    reused.undo()
    assert best_of(reused, "a") == 0.71


def test_a_branch_that_is_renamed_to_an_earlier_name_of_its_source_owns_nothing_of_that() -> None:
    repo = ckptstore.init("memory://")
    commit_each(repo, "a", [0.5, 0.99])
    repo.branch("c", "a")
    commit_each(repo, "c", [0.7])
    repo.rename_branch("a", "b")
    repo.rename_branch("c", "a")
    assert (best_of(repo, "a"), best_of(repo, "b")) == (0.7, 0.99)


def test_a_branch_that_was_moved_on_to_another_owns_what_it_had_before() -> None:
    repo = ckptstore.init("memory://")
    commit_each(repo, "main", [0.5, 0.99, 0.6])
    repo.branch("b", "main")
    commit_each(repo, "b", [0.7])
    repo.reset_branch("main", "b")
    assert best_of(repo, "main") == 0.99
    commit_each(repo, "main", [0.8])
    assert (best_of(repo, "main"), best_of(repo, "b")) == (0.99, 0.7)
    repo.gc(KEPT, grace=0)
    values = [found.metrics["val_acc"] for found in repo.log("main", expired=False)]
    assert values == [0.8, 0.7, 0.6, 0.99]
    repo.rename_branch("main", "other")
    assert best_of(repo, "other") == 0.99


def test_a_rename_lets_nothing_go(repo: ckptstore.Repository) -> None:
    repo.rename_branch("main", "pretraining")
    assert repo._oplog.newest().let_go == ()
    repo.gc(MaxToKeep(1))
    assert len(repo.log("pretraining", expired=False)) == 2  # the head and a seed


@pytest.fixture
def trained() -> ckptstore.Repository:
    """A branch "pretrain" with the steps 0 to 2."""
    made = ckptstore.init("memory://")
    for step in range(3):
        made.commit({"model": {"w": step}, "n": 1}, branch="pretrain", step=step)
    return made


def test_the_seed_of_a_checkpoint_is_where_its_branch_was_started(
    trained: ckptstore.Repository,
) -> None:
    seed = trained.branch("task", "pretrain~1")
    assert seed.seed is None  # it is a checkpoint of the other branch
    for step in range(3):
        assert trained.commit({"w": 9}, branch="task", step=step).seed == seed.id
    middle = trained.branch("more", "task~1")
    assert middle.seed == seed.id
    assert trained.commit({"w": 9}, branch="more").seed == middle.id
    assert {checkpoint.seed for checkpoint in trained.log("pretrain")} == {None}


def test_the_seed_of_a_derived_checkpoint_is_its_source(trained: ckptstore.Repository) -> None:
    source = trained.resolve("pretrain").id
    derived = trained.branch("task", source, include="n")
    assert derived.id != source
    assert derived.seed == source
    assert trained.commit({"n": 2}, branch="task").seed == source


def test_the_seed_stays_whatever_happens_to_names_and_arrays(trained: ckptstore.Repository) -> None:
    source = trained.resolve("pretrain").id
    trained.branch("task", source)
    first = trained.commit({"w": 1}, branch="task")
    trained.rename_branch("task", "done")
    trained.rename_branch("pretrain", "base")
    trained.commit({"w": 2}, branch="pretrain")  # another branch with the old name
    assert trained.commit({"w": 3}, branch="done").seed == source
    trained.commit({"w": 4}, branch="base")
    trained.gc(MaxToKeep(2), keep_seeds=False, grace=0)
    trained.gc(MaxToKeep(1), keep_seeds=False, grace=0)
    assert trained.resolve(source).expired
    assert trained.resolve("done").seed == source
    trained.reset_branch("done", "base")
    trained.delete_branch("done")
    assert trained.resolve(first.id).seed == source


def test_a_branch_that_was_moved_elsewhere_has_the_seed_of_its_oldest_checkpoint(
    trained: ckptstore.Repository,
) -> None:
    trained.branch("task", "pretrain~2")
    trained.commit({"w": 1}, branch="task")
    trained.reset_branch("task", "pretrain")
    assert trained.commit({"w": 2}, branch="task").seed == trained.resolve("pretrain").id
