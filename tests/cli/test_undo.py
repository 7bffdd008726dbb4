"""Undo and ops: what was done and by whom, and the way back."""

import os
import re
import sys

import pytest


def test_it_names_what_it_takes_back_first_and_says_how_to_do_it_again(ckpt, history):
    tuned = history.resolve("tuned").id
    done = ckpt("undo")
    assert re.match(
        rf"Taking back operation 5, 1 h ago, by .*\[{os.getpid()}\] .*: committed {tuned.short} "
        rf"to tuned \(branch tuned: \w+ to {tuned.short}\)\.\n$",
        done.stderr,
    )
    first, again = done.stdout.splitlines()
    assert first == f"Undone: committed {tuned.short} to tuned"
    assert again == "To do it again: ckptstore undo 6"
    assert history.resolve("tuned").step == 100
    ckpt("undo", "6")
    assert history.resolve("tuned").id == tuned


def test_it_takes_back_one_operation_after_the_other(ckpt, history):
    tuned, main = history.resolve("tuned").id, history.resolve("main").id
    said = [ckpt.out("undo").splitlines()[0] for _ in range(3)]
    assert said[:2] == [
        f"Undone: committed {tuned.short} to tuned",
        f"Undone: committed {main.short} to main",
    ]
    assert said[2].startswith("Undone: made tag v1 at ")
    assert {name: c.step for name, c in history.branches().items()} == {"main": 100, "tuned": 100}
    assert ckpt.json("show", main[:6])["step"] == 200


def test_json_says_which_operation_and_what_it_moved(ckpt, history):
    tuned = history.resolve("tuned")
    undone = ckpt.json("undo")
    assert (undone["operation"], undone["redo"], undone["left_alone"]) == (5, 6, [])
    assert "tuned" in undone["description"]
    assert undone["moves"] == [
        {"kind": "branch", "name": "tuned", "before": tuned.parents[0], "after": tuned.id}
    ]


def test_there_may_be_nothing_to_undo(ckpt, repo):
    assert ckpt.error("undo").startswith("error: ")
    repo.commit({"epoch": 1})
    ckpt("undo")
    assert ckpt.error("undo").startswith("error: ")


def test_the_commits_of_a_training_in_another_process_are_left_alone(ckpt, history):
    ckpt("branch", "-d", "tuned")
    code = "import ckptstore; ckptstore.open('.ckptstore').commit({'n': 1}, retry=True)"
    for _ in range(2):
        assert ckpt.python([sys.executable, "-c", code]).returncode == 0
    done = ckpt("undo")
    assert "Undone: deleted branch tuned" in done.stdout
    assert "Left alone: 2 newer operations of other programs or users, the newest" in done.stderr
    assert "To take that back: ckptstore undo 8" in done.stderr
    assert "tuned" in history.branches()
    assert ckpt.out("undo", "8").startswith("Undone: committed")


def test_what_cannot_be_undone_names_the_command_that_can(ckpt, history):
    ckpt("branch", "other")
    history.commit({"n": 1}, branch="other")
    told = ckpt.error("undo", "6")
    assert "branch 'other' was moved since, by operation 7" in told
    assert "To take that back first, use 'ckptstore undo 7'." in told
    assert "no operation 99" in ckpt.error("undo", "99")
    assert "not both" in ckpt.error("undo", "1", "--list", code=2)


def test_after_a_gc_undo_names_the_command_for_what_came_before(ckpt, history):
    history.commit({"n": 1}, branch="tuned")
    ckpt("tag", "v2")
    ckpt("gc", "--max-to-keep", 1, "--yes")
    told = ckpt.error("undo")
    assert "a gc deleted cannot come back" in told
    assert "What can be undone is operation 7 (made tag v2" in told
    assert told.endswith("with 'ckptstore undo 7'.\n")
    assert "v2" in history.tags()


@pytest.mark.parametrize("command", [("ops",), ("undo", "--list")], ids=" ".join)
def test_operations_are_listed_newest_first(ckpt, history, command):
    ckpt("undo")
    listed = ckpt.json(*command)
    assert [item["operation"] for item in listed] == [6, 5, 4, 3, 2, 1]
    assert (listed[0]["undoes"], listed[1]["undone_by"]) == (5, 6)
    assert {item["pid"] for item in listed} == {os.getpid()}
    assert [item["role"] for item in listed] == ["hand", "save", "save", "call", "call", "save"]
    lines = ckpt.out(*command).splitlines()
    assert lines[0].split() == ["op", "age", "what", "moved", "by"]
    assert "(undone by 6)" in lines[2]


def test_only_the_newest_are_listed(ckpt, history):
    assert [item["operation"] for item in ckpt.json("ops", "-n", 2)] == [5, 4]


def test_an_empty_repository_has_no_operations(ckpt, repo):
    assert ckpt("ops").stderr == "Nothing has been done to this repository yet.\n"
    assert ckpt.json("ops") == []


def test_after_an_undo_messages_name_what_brings_it_back(ckpt, repo):
    """What is there is not denied, and no message proposes an undo that would be refused."""
    repo.commit({"x": 1}, step=1)
    ckpt("branch", "-d", "main")
    number = repo.operations()[0].number
    said = " ".join(ckpt("log").stderr.split())
    assert (
        f"To take back operation {number} (deleted branch main): ckptstore undo {number}." in said
    )
    missing = ckpt.error("show", "main")
    assert "No branch and no tag is left." in missing
    assert "Nothing has been committed" not in missing


def test_when_everything_is_undone_the_undo_that_can_be_undone_is_named(ckpt, repo):
    ckpt("config", "grace", "2h")
    ckpt("undo")
    number = repo.operations()[0].number
    said = ckpt.error("undo")
    assert said.startswith(f"error: There is nothing to undo. To take back operation {number} (")
    assert said.endswith(f", use 'ckptstore undo {number}'.\n")
    ckpt("undo", number)
    assert repo.grace() == 7200
