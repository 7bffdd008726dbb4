import os
import shlex

import pytest

from ckptstore.retention import KeepBest, MaxToKeep


def test_it_lists_heads_with_step_and_metrics(ckpt, history):
    assert [line.split()[:4] for line in ckpt.out("branch").splitlines()] == [
        ["branch", "id", "step", "val_loss"],
        ["main", history.resolve("main").id.short, "200", "0.25"],
        ["tuned", history.resolve("tuned").id.short, "250", "nan"],
    ]


def test_json_lists_them_by_name(ckpt, history):
    main, tuned = ckpt.json("branch")
    assert (main["name"], main["id"], main["step"]) == ("main", history.resolve("main").id, 200)
    assert (tuned["name"], tuned["metrics"]) == ("tuned", {"val_loss": "nan"})


def test_no_branch_yet_is_said_on_stderr(ckpt, repo):
    result = ckpt("branch")
    assert (result.stdout, result.stderr) == ("", "There is no branch yet.\n")
    assert ckpt.json("branch") == []


@pytest.mark.parametrize(
    ("rev", "step"), [([], 200), (["v1"], 100), (["tuned"], 250), (["best:val_loss"], 200)]
)
def test_it_makes_a_branch_at_a_revision(ckpt, history, rev, step):
    said = ckpt.out("branch", "exp/new", *rev)
    made = history.branches()["exp/new"]
    assert made.step == step
    assert said == f"Created branch exp/new at checkpoint {made.id.short}, step {step}.\n"


def test_json_tells_of_the_branch_made_and_deleted(ckpt, history):
    made = ckpt.json("branch", "new", "v1")
    assert (made["name"], made["id"]) == ("new", history.resolve("v1").id)
    deleted = ckpt.json("branch", "-d", "new")
    (newest,) = history.operations(limit=1)
    assert deleted == {"deleted": "new", "id": made["id"], "operation": newest.number}


@pytest.mark.parametrize(("kind", "name"), [("branch", "tuned"), ("tag", "v1")])
def test_it_deletes_a_ref_and_prints_the_command_that_brings_it_back(ckpt, history, kind, name):
    refs = history.ref_names()
    first, command = ckpt.out(kind, "-d", name).splitlines()
    assert first == f"Deleted {kind} {name}. To bring it back:"
    assert history.ref_names() != refs
    history.commit({"n": 1}, branch="other")  # what others do meanwhile changes nothing
    ckpt(*command.split()[1:])
    ckpt("branch", "-d", "other")
    assert history.ref_names() == refs


def test_what_was_deleted_with_a_policy_of_its_own_comes_back_with_it(ckpt, history):
    history.set_retention(MaxToKeep(1))
    history.set_retention(KeepBest("val_loss"), branch="tuned")
    head = history.resolve("tuned").id
    first, undo, second, again = ckpt.out("branch", "-d", "tuned").splitlines()
    assert first == "Deleted branch tuned and its own policy. To bring both back:"
    assert second == "To bring the branch back without its own policy:"
    assert again == f"  ckptstore branch tuned {head.short}"
    history.commit({"n": 1}, branch="other")
    ckpt(*undo.split()[1:])
    assert history.retention("tuned") == KeepBest("val_loss")
    assert history.resolve("tuned").id == head
    ckpt("branch", "-d", "tuned")
    ckpt(*again.split()[1:])
    assert history.retention("tuned") is None


def test_a_lease_that_was_deleted_comes_back_with_its_end(ckpt, history):
    ckpt("tag", "reading", "main", "--ttl", "6h")
    leases = history.leases()
    first, undo, *_ = ckpt.out("tag", "-d", "reading").splitlines()
    assert first == "Deleted tag reading and its end. To bring both back:"
    ckpt(*undo.split()[1:])
    assert history.leases() == leases


def test_the_printed_commands_name_the_repository_as_it_was_given(ckpt, history, monkeypatch):
    history.set_retention(MaxToKeep(1), branch="main")
    os.rename(".ckptstore", "a store")
    before = ckpt.json("-r", "a store", "ops")[0]["operation"]
    printed = [
        ckpt.out("-r", "a store", *words)
        for words in (
            ["branch", "--reset", "tuned", "main"],
            ["branch", "-d", "main"],
            ["tag", "-d", "v1"],
            ["undo"],
        )
    ]
    lines = [line for text in printed for line in text.splitlines() if "ckptstore" in line]
    assert len(lines) == 5
    assert all("ckptstore -r 'a store' " in line for line in lines)
    ckpt(*shlex.split(lines[1])[1:])
    assert "main" in [branch["name"] for branch in ckpt.json("-r", "a store", "branch")]
    assert ckpt.json("-r", "a store", "ops")[0]["operation"] == before + 5
    monkeypatch.setenv("CKPTSTORE_REPO", "a store")
    assert "  ckptstore branch --reset tuned" in ckpt.out("branch", "--reset", "tuned", "main")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["main"], "delete it first: ckptstore branch -d main"),
        (["-d", "mian"], "Did you mean main?"),
        (["new", "nowhere"], "'nowhere'"),
        (["has space"], "'has space' cannot name a branch"),
        (["-d", "nowhere"], "Known branches: main, tuned"),
    ],
)
def test_what_cannot_be_done_is_an_error(ckpt, history, args, said):
    assert said in ckpt.error("branch", *args)
    assert list(history.branches()) == ["main", "tuned"]


def test_making_and_deleting_at_once_is_wrong_usage(ckpt, history):
    assert "not both" in ckpt.error("branch", "new", "-d", "tuned", code=2)
    assert list(history.branches()) == ["main", "tuned"]


def test_it_renames_a_branch(ckpt, history):
    head = history.resolve("tuned").id
    said = ckpt.out("branch", "-m", "tuned", "exp/new")
    assert said == f"Renamed branch tuned to exp/new, at checkpoint {head.short}.\n"
    assert list(history.branches()) == ["exp/new", "main"]
    told = ckpt.json("branch", "--move", "exp/new", "tuned")
    assert told == {"renamed": "exp/new", "name": "tuned", "id": head}


def test_it_resets_a_branch_and_prints_the_command_that_moves_it_back(ckpt, history):
    old, new = history.resolve("main").id, history.resolve("main~1").id
    said = ckpt.out("branch", "--reset", "main", "main~1").splitlines()
    assert said[0] == f"Reset branch main to checkpoint {new.short}, step 100."
    assert said[1] == f"It was at {old.short}. To move it back:"
    assert history.resolve("main").id == new
    back = ckpt.json(*said[2].split()[1:])
    assert (back["name"], back["was"], back["id"]) == ("main", new, old)


@pytest.mark.parametrize(
    "args",
    [
        ["-m", "tuned"],
        ["-m", "tuned", "new", "main"],
        ["-m", "tuned", "new", "-d", "tuned"],
        ["-m", "tuned", "new", "--include", "model"],
        ["--reset", "main"],
        ["--reset", "main", "main~1", "tuned"],
        ["-m", "tuned", "--reset", "main", "new"],
    ],
    ids=" ".join,
)
def test_a_rename_or_reset_takes_two_words_and_nothing_else(ckpt, history, args):
    before = history.ref_names()
    assert "and nothing else" in ckpt.error("branch", *args, code=2)
    assert history.ref_names() == before


def test_a_second_name_to_delete_is_refused_and_nothing_is_deleted(ckpt, history):
    before = history.ref_names()
    said = ckpt.error("branch", "-d", "main", "-d", "tuned", code=2)
    assert "ckptstore branch -d main, then ckptstore branch -d tuned" in said
    assert history.ref_names() == before
