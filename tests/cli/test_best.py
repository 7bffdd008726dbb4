import shlex

import pytest

from ckptstore.retention import MaxToKeep


@pytest.fixture
def runs(repo):
    """main with a val_loss of .1 .5 .3, and b, which begins at the .1, with .4 .2 .2 nan inf."""
    for step, loss in enumerate([0.1, 0.5, 0.3]):
        repo.commit({"x": step}, step=step, metrics={"val_loss": loss})
    repo.branch("b", "main@step=0")
    for step, loss in enumerate([0.4, 0.2, 0.2, float("nan"), float("-inf")], start=10):
        repo.commit({"x": step}, branch="b", step=step, metrics={"val_loss": loss, "odd": step})
    return repo


@pytest.mark.parametrize(
    ("args", "steps"),
    [
        (["val_loss"], [0]),
        (["val_loss", "-k", 3], [0, 12, 11]),
        (["val_loss", "b"], [12]),
        (["val_loss", "b", "--ancestry", "-k", 3], [0, 12, 11]),
        (["val_loss", "b~4", "--ancestry", "-k", 3], [0, 10]),
        (["val_loss:max", "main", "--ancestry", "-k", 2], [1, 2]),
        (["val_loss", "--ancestry"], [0]),
        (["val_loss", "b~1", "-k", 99], [12, 11, 10]),
        (["val_loss:max", "main", "-k", 2], [1, 2]),
        (["odd:max"], [14]),
    ],
)
def test_the_best_come_first_over_all_branches_or_one_or_its_history(ckpt, runs, args, steps):
    assert [c["step"] for c in ckpt.json("best", *args)] == steps
    rows = ckpt.out("best", *args).splitlines()[1:]
    assert [row.split()[0] for row in rows] == [c["id"][:8] for c in ckpt.json("best", *args)]


def test_a_better_one_that_has_expired_is_mentioned(ckpt, runs):
    runs.delete_branch("b")
    runs.gc(MaxToKeep(1))
    best = ckpt("best", "val_loss")
    assert best.stderr.endswith(", step 0, val_loss = 0.1.\n")
    assert best.stdout.splitlines()[1].startswith(runs.resolve("main").id.short)


def test_without_a_number_there_is_an_error(ckpt, runs):
    runs.commit({"x": 1}, branch="c", metrics={"val_acc": float("nan")})
    assert "has a finite val_acc" in ckpt.error("best", "val_acc", "c")
    assert "Did you mean val_loss?" in ckpt.error("best", "val_los:min")


def test_a_branch_keeps_its_best_under_a_new_name(ckpt, runs):
    ckpt("branch", "-m", "b", "c")
    runs.commit({"x": 1}, branch="c", step=20, metrics={"val_loss": 0.3})
    assert [c["step"] for c in ckpt.json("best", "val_loss", "c", "-k", 9)] == [12, 11, 20, 10]
    assert ckpt.json("best", "val_loss", "c")[0]["id"] == runs.resolve("c@best:val_loss").id


def test_notes_count(ckpt, runs):
    runs.annotate("main@step=1", metrics={"val_loss": 0.01})
    assert [c["step"] for c in ckpt.json("best", "val_loss")] == [1]
    assert [c["step"] for c in ckpt.json("log", "--where", "val_loss < 0.05 and val_loss > 0")] == [
        1
    ]
    assert " 0.01" in ckpt.out("best", "val_loss")


def test_a_metric_that_no_checkpoint_has_is_named_before_its_direction(ckpt, runs):
    said = ckpt.error("best", "nope")
    assert "No checkpoint has the metric 'nope'. Known metrics: odd, val_loss." in said
    assert "direction" not in said
    assert "odd:max or odd:min" in ckpt.error("best", "odd")


def test_a_policy_for_a_branch_or_metric_that_is_not_there_is_saved_with_a_note(ckpt, runs):
    said = ckpt("config", "retention", "--branch", "mian", "--keep-best", "val_los:min").stderr
    assert "There is no branch 'mian' yet. Known branches: b, main. Did you mean main?" in said
    assert "No checkpoint has the metric 'val_los' yet. " in said
    assert "Did you mean val_loss?" in said
    said = ckpt("config", "retention", "--branch", "main", "--keep-best", "val_loss").stderr
    assert said == "Saved. gc without options applies it, and a running training when it saves.\n"


def test_follow_names_a_branch_that_is_not_there_where_it_does_not_wait(ckpt, runs):
    said = ckpt.error("follow", "mian", "--no-wait")
    assert "There is no branch 'mian'. Known branches: b, main. Did you mean main?" in said


NAME = "mAP@.5:.95"


@pytest.mark.parametrize(
    "args",
    [
        ("show", "best:{}:max"),
        ("show", "main@best:{}"),
        ("gc", "--dry-run", "--keep-best", "{}"),
        ("gc", "--dry-run", "--keep-best", "{}:max"),
        ("gc", "--dry-run", "--keep-best", "{}:max:2"),
        ("best", "{}"),
        ("best", "{}:max"),
        ("log", "--sort", "{}"),
    ],
    ids=" ".join,
)
def test_a_name_to_be_quoted_is_shown_as_a_shell_takes_it(ckpt, repo, args):
    """What the message says can be pasted, and works."""
    repo.commit({"x": 1}, step=1, metrics={NAME: 0.5, "mAP": 0.1})
    typed = [arg.format(NAME) for arg in args]
    said = ckpt.error(*typed, code=2 if "--keep-best" in args else 1)
    _, hint, shown = said.strip().partition("is quoted, and once more for the shell: ")
    assert hint
    (word,) = shlex.split(shown)
    assert '"' in word
    ckpt(*typed[:-1], word)
