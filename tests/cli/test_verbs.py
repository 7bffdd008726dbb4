"""Commands that messages name, and how little a quiet command says."""

import pytest

from tests.helpers.commands import commands

EMPTY = "No checkpoints yet. Commit one with: ckptstore{} commit FILE\n"


def test_a_message_names_the_repository_that_was_given(ckpt, repo, monkeypatch):
    monkeypatch.delenv("CKPTSTORE_REPO", raising=False)
    assert ckpt("-r", repo.url, "log").stderr == EMPTY.format(f" -r {repo.url}")
    assert ckpt("log", "-r", repo.url).stderr == EMPTY.format(f" -r {repo.url}")
    monkeypatch.setenv("CKPTSTORE_REPO", repo.url)
    assert ckpt("log").stderr == EMPTY.format("")


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("branch", "main", "main"), "branch -d main"),
        (("checkout", "main", "--include", "none", "-o", "x.pt"), "ls "),
        (("gc", "--dry-run"), "config retention"),
        (("usage",), "verify"),
        (("verify",), "branch NAME ID"),
    ],
    ids=" ".join,
)
def test_every_message_names_it(ckpt, history, args, named):
    history.commit({"x": 1}, branch="gone")
    history.delete_branch("gone")
    result = ckpt("-r", history.url, *args, code=1 if args[0] in ("branch", "checkout") else 0)
    said = result.output.replace(history.url, "URL")
    assert f"ckptstore -r URL {named}" in said
    assert f"ckptstore {named}" not in said


def test_the_text_of_a_user_is_not_changed(ckpt, history):
    said = ckpt("-r", history.url, "annotate", "main", "-m", "see ckptstore log").stdout
    assert said.endswith(": see ckptstore log\n")


@pytest.mark.parametrize("name", commands())
def test_every_command_can_be_quiet(name):
    assert any("--quiet" in param.opts for param in commands()[name].params)


def test_a_quiet_command_prints_results_and_errors_only(ckpt, history):
    loud = ckpt("gc", "--dry-run")
    quiet = ckpt("gc", "--dry-run", "-q")
    assert loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout
    assert "error: 'nowhere'" in ckpt.error("log", "nowhere", "--quiet")
