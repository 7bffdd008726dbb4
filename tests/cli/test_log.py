from datetime import UTC, datetime

import numpy


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_it_lists_all_branches_newest_first(ckpt, history):
    tuned, main, seed = history.log()
    assert lines(ckpt.out("log")) == [
        "id refs step metrics age new message",
        f"{tuned.id.short} tuned 250 val_loss=nan 1 h ago {kilobytes(tuned)}",
        f"{main.id.short} main 200 val_loss=0.25 1 h ago {kilobytes(main)} lower",
        f"{seed.id.short} tag: v1 100 accuracy=0.75 val_loss=0.5 1 h ago {kilobytes(seed)}",
    ]


def test_a_revision_lists_its_own_history(ckpt, history):
    assert [c["step"] for c in ckpt.json("log", "tuned")] == [250, 100]
    assert [c["step"] for c in ckpt.json("log", "v1")] == [100]
    assert [c["step"] for c in ckpt.json("log", "best:val_loss")] == [200, 100]


def test_a_limit_keeps_the_newest(ckpt, history):
    assert [c["step"] for c in ckpt.json("log", "-n", 2)] == [250, 200]
    assert "0" in ckpt.error("log", "-n", 0, code=2)


def test_json_holds_every_field(ckpt, history):
    newest = ckpt.json("log", "main")[0]
    c = history.resolve("main")
    assert newest == {
        "id": c.id,
        "branches": ["main"],
        "tags": [],
        "step": 200,
        "metrics": {"val_loss": 0.25},
        "message": "lower\nrate",
        "created": c.created.isoformat(),
        "parents": [history.resolve("v1").id],
        "branch": "main",
        "arrays": 2,
        "bytes": 80024,
        "new_bytes": c.new_bytes,
        "expired": False,
        "meta": {},
    }
    assert datetime.fromisoformat(newest["created"]).tzinfo == UTC
    assert ckpt.json("log", "tuned")[0]["metrics"] == {"val_loss": "nan"}


def test_an_empty_repository_says_what_to_do(ckpt, repo):
    result = ckpt("log")
    assert result.stdout == ""
    assert "ckptstore commit FILE" in result.stderr
    assert ckpt.json("log") == []


def test_checkpoints_that_no_ref_reaches_are_not_called_none(ckpt, history):
    for name in ("main", "tuned"):
        ckpt("branch", "-d", name)
    ckpt("tag", "-d", "v1")
    told = ckpt("log")
    assert told.stdout == ""
    assert "No branch and no tag reaches the 3 checkpoints there." in told.stderr
    assert "ckptstore undo" in told.stderr
    assert ckpt.json("log") == []


def test_the_graph_shows_where_branches_fork(ckpt, history):
    tuned, main, seed = (c.id.short for c in history.log())
    assert ckpt.out("log", "--graph").splitlines() == [
        f"* {tuned}  (tuned)  step 250  val_loss=nan  1 h ago",
        f"| * {main}  (main)  step 200  val_loss=0.25  1 h ago  lower",
        "|/",
        f"* {seed}  (tag: v1)  step 100  accuracy=0.75 val_loss=0.5  1 h ago",
    ]


def test_the_graph_as_json_is_the_log(ckpt, history):
    assert ckpt.json("log", "--graph") == ckpt.json("log")


def test_an_unknown_revision_names_what_there_is(ckpt, history):
    error = ckpt.error("log", "mian")
    assert "'mian'" in error
    assert "main, tuned, v1" in error


def test_text_of_a_hostile_repository_cannot_steer_the_terminal(ckpt, repo):
    repo.commit(
        {"x": numpy.zeros(1)},
        message="\x1b]0;owned\x07\x9b31m\u202egnp\r gone",
        metrics={"\x9b2J": 1},
    )
    for args in (["log"], ["log", "--graph"], ["show", "main"], ["branch"], ["log", "--json"]):
        printed = ckpt.out(*args)
        assert not set(printed) & set("\x1b\x07\x9b\u202e\r"), args
    assert "\\x1b]0;owned\\x07\\x9b31m\\u202egnp" in ckpt.out("log")


def kilobytes(checkpoint):
    return f"{checkpoint.new_bytes / 1000:.1f} kB"


def test_a_history_that_is_not_whole_says_so(ckpt, history):
    """A manifest in the middle is missing, and operations are older than checkpoints."""
    root = ckpt.folder / ".ckptstore"
    operations = {path: path.read_bytes() for path in (root / "ops").iterdir()}
    made = [history.commit({"x": step}, step=step) for step in (7, 8)]
    for path in (root / "ops").iterdir():
        if path not in operations:
            path.unlink()
    assert ckpt("log", "main").stderr == ""
    shown = ckpt("log").stderr
    assert "2 checkpoints on no branch, whose operations are missing." in shown
    assert f"The newest is {made[1].id.short}." in shown
    tagged = history.resolve("v1")
    (root / f"checkpoints/{tagged.id}.json").unlink()
    history.delete_tag("v1")
    shown = ckpt("log").stderr
    assert f"Checkpoint {tagged.id.short}, from which" in shown
    assert "so those before it are not listed" in shown
    assert f"checkpoint {tagged.id.short}, from which" in ckpt.error("show", "main~1")


def test_without_operations_there_is_an_error_and_not_an_empty_list(ckpt, history):
    for path in (ckpt.folder / ".ckptstore" / "ops").iterdir():
        path.unlink()
    assert "none of the operations" in ckpt.error("log")
    assert "none of the operations" in ckpt.error("checkout", "main", "-o", "x.pt")
