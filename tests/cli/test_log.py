from datetime import UTC, datetime

import numpy

from ckptstore.retention import MaxToKeep


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_it_lists_all_branches_newest_first(ckpt, history):
    tuned, main, seed = history.log()
    assert lines(ckpt.out("log")) == [
        "id branch refs step val_loss↓ accuracy age new message",
        f"{tuned.id.short} tuned head 250 nan 1 h {kilobytes(tuned)}",
        f"{main.id.short} main head 200 0.25* 1 h {kilobytes(main)} lower",
        f"{seed.id.short} main tag: v1 100 0.5 0.75 1 h {kilobytes(seed)}",
    ]


def test_a_revision_lists_its_own_history(ckpt, history):
    assert [c["step"] for c in ckpt.json("log", "tuned")] == [250, 100]
    assert [c["step"] for c in ckpt.json("log", "v1")] == [100]
    assert [c["step"] for c in ckpt.json("log", "best:val_loss")] == [200, 100]


def test_a_limit_keeps_the_newest(ckpt, history):
    assert [c["step"] for c in ckpt.json("log", "-n", 2)] == [250, 200]
    assert "0" in ckpt.error("log", "-n", 0, code=2)


def test_a_star_marks_the_best_of_each_branch_by_what_its_name_tells(ckpt, repo):
    for loss, acc in [(0.5, 0.1), (0.25, 0.9), (0.25, 0.3), (float("nan"), float("inf"))]:
        repo.commit({"x": loss}, metrics={"val_loss": loss, "val_acc": acc, "n": 3})
    repo.branch("other")
    for loss in (0.75, 0.7, 0.8):
        repo.commit({"x": loss}, branch="other", metrics={"val_loss": loss})
    marked = [c.id for c in repo.log() if c.metrics["val_loss"] in (0.7, 0.25)]
    rows = ckpt.out("log").splitlines()
    assert [row.split()[0] for row in rows if "0.7*" in row or "0.25*" in row] == [
        id.short
        for id in (marked[0], marked[1])  # of equal ones the newest
    ]
    assert sum("0.9*" in row for row in rows) == 1
    assert "inf*" not in "".join(rows)


def test_no_star_marks_a_time_or_a_rate_of_the_program(ckpt, repo):
    for step, loss in enumerate((0.5, 0.25, 0.75)):
        metrics = {"eval_loss": loss, "eval_runtime": 2 + loss, "reward_per_second": 5 + loss}
        repo.commit({"x": loss}, step=step, metrics=metrics)
    text = ckpt.out("log")
    assert "0.25*" in text
    assert text.count("*") == 1
    assert ckpt.json("log", "--sort", "eval_runtime")[0]["metrics"]["eval_runtime"] == 2.25
    assert ckpt.out("log", "--sort", "eval_runtime").count("*") == 2
    assert ckpt.json("show", "best:eval_runtime")["step"] == 1


def test_conditions_and_orders_choose(ckpt, history):
    def steps(*args):
        return [c["step"] for c in ckpt.json("log", *args)]

    assert steps("--where", "val_loss < 0.3 and step > 100") == [200]
    assert steps("--where", "branch = tuned or accuracy > 0.7") == [250, 100]
    assert steps("--sort", "val_loss") == [200, 100, 250]
    assert steps("--sort", "val_loss:max", "-n", 1) == [100]
    assert steps("--sort", "step:min") == [100, 200, 250]
    assert ckpt("log", "--where", "step > 1000").stderr == "No checkpoint matches.\n"
    assert "Did you mean val_loss?" in ckpt.error("log", "--where", "val_los < 1")
    assert "Did you mean val_loss?" in ckpt.error("log", "--sort", "val_los:min")
    assert "is not understood at '0.3 > val_loss'" in ckpt.error("log", "--where", "0.3 > val_loss")
    assert "without --where" in ckpt.error("log", "--graph", "--sort", "val_loss", code=2)


def test_the_metric_of_an_order_comes_first(ckpt, history):
    assert ckpt.out("log").split()[4:6] == ["val_loss↓", "accuracy"]
    assert ckpt.out("log", "--sort", "accuracy:min").split()[4:6] == ["accuracy", "val_loss↓"]


def test_long_shows_all_of_each(ckpt, history):
    blocks = ckpt.out("log", "main", "--long").split("\n\n")
    assert [block.split()[1] for block in blocks] == [c.id for c in history.log("main")]
    assert "message  lower\n         rate" in blocks[0]


def test_expired_ones_are_listed_when_asked_for(ckpt, history):
    history.commit({"x": 1}, step=300)
    history.gc(MaxToKeep(1))
    rows = [line.split() for line in ckpt.out("log").splitlines()[1:]]
    assert [[word for word in row if word in ("300", "250", "200", "100")] for row in rows] == [
        ["300"],
        ["250"],
        ["100"],
    ]
    assert [c["step"] for c in ckpt.json("log")] == [300, 250, 200, 100]
    assert "expired" in ckpt.out("log", "--all").splitlines()[3]
    assert "step 200" in ckpt.out("log", "--graph")


def test_more_metrics_than_columns_are_counted(ckpt, repo):
    repo.commit({"x": 1}, metrics={f"m{number:03}": number for number in range(60)})
    heading = ckpt.out("log").splitlines()[0].split()
    assert [name for name in heading if name.startswith("m0")] == [f"m{n:03}" for n in range(50)]


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
        "notes": [],
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


def test_expired_matches_are_mentioned(ckpt, history):
    history.delete_tag("v1")
    history.gc(MaxToKeep(1), grace=0, keep_seeds=False)
    assert history.resolve("main~1").expired
    said = ckpt("log", "--where", "step = 100").stderr
    assert said == (
        "No checkpoint matches.\nExpired checkpoints are not listed; --all lists them too.\n"
    )
    assert ckpt("log", "--all", "--where", "step = 1").stderr == "No checkpoint matches.\n"


def test_a_condition_finds_a_renamed_branch_by_its_name_of_now(ckpt, history):
    history.rename_branch("tuned", "better")
    history.commit({"x": 1}, branch="better", step=300)

    def steps(condition):
        return [c["step"] for c in ckpt.json("log", "--where", condition)]

    assert steps("branch = better") == [300, 250]
    assert steps("branch != better") == [200, 100]
    assert steps("branch = better and step < 300 or branch = main") == [250, 200, 100]
    history.commit({"x": 1}, branch="tuned", step=400)  # another branch of the old name
    assert steps("branch = better") == [300]
    assert steps("branch = tuned") == [400, 250]
