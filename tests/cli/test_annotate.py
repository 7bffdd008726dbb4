"""Metrics and words that come after the commit."""

import json

import pytest

from ckptstore.retention import KeepBest


def test_a_note_is_in_the_log_in_show_and_in_best(ckpt, history):
    id = history.resolve("main~1").id
    said = ckpt.out("annotate", "main~1", "-M", "val_acc=0.9", "--metric", "n=3", "-m", "by hand")
    assert said == f"Annotated {id.short}: val_acc=0.9 n=3, by hand\n"
    assert ckpt.json("show", "best:val_acc")["id"] == id
    shown = ckpt.out("show", "main~1")
    assert "val_acc = 0.9" in shown
    assert "notes" in shown
    assert "by hand (just now, " in shown or "by hand (1 h ago, " in shown
    assert "0.9" in ckpt.out("log", "main")


def test_json_has_the_notes(ckpt, history):
    told = ckpt.json("annotate", "main", "-M", "val_loss=nan")
    assert told["metrics"]["val_loss"] == "nan"
    (note,) = told["notes"]
    assert note["metrics"] == {"val_loss": "nan"}
    assert note["user"]


def test_a_note_names_the_older_ones_that_no_longer_wait_for_the_metric(ckpt, repo):
    ids = [repo.commit({"n": step}, step=step).id for step in range(4)]
    repo.set_retention(KeepBest("val_acc"))
    result = ckpt("annotate", "main~1", "-M", "val_acc=0.5")
    assert " ".join(result.stderr.split()) == (
        "2 checkpoints of main without val_acc would expire at the next gc, since a newer one has "
        f"it: {ids[1].short}, {ids[0].short}. To keep one, add its val_acc or a tag."
    )
    reason = f"no val_acc, which the newer {ids[2].short} (step 2) has"
    assert [str(r) for v in repo.plan_gc().expired for r in v.reasons] == [reason, reason]
    assert ckpt("annotate", "main~1", "-M", "other=1").stderr == ""
    ckpt("annotate", ids[0], "-M", "val_acc=0.4")
    ckpt("annotate", ids[1], "-M", "val_acc=0.6")
    assert [v.manifest.step for v in repo.plan_gc().kept] == [3, 1]


def test_undo_takes_a_note_back(ckpt, history):
    ckpt("annotate", "main", "-M", "val_acc=0.9")
    assert ": val_acc=0.9" in ckpt.out("undo")
    assert ckpt.json("show", "main")["notes"] == []


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["main"], 2, "Give a metric"),
        (["main", "-M", "val_acc"], 2, "NAME=NUMBER"),
        (["nowhere", "-M", "a=1"], 1, "'nowhere'"),
    ],
)
def test_what_is_no_note_is_an_error(ckpt, history, args, code, said):
    assert said in ckpt.error("annotate", *args, code=code)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_follow_prints_what_is_not_evaluated_yet_and_runs_a_command_for_each(ckpt, history):
    ckpt("annotate", "main~1", "-M", "val_acc=0.5")
    history.commit({"n": 3}, step=300)
    told = ckpt.out("follow", "--unevaluated", "val_acc", "--no-wait", "--json")
    assert [line["step"] for line in lines(told)] == [200, 300]
    command = "printf '%s %s\\n' {id} {step} >> evaluated"
    ckpt("follow", "main", "--unevaluated", "val_acc", "--no-wait", "--exec", command)
    ran = (ckpt.folder / "evaluated").read_text().split()
    assert ran == [history.resolve("main~1").id, "200", history.resolve("main").id, "300"]
    ckpt("annotate", "main~1", "-M", "val_acc=0.6")
    ckpt("annotate", "main", "-M", "val_acc=0.7")
    assert ckpt.out("follow", "--unevaluated", "val_acc", "--no-wait") == ""


def test_follow_begins_with_the_newest_and_reports_a_command_that_fails(ckpt, history):
    id = history.resolve("main").id
    done = ckpt("follow", "-n", 1, "--exec", "exit 3", code=1)
    assert done.stdout == f"{id.short}  step 200  val_loss=0.25  lower\n"
    assert done.stderr == f"The command for {id.short} failed with exit code 3: exit 3\n"
