"""Undo takes back what this user's hand did, and leaves alone what other processes do beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import ConflictError, CorruptError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.documents.author import Author
from ckptstore.documents.operation import Condemned
from ckptstore.retention import MaxToKeep
from ckptstore.store.author import as_training
from ckptstore.store.oplog import key_of
from ckptstore.training import CheckpointManager

if TYPE_CHECKING:
    from ckptstore import Repository

HERE = {"user": "ada", "host": "desk"}


def process(repo: Repository, *, pid: int, by_hand: bool = False, **place: str) -> Repository:
    """A handle to the same repository, as another process has it."""
    handle = ckptstore.open(repo.url)

    def author(*, is_commit: bool = False) -> Author:
        role = "hand" if by_hand else "save" if is_commit else "call"
        return Author(role=role, program=f"{pid}.py", pid=pid, **{**HERE, **place})

    handle._refs._author = handle._author = author
    return handle


@pytest.fixture
def repo() -> Repository:
    """A repository that only gives its URL to the processes of a test."""
    return ckptstore.init("memory://")


@pytest.fixture
def trainer(repo: Repository) -> Repository:
    return process(repo, pid=1)


@pytest.fixture
def shell(repo: Repository) -> Repository:
    """The command line: each command is a process of its own, so this is one of many."""
    return process(repo, pid=2, by_hand=True)


def refs(repo: Repository) -> dict[str, str]:
    heads, tags = repo.ref_names()
    return {**heads, **tags}


def test_beside_a_training_the_command_of_the_user_is_taken_back(
    trainer: Repository, shell: Repository
) -> None:
    for step in range(2):
        trainer.commit({"n": step}, branch="months-of-work")
    head = shell.delete_branch("months-of-work")
    newest = [trainer.commit({"n": 9 + step}, branch="run", retry=True).id for step in range(3)]
    plan = process(shell, pid=3, by_hand=True).plan_undo()
    assert plan.operation.description == "deleted branch months-of-work"
    assert [info.number for info in plan.others] == [6, 5, 4]
    assert plan.execute().operation == 3
    assert refs(shell) == {"months-of-work": head, "run": newest[-1]}


def test_what_a_manager_does_is_left_alone_even_in_its_own_process() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"n": 1}, branch="old")
    repo.delete_branch("old")
    with CheckpointManager(repo, max_to_keep=2, rng=False, async_save=True) as manager:
        for step in range(4):
            manager.save(step)
    assert {info.role for info in repo.operations(limit=4)} == {"training"}
    assert repo.undo().description == "deleted branch old"
    assert [made.step for made in manager.checkpoints] == [2, 3]


def test_a_commit_by_the_library_is_taken_back_only_by_its_own_process(
    trainer: Repository, repo: Repository
) -> None:
    made = trainer.commit({"n": 1})
    for other in (process(repo, pid=1, host="cluster"), process(repo, pid=2)):
        with pytest.raises(NotFoundError, match=r"nothing of yours.* is 1, by 1\.py\[1\] ada@desk"):
            other.undo()
    assert trainer.undo().description == f"committed {made.id.short} to main"
    assert refs(repo) == {}


def test_a_commit_by_hand_is_taken_back_by_the_next_command(shell: Repository) -> None:
    shell.commit({"n": 1})
    process(shell, pid=3, by_hand=True).undo()
    assert refs(shell) == {}


def test_what_a_program_does_to_names_is_taken_back_too(
    trainer: Repository, shell: Repository
) -> None:
    trainer.commit({"n": 1})
    trainer.tag("v")
    assert shell.undo().description.startswith("made tag v")


def test_another_user_is_left_alone(repo: Repository, shell: Repository) -> None:
    shell.commit({"n": 1})
    process(repo, pid=5, by_hand=True, user="bob").tag("of-bob")
    assert shell.undo().description.startswith("committed")


def test_any_operation_can_be_taken_back_by_its_number(
    trainer: Repository, shell: Repository
) -> None:
    first = trainer.commit({"n": 1})
    trainer.commit({"n": 2})
    shell.tag("v")
    shell.undo(2)
    assert refs(shell) == {"main": first.id, "v": shell.tags()["v"].id}
    with pytest.raises(NotFoundError, match="no operation 99"):
        shell.undo(99)
    with pytest.raises(InvalidInputError):
        shell.undo("2")  # type: ignore[arg-type]


def test_an_undo_that_is_undone_does_the_operation_again(shell: Repository) -> None:
    shell.commit({"n": 1})
    shell.tag("v")
    made = refs(shell)
    for _ in range(3):
        undone = shell.undo()
        assert "v" not in refs(shell)
        assert shell.undo(undone.redo).description.startswith("undid operation 2: made tag v")
        assert refs(shell) == made
    assert [info.undone_by for info in shell.operations()][-2:] == [None, None]


def test_what_was_moved_since_is_named_and_nothing_changes(
    trainer: Repository, shell: Repository
) -> None:
    shell.commit({"n": 1})
    shell.tag("v")
    later = trainer.commit({"n": 2})
    shell.undo()
    before = refs(shell)
    with pytest.raises(ConflictError) as raised:
        shell.undo()
    told = str(raised.value)
    assert "branch 'main' was moved since" in told
    assert f"operation 3 (committed {later.id.short} to main), by 1.py[1] ada@desk" in told
    assert "undo(3)" in told
    assert refs(shell) == before
    shell.undo(3)
    shell.undo()
    assert refs(shell) == {}


def test_what_gc_made_impossible_is_said_with_what_still_works(shell: Repository) -> None:
    shell.commit({"n": 0}, branch="other")
    made = [shell.commit({"n": step}) for step in range(3)]
    shell.tag("v", made[0].id)
    process(shell, pid=3).gc(MaxToKeep(1), grace=0)
    shell.undo(shell.operations()[-5].number)
    with pytest.raises(ExpiredError) as raised:
        shell.undo()
    told = str(raised.value)
    assert f"Checkpoint {made[1].id.short} expired" in told
    assert "What can be undone is operation 1" in told
    shell.undo(1)
    assert set(refs(shell)) == {"main"}


def test_a_gc_moved_nothing_so_there_is_nothing_to_put_back(shell: Repository) -> None:
    for step in range(2):
        shell.commit({"n": step})
    shell.gc(MaxToKeep(1), grace=0)
    newest = shell.operations(limit=1)[0]
    assert newest.moves == ()
    with pytest.raises(InvalidInputError, match="a gc deleted cannot come back"):
        shell.undo(newest.number)


@pytest.mark.parametrize("act", ["gc", "expire"])
def test_after_a_gc_by_hand_undo_names_it_and_takes_back_nothing_older(
    shell: Repository, act: str
) -> None:
    made = [shell.commit({"n": step}) for step in range(3)]
    shell.tag("v1")
    if act == "gc":
        shell.gc(MaxToKeep(1))
    else:
        shell.expire(made[0].id).execute()
    newest = shell.operations(limit=1)[0]
    assert newest.is_gc
    later = process(shell, pid=3, by_hand=True)
    with pytest.raises(InvalidInputError, match="a gc deleted cannot come back") as raised:
        later.undo()
    told = str(raised.value)
    assert f"Operation {newest.number} (gc: " in told
    assert "What can be undone is operation 4 (made tag v1" in told
    assert told.endswith("with undo(4).")
    assert refs(shell) == {"main": made[2].id, "v1": made[2].id}
    later.tag("v2")
    assert later.undo().description.startswith("made tag v2")
    later.undo(4)
    assert refs(shell) == {"main": made[2].id}


def test_a_gc_that_another_program_ran_is_passed_over(
    trainer: Repository, shell: Repository
) -> None:
    for step in range(3):
        shell.commit({"n": step})
    shell.tag("v1")
    trainer.gc(MaxToKeep(1))
    assert shell.undo().description.startswith("made tag v1")


def test_operations_say_who_when_what_and_what_it_moved(
    trainer: Repository, shell: Repository
) -> None:
    first = trainer.commit({"n": 1})
    second = trainer.commit({"n": 2})
    shell.tag("v", first.id)
    shell.set_retention(MaxToKeep(3))
    shell.set_retention(MaxToKeep(4))
    shell.delete_tag("v")
    assert [[str(move) for move in info.moves or ()] for info in shell.operations()] == [
        [f"tag v: deleted at {first.id.short}"],
        ["setting retention: changed"],
        ["setting retention: made"],
        [f"tag v: made at {first.id.short}"],
        [f"branch main: {first.id.short} to {second.id.short}"],
        [f"branch main: made at {first.id.short}"],
    ]
    newest, *_, oldest = shell.operations()
    assert (newest.role, newest.who) == ("hand", "2.py[2] ada@desk")
    assert (oldest.role, oldest.who) == ("save", "1.py[1] ada@desk")
    assert [info.number for info in shell.operations(limit=2)] == [6, 5]


def test_this_process_is_recorded_as_it_is() -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"n": 1})
    with as_training():
        repo.tag("v")
    ckptstore.open(repo.url, by_hand=True).tag("w")
    roles = [info.role for info in repo.operations()]
    assert roles == ["hand", "training", "save"]
    assert len({(info.user, info.host, info.program, info.pid) for info in repo.operations()}) == 1
    assert repo.operations()[0].pid > 0


def as_earlier_versions_write(repo: Repository, change: Any) -> None:
    """Append an operation without an author."""
    repo._oplog.append(lambda newest: change(newest).stamped(time=1, done=change.done, by=None))


class Change:
    """What an earlier version did, and how it described that."""

    def __init__(self, done: str, **fields: Any) -> None:
        self.done, self.fields = done, fields

    def __call__(self, newest: Any) -> Any:
        return replace(newest, **self.fields)


def test_of_operations_without_an_author_the_commits_are_left_alone(shell: Repository) -> None:
    id = process(shell, pid=9).commit({"n": 1}).id
    as_earlier_versions_write(shell, Change("made tag v", tags={"v": id}))
    as_earlier_versions_write(shell, Change("committed 12345678 to b", heads={"main": id, "b": id}))
    assert shell.undo().description == "made tag v"
    with pytest.raises(NotFoundError, match=r"is 3: committed 12345678 to b\. .*undo\(3\)"):
        shell.undo()


def test_undos_of_earlier_versions_are_known(shell: Repository) -> None:
    id = process(shell, pid=9).commit({"n": 1}).id
    as_earlier_versions_write(shell, Change("made tag v", tags={"v": id}))
    as_earlier_versions_write(shell, Change("made tag w", tags={"v": id, "w": id}))
    shell._oplog.append(
        lambda newest: replace(newest, tags={"v": id}).stamped(
            time=1, done="undid operation 3", by=None, undoes=3
        )
    )
    assert [info.undone_by for info in shell.operations()] == [None, 4, None, None]
    assert shell.undo().operation == 2


def test_an_undo_looks_like_one_to_earlier_versions_only_if_it_restored_everything(
    trainer: Repository, shell: Repository
) -> None:
    """These go on from the operation before the undone one, as if the state were the same."""
    trainer.commit({"n": 1})
    shell.tag("v")
    shell.undo()
    assert shell._oplog.newest().undoes == 2
    shell.tag("v")
    trainer.commit({"n": 2})
    shell.undo()
    newest = shell._oplog.newest()
    assert (newest.undoes, newest.reverts) == (None, 4)


def test_damage_in_the_log_hides_what_it_moved_but_not_the_rest(shell: Repository) -> None:
    shell.commit({"n": 1})
    for name in "abcd":
        shell.tag(name)
    storage = shell._storage
    storage.delete([key_of(3)])
    assert [info.number for info in shell.operations()] == [5, 4, 2, 1]
    assert shell.undo().operation == 5
    with pytest.raises(CorruptError, match=r"0003\.json is missing, so operation 4.*undo\(2\)"):
        shell.undo()
    shell.undo(2)
    assert set(refs(shell)) == {"main", "b", "c"}


def test_what_a_gc_condemns_stays_condemned(shell: Repository) -> None:
    id = shell.commit({"n": 1}).id
    shell.tag("v")
    condemned = Condemned(digests=(id,), why="x", owner="y", since=3)
    shell._oplog.append(lambda newest: replace(newest, condemned=condemned))
    shell._refs.plan_undo(2).execute()
    assert shell._oplog.newest().condemned == condemned


def test_many_tags_come_back(shell: Repository) -> None:
    id = shell.commit({"n": 1}).id
    many = {f"t{number:03}": id for number in range(600)}
    shell._oplog.append(lambda newest: replace(newest, tags=many))
    author = shell._refs._author()
    shell._oplog.append(
        lambda newest: replace(newest, tags={}).stamped(time=1, done="deleted all", by=author)
    )
    shell.undo()
    assert ckptstore.open(shell.url).ref_names()[1] == many


NAMES = ("a", "b", "c")


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.sampled_from(("tag", "delete", "undo", "redo")),
            st.sampled_from(NAMES),
        ),
        max_size=20,
    )
)
def test_undo_goes_back_step_by_step_whatever_others_do_meanwhile(
    acts: list[tuple[bool, str, str]],
) -> None:
    """Two users, each with names of their own, get the states that each would get alone."""
    repo = ckptstore.init("memory://")
    id = process(repo, pid=9).commit({"n": 1}).id
    users = [process(repo, pid=1, by_hand=True), process(repo, pid=2, by_hand=True, user="bob")]
    stacks: list[list[set[str]]] = [[set()], [set()]]
    undone: list[list[tuple[int, set[str]]]] = [[], []]
    for is_second, act, short in acts:
        user, stack, redo = users[is_second], stacks[is_second], undone[is_second]
        name = f"{short}{int(is_second)}"
        if act == "undo" and len(stack) > 1:
            redo.append((user.undo().redo, stack.pop()))
        elif act == "undo":
            with pytest.raises(NotFoundError):
                user.undo()
        elif act == "redo" and redo:
            number, state = redo.pop()
            user.undo(number)
            stack.append(state)
        elif act == "tag" and name not in stack[-1]:
            user.tag(name, id)
            stack.append(stack[-1] | {name})
            redo.clear()
        elif act == "delete" and name in stack[-1]:
            user.delete_tag(name)
            stack.append(stack[-1] - {name})
            redo.clear()
        assert set(repo.ref_names()[1]) == stacks[0][-1] | stacks[1][-1]


def test_planning_changes_nothing(shell: Repository) -> None:
    shell.commit({"n": 1})
    before = [info.number for info in shell.operations()]
    for plan in (shell.plan_undo, partial(shell.plan_undo, 1)):
        plan()
    assert [info.number for info in shell.operations()] == before
