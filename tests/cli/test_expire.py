"""Expiring chosen checkpoints from the command line."""

import pytest


@pytest.fixture
def longer(history):
    history.delete_branch("tuned")
    history.delete_tag("v1")
    return history


def test_the_plan_is_shown_first_and_then_done(ckpt, longer):
    id = longer.resolve("main~1").id
    done = ckpt("expire", "main~1")
    heading, row, result = done.stdout.splitlines()
    assert heading.split() == ["id", "branch", "step", "frees", "message"]
    assert row.split()[:3] == [id.short, "main", "100"]
    assert "Its arrays cannot come back." in done.stderr
    assert result.startswith("1 checkpoint expired, ")
    assert longer.resolve("main~1").expired


@pytest.mark.parametrize("options", [["--dry-run"], ["--dry-run", "--json"]])
def test_a_dry_run_changes_nothing(ckpt, longer, options):
    assert longer.resolve("main~1").id.short in ckpt.out("expire", "main~1", *options)
    assert not longer.resolve("main~1").expired


def test_json_says_what_expired(ckpt, longer):
    told = ckpt.json("expire", "main~1")
    assert told["expired"] == [longer.resolve("main~1").id]
    assert told["is_done"]
    assert told["bytes"] > 0


def test_what_is_named_is_refused(ckpt, history):
    assert "head of tuned" in ckpt.error("expire", "main~1", "tuned")
    assert "tag v1" in ckpt.error("expire", "v1")
    assert not any(c.expired for c in history.log())
