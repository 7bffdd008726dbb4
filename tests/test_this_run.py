"""What a run is recorded as: names, arguments without secrets, and the revision that git has."""

import os
import subprocess
import sys

import pytest

from ckptstore import run_meta
from ckptstore.this_run import (
    ARGUMENT_LENGTH_MAX,
    ARGUMENTS_MAX,
    HIDDEN,
    git_revision,
    program,
    without_secrets,
)

SECRET = "hunter2-hunter2-hunter2"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hf-token", SECRET],
        ["--hf_token=" + SECRET],
        ["--apiKey", SECRET],
        ["-password", SECRET],
        [f"+wandb.api_key={SECRET}"],
        [f"WANDB_API_KEY={SECRET}"],
        [f'{{"lr": 1, "password": "{SECRET} {SECRET}"}}'],
        [f"{{secret: {SECRET}}}"],
        [f"s3://user:{SECRET}@host/bucket"],
        [f"https://host/x?a=1&X-Amz-Signature={SECRET}&b=2"],
        ["hf_" + SECRET.replace("-", "")],
        ["--config", "key: " + "ghp_" + SECRET.replace("-", "")],
    ],
)
def test_secrets_are_hidden(arguments):
    hidden = without_secrets([*arguments, "--lr", "0.1"])
    assert "hunter2" not in "".join(hidden)
    assert HIDDEN in "".join(hidden)
    assert hidden[-2:] == ["--lr", "0.1"]
    assert len(hidden) == len(arguments) + 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tokenizer", "bert", "--max-tokens=512", "--author=me", "--key-dim", "64"],
        ["train", "lr=1e-4", "model.layers=[1,2]", "s3://bucket/prefix", "a:b"],
        ["--token", "--lr", "1"],
    ],
)
def test_other_arguments_stay(arguments):
    assert without_secrets(arguments) == arguments


def test_arguments_are_bounded_and_text():
    assert len(without_secrets(["x"] * 999)) == ARGUMENTS_MAX
    assert len(without_secrets(["x" * 99_999])[0]) == ARGUMENT_LENGTH_MAX
    assert "hunter2" not in without_secrets(['"password": "' + SECRET * 999])[0]
    "".join(without_secrets([os.fsdecode(b"\xff\x1b")])).encode()


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["/home/me/train.py"], "train.py"),
        (["/home/me/trainer/__main__.py"], "trainer"),
        (["-c"], "python"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_a_program_is_named_without_its_folder(monkeypatch, argv, name):
    monkeypatch.setattr(sys, "argv", argv)
    assert program() == name


def git(folder, *args):
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    done = subprocess.run(
        ["git", "-c", "user.name=x", "-c", "user.email=x@y", *args],
        cwd=folder, env=env, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_the_revision_is_that_of_git(tmp_path):
    work = tmp_path / "work"
    inside = work / "a" / "b"
    inside.mkdir(parents=True)
    assert git_revision(inside) is None
    git(work, "init", "-q", "-b", "main")
    assert git_revision(inside) is None  # before the first commit
    git(work, "commit", "-q", "--allow-empty", "-m", "one")
    revision = git(work, "rev-parse", "HEAD")
    assert git_revision(inside) == revision
    assert run_meta(inside)["git"] == revision
    git(work, "pack-refs", "--all")
    assert git_revision(inside) == revision
    git(work, "worktree", "add", "-q", "-b", "other", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "two")
    assert git_revision(tmp_path / "other") == git(tmp_path / "other", "rev-parse", "HEAD")
    assert git_revision(work) == revision
    git(work, "checkout", "-q", "--detach", "other")
    assert git_revision(work) == git(work, "rev-parse", "HEAD") != revision


@pytest.mark.parametrize("head", [b"", b"ref: refs/heads/\xff", b"ref: ../../x", b"0" * 39])
def test_a_damaged_repository_of_git_has_no_revision(tmp_path, head):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(head)
    (tmp_path / "x").write_text("secret")
    assert git_revision(tmp_path) is None


def test_a_fifo_does_not_block(tmp_path):
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "HEAD")
    assert git_revision(tmp_path) is None
