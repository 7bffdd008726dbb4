"""`ckptstore gc` and `ckptstore config retention`."""

from __future__ import annotations

import numpy
import pytest

from ckptstore.retention import MaxToKeep


@pytest.fixture
def history(ckpt, history):
    """One checkpoint, step 200, is no head and no seed, and none is tagged."""
    history.delete_tag("v1")
    history.commit({"bias": numpy.ones(5)}, step=300, metrics={"val_loss": 0.2, "accuracy": 0.5})
    return history


def ids(ckpt, *, expired):
    return {c["id"] for c in ckpt.json("log") if c["expired"] == expired}


def test_a_dry_run_tells_every_verdict_and_does_nothing(ckpt, history):
    before = ckpt.json("usage")
    plan = ckpt.json("gc", "--max-to-keep", 1, "--dry-run", "--grace", 0)
    assert ckpt.json("usage") == before
    assert {c["id"] for c in plan["checkpoints"]} == ids(ckpt, expired=False)
    kept = {c["id"] for c in plan["checkpoints"] if c["kept"]}
    assert kept >= {head["id"] for head in ckpt.json("branch")}
    assert all(c["reasons"] for c in plan["checkpoints"])
    assert plan["bytes"] == sum(c["frees"] for c in plan["checkpoints"]) + plan["leftover_bytes"]
    said = ckpt("gc", "--max-to-keep", 1, "--dry-run")
    assert "Nothing was changed." in said.stderr
    assert all(c["id"][:8] in said.stdout for c in plan["checkpoints"])
    assert "expires" in said.stdout


def test_seeds_are_kept_unless_turned_off(ckpt, repo):
    for step in (1, 2, 3):
        repo.commit({"x": step}, step=step)
    repo.branch("b", "main@step=2")
    repo.commit({"x": 4}, branch="b", step=4)
    plans = [
        ckpt.json("gc", "--max-to-keep", 1, "--dry-run", *options)
        for options in ([], ["--no-keep-seeds"])
    ]
    kept = [{c["step"] for c in plan["checkpoints"] if c["kept"]} for plan in plans]
    assert kept == [{4, 3, 2}, {4, 3}]
    ckpt.out("gc", "--max-to-keep", 1, "--no-keep-seeds")
    assert [c.step for c in repo.log(expired=False)] == [4, 3]
    assert ckpt.json("gc", "--max-to-keep", 1)["expired"] == []


def test_what_expires_is_told_and_freed_and_stays_in_the_log(ckpt, history):
    plan = ckpt.json("gc", "--max-to-keep", 1, "--dry-run", "--grace", 0)
    expiring = {c["id"] for c in plan["checkpoints"] if not c["kept"]}
    before = ckpt.json("usage")["stored_bytes"]
    report = ckpt.json("gc", "--max-to-keep", 1, "--grace", 0)
    assert set(report["expired"]) == expiring == ids(ckpt, expired=True)
    assert before - ckpt.json("usage")["stored_bytes"] == report["bytes"] == plan["bytes"]
    assert "expired" in ckpt.out("log", "--all")
    assert "expired" not in ckpt.out("log")
    gone = min(expiring)
    assert "were deleted on" in ckpt.error("checkout", gone)
    assert ckpt.json("verify")["ok"]
    assert "0 checkpoints expired" in ckpt.out("gc", "--max-to-keep", 1)


def test_what_is_kept_because_it_is_new_is_told(ckpt, history):
    history.commit({"w": numpy.arange(50_000.0)}, branch="mistake")
    assert "become free" not in ckpt("gc").stderr
    ckpt("branch", "-d", "mistake")
    said = ckpt("gc").stderr
    assert "1 checkpoint on no branch, 400." in said
    assert "kB, become free in 24 h; --grace 0 frees them now." in said
    plan = ckpt.json("gc", "--dry-run")
    assert (plan["young_checkpoints"], plan["young_objects"]) == (1, 3)
    assert 86_000 < plan["young_seconds"] <= 86_400
    assert ckpt.json("gc", "--grace", 0)["bytes"] == plan["young_bytes"] > 400_000
    assert "become free" not in ckpt("gc").stderr


def test_the_grace_time_is_saved_or_given_with_a_unit(ckpt, history):
    history.commit({"w": numpy.arange(50_000.0)}, branch="mistake")
    ckpt("branch", "-d", "mistake")
    assert ckpt.out("config", "grace") == "24 h\n"
    assert ckpt.json("config", "grace", "7d") == {"grace_seconds": 604_800.0}
    assert "become free in 7 days" in ckpt("gc", "--dry-run").stderr
    assert "become free in 5 h" in ckpt("gc", "--dry-run", "--grace", "5h").stderr
    ckpt("config", "grace", "--unset")
    assert history.grace() == 86_400
    for wrong in ("5", "6m", "-1h", "1 year"):
        assert "is not a time such as 30min" in ckpt.error("config", "grace", "--", wrong, code=2)
    ckpt.error("config", "grace", "7d", "--max-to-keep", 1, code=2)
    ckpt.error("config", "grace", "7d", "--unset", code=2)
    ckpt.error("config", "retention", "7d", code=2)


def test_policies_by_time_and_size(ckpt, history):
    said = ckpt.out("config", "retention", "--keep-within", "36h", "--max-bytes", "2.5GB")
    assert said == "Keep the last 36 hours and at most 2.5 GB of each branch.\n"
    assert "is not a time" in ckpt.error("gc", "--keep-within", "36", code=2)
    assert "is not a size" in ckpt.error("gc", "--max-bytes", "200", code=2)


def test_what_goes_next_is_told(ckpt, history):
    said = ckpt("gc", "--max-to-keep", 2, "--dry-run").stderr
    step_200 = history.resolve("main@step=200").id
    assert f"Next to go: {step_200.short}, when the next checkpoint comes." in said
    assert ckpt.json("gc", "--max-to-keep", 2, "--dry-run")["next_to_go"] == [step_200]
    assert "Next to go" not in ckpt("gc", "--dry-run").stderr


def test_a_branch_has_a_policy_of_its_own(ckpt, history):
    ckpt("config", "retention", "--branch", "tuned", "--keep-all")
    ckpt("config", "retention", "--max-to-keep", 1)
    assert ckpt.json("config", "retention", "-b", "tuned")["retention"] == {"kind": "keep_all"}
    said = ckpt("gc", "--dry-run").stderr
    assert "Keep the newest of each branch." in said
    assert "tuned: Keep every checkpoint of every branch." in said
    assert ckpt.json("config", "retention", "-b", "tuned", "--unset")["retention"] is None
    assert "That of all branches applies" in ckpt("config", "retention", "-b", "tuned").stderr


def test_one_branch_can_be_collected_alone(ckpt, history):
    ckpt("branch", "copy", "main")
    plan = ckpt.json("gc", "--max-to-keep", 1, "--branch", "main", "--dry-run")
    assert all(c["kept"] for c in plan["checkpoints"] if "copy" in c["branches"])
    assert "no branch 'mane'" in ckpt.error("gc", "--max-to-keep", 1, "-b", "mane")


def test_a_saved_policy_is_shown_applied_and_forgotten(ckpt, history):
    assert ckpt.json("config", "retention") == {
        "branch": None,
        "retention": None,
        "sentence": None,
    }
    said = ckpt.out("config", "retention", "--max-to-keep", 1, "--keep-every-n-steps", 1000)
    assert ckpt.out("config", "retention") == said
    assert ckpt.json("config", "retention")["sentence"] == said.strip()
    assert ckpt.json("gc", "--dry-run")["policy"] == said.strip()
    ckpt("config", "retention", "--unset")
    assert ckpt.json("config", "retention")["sentence"] is None
    ckpt("undo")
    assert ckpt.out("config", "retention") == said


def test_without_a_policy_only_what_nothing_reaches_is_deleted(ckpt, history):
    history.commit({"w": numpy.zeros(50_000)}, branch="mistake")
    history.delete_branch("mistake")
    kept = len(history.log())
    planned = ckpt("gc", "--grace", 0, "--dry-run")
    assert "No policy is given or saved" in planned.stderr
    assert "--max-to-keep 5" in planned.stderr
    assert "1 checkpoint of" in planned.stderr
    done = ckpt("gc", "--grace", 0)
    assert done.stdout.startswith("1 checkpoint expired")
    assert "No policy is given or saved" in done.stderr
    assert [c.expired for c in history.log()] == [False] * kept
    history.set_retention(MaxToKeep(1))
    assert "No policy" not in ckpt("gc", "--dry-run").stderr


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (["--keep-best", "loss:min:3:4"], "METRIC[:MODE[:N]]", 2),
        (["--keep-best", "loss:min:x"], "METRIC[:MODE[:N]]", 2),
        (["--keep-best", "no_such:min"], "no_such", 1),
        (["--keep-best", "depth"], "Give the direction: depth:max or depth:min", 2),
        (["--keep-best", "val_los:min"], "Did you mean val_loss?", 1),
        (["--keep-best", "val_los"], "Did you mean 'val_loss'?", 2),
        (["--keep-best", "val_loss:upwards"], "--keep-best: the mode is 'upwards'", 2),
        (["--max-to-keep", "0"], "--max-to-keep: 0 is not", 2),
        (["--max-to-keep", str(2**63)], "--max-to-keep: 9223372036854775808 is not", 2),
        (["--keep-every-n-steps", "-1"], "--keep-every-n-steps: -1 is not", 2),
        (["--keep-every-n-hours", "nan"], "--keep-every-n-hours: nan is not", 2),
        (["--grace", "-1"], "grace", 2),
    ],
)
def test_a_policy_that_means_nothing_is_an_error_before_anything_is_touched(
    ckpt, history, args, said, code
):
    before = ckpt.json("log")
    assert said in ckpt.error("gc", *args, code=code)
    assert ckpt.json("log") == before


def test_a_policy_that_is_saved_or_removed_is_confirmed(ckpt, history):
    saved = ckpt("config", "retention", "--max-to-keep", 2)
    assert saved.stdout == "Keep the newest 2 of each branch.\n"
    assert "Saved." in saved.stderr
    shown = ckpt("config", "retention")
    assert (shown.stdout, shown.stderr) == (saved.stdout, "")
    removed = ckpt("config", "retention", "--unset").stderr
    assert removed.startswith("Removed the policy: Keep the newest 2 of each branch.\n")
    assert "Without one, gc expires nothing." in removed
    assert "Removed" not in ckpt("config", "retention", "--unset").stderr


def test_the_settings_are_named(ckpt, repo):
    missing = ckpt.error("config", code=2)
    assert missing.endswith("error: Missing argument '{retention|grace}'.\n")
    wrong = ckpt.error("config", "retentoin", code=2)
    assert "There is no setting 'retentoin'; there are 'retention' and 'grace'." in wrong


def test_saving_and_forgetting_at_once_is_wrong_usage(ckpt, history):
    ckpt.error("config", "retention", "--unset", "--max-to-keep", 2, code=2)


def test_branches_that_are_left_alone_are_counted_and_not_listed(ckpt, history):
    history.commit({"x": 1}, step=300)
    args = ("gc", "--dry-run", "--max-to-keep", "1", "--branch", "tuned")
    done = ckpt(*args)
    rows = done.stdout.splitlines()[1:]
    assert {row.split()[1] for row in rows} == {"tuned"}
    count = len(ckpt.json(*args)["checkpoints"])
    assert (
        f"{count - len(rows)} checkpoints of other branches stay and are not listed." in done.stderr
    )
    assert "not listed" not in ckpt("gc", "--dry-run", "--max-to-keep", "1").stderr
