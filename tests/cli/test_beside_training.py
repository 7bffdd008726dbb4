"""Commands on a branch that a training saves to say so, and do what they were asked to."""

import os

import pytest


@pytest.mark.parametrize(
    ("command", "effect"),
    [
        (("branch", "-d", "tuned"), "Its next save begins the branch again."),
        (("branch", "-m", "tuned", "old"), "Its next save begins tuned again."),
        (("branch", "--reset", "tuned", "v1"), "Its next save fails, as the branch has moved."),
        (
            ("config", "retention", "--branch", "tuned", "--max-to-keep", "3"),
            "It applies this at its next save.",
        ),
    ],
    ids=["delete", "rename", "reset", "retention"],
)
def test_it_names_the_training_and_what_follows(ckpt, history, command, effect):
    hold = history.hold("tuned")
    result = ckpt(*command)
    hold.release()
    said = " ".join(result.stderr.split())
    assert f"A training saves to tuned: process {os.getpid()} of user" in said
    assert effect in said


def test_nothing_is_said_of_other_branches(ckpt, history):
    hold = history.hold("main")
    assert "training saves" not in ckpt("branch", "-d", "tuned").stderr
    hold.release()
