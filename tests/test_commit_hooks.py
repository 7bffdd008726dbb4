"""Commit hooks: what they are called with, when, and that no commit fails because of them."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore.errors import InvalidInputError
from ckptstore.training import CheckpointManager
from tests.helpers.root import ROOT

STATE = {"w": np.arange(4.0)}


@pytest.fixture
def repo(tmp_path):
    return ckptstore.init(tmp_path / "store")


def told_by(repo):
    events = []
    repo.on_commit(events.append)
    return events


def test_an_event_describes_the_checkpoint_and_its_place(repo):
    events = told_by(repo)
    made = repo.commit(STATE, branch="run", step=7, metrics={"loss": 0.5})
    (told,) = events
    assert told.checkpoint == made
    assert (told.id, told.step, told.branch) == (made.id, 7, "run")
    assert dict(told.metrics) == {"loss": 0.5}
    assert told.address == f"{repo.url}#{made.id}"
    assert told.document() == {
        "checkpoint": made.id,
        "checkpoint_step": 7,
        "repository": repo.url,
    }


def test_the_checkpoint_is_durable_when_a_hook_is_called(repo):
    seen = []
    repo.on_commit(lambda event: seen.append(ckptstore.open(repo.url).resolve("main").id))
    made = [repo.commit(STATE, step=step).id for step in range(2)]
    assert seen == made


def test_each_way_to_a_checkpoint_is_one_event(repo):
    events = told_by(repo)
    first = repo.commit(STATE)
    derived = repo.branch("derived", at="main", include="w", reset="step")
    with repo.session("main") as session:
        changed = session.commit(step=3)
    assert [event.id for event in events] == [first.id, derived.id, changed.id]


def test_what_makes_no_checkpoint_is_no_event(repo, tmp_path):
    made = repo.commit(STATE)
    events = told_by(repo)
    repo.branch("same", at="main")
    repo.tag("v1")
    repo.annotate("main", metrics={"loss": 0.5})
    ckptstore.init(tmp_path / "there")
    repo.push(tmp_path / "there")
    repo.diff("main", {"w": np.ones(4)})  # compares with a state, for which a repository is made
    assert events == []
    assert made.id == repo.resolve("same").id


def test_a_commit_that_failed_is_no_event(repo):
    events = told_by(repo)
    repo.commit(STATE)
    with pytest.raises(ckptstore.ConflictError):
        repo.commit(STATE, parent="0" * 64)
    assert len(events) == 1


def test_an_import_is_an_event_for_each_file(repo, tmp_path):
    for step in (2, 1):
        np.savez(tmp_path / f"run-{step}.npz", **STATE)
    events = told_by(repo)
    ckptstore.plan_import(repo, tmp_path / "run-{step}.npz").execute()
    assert [event.step for event in events] == [1, 2]


def test_hooks_are_called_in_order_until_they_are_removed(repo):
    calls = []
    remove = repo.on_commit(lambda event: calls.append(("first", event.step)))
    repo.on_commit(lambda event: calls.append(("second", event.step)))
    repo.commit(STATE, step=1)
    remove()
    remove()
    repo.commit(STATE, step=2)
    assert calls == [("first", 1), ("second", 1), ("second", 2)]


class _BrokenError(Exception):
    pass


def broken(calls, event):
    calls.append(event.step)
    raise _BrokenError("no\nserver")


@pytest.mark.parametrize("raised", [_BrokenError, ckptstore.ConflictError, ckptstore.StorageError])
def test_an_error_of_a_hook_is_one_warning_and_the_others_are_called(repo, raised):
    calls, after = [], told_by(ckptstore.open(repo.url))

    def fails(event):
        calls.append(event.step)
        raise raised("no\nserver")

    repo.on_commit(fails)
    repo.on_commit(after.append)
    with pytest.warns(RuntimeWarning, match=r"fails failed \(\w+Error: no.*The checkpoint") as seen:
        made = [repo.commit(STATE, step=step).id for step in range(3)]
    assert len(seen) == 1
    assert calls == [0, 1, 2]
    assert [event.id for event in after] == made
    assert [found.id for found in repo.log()] == made[::-1]


def test_a_commit_succeeds_where_warnings_are_errors(repo, capsys):
    repo.on_commit(partial(broken, []))
    with warnings.catch_warnings(action="error"):
        made = repo.commit(STATE)
    assert repo.resolve("main").id == made.id
    assert "The checkpoint is durable" in capsys.readouterr().err


def test_an_interrupt_in_a_hook_reaches_the_program_and_the_commit_stays(repo):
    def interrupted(event):
        raise KeyboardInterrupt

    repo.on_commit(interrupted)
    with pytest.raises(KeyboardInterrupt):
        repo.commit(STATE, step=5)
    assert repo.resolve("main").step == 5
    with pytest.raises(KeyboardInterrupt):  # the next event is not kept back
        repo.commit(STATE, step=6)


def test_a_commit_by_a_hook_calls_none(repo):
    events = told_by(repo)
    repo.on_commit(lambda event: repo.commit(STATE, branch="copy"))
    other = ckptstore.open(repo.url)
    repo.on_commit(lambda event: other.commit(STATE, branch="other"))
    others = told_by(other)
    repo.commit(STATE)
    assert [event.branch for event in events] == ["main"]
    assert others == []


@pytest.mark.concurrency
def test_hooks_see_one_event_at_a_time(repo):
    inside, most = [], []

    def hook(event):
        inside.append(event)
        most.append(len(inside))
        repo.log("main")
        inside.pop()

    repo.on_commit(hook)
    jobs = [
        threading.Thread(target=lambda n=n: repo.commit(STATE, branch=f"b{n}")) for n in range(4)
    ]
    repo.commit(STATE)
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert most == [1] * 5


@pytest.mark.parametrize("hook", [3, "print", {}, [print, 3]], ids=["3", "str", "dict", "list"])
def test_what_is_no_function_is_refused(repo, hook):
    with pytest.raises(InvalidInputError, match="a function that takes a CommitEvent"):
        repo.on_commit(hook)
    with pytest.raises(InvalidInputError, match="a function that takes a CommitEvent"):
        CheckpointManager(repo, on_commit=hook or 0)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_manager_calls_its_hooks_for_its_own_saves_in_order(repo, is_async):
    own, second, all_of_the_handle = [], [], told_by(repo)
    with CheckpointManager(
        repo,
        on_commit=[own.append, second.append],
        async_save=is_async,
        mirror=f"{repo.url}-mirror",
        rng=False,
        model=torch.nn.Linear(1, 1),
    ) as manager:
        for step in range(1, 4):
            manager.save(step, metrics={"loss": 1 / step}, tag=f"s{step}")
        manager.wait()
        repo.commit(STATE, branch="by-hand", step=9)
    assert [event.step for event in own] == [1, 2, 3]
    assert own == second
    assert [event.step for event in all_of_the_handle] == [1, 2, 3, 9]
    assert {event.mirror for event in own} == {f"{repo.url}-mirror"}
    assert all_of_the_handle[0].document() == own[0].document()


def test_a_hook_is_called_though_the_tag_of_its_save_is_refused(repo):
    repo.commit(STATE, branch="taken")
    events = []
    manager = CheckpointManager(
        repo, on_commit=events.append, async_save=False, model=torch.nn.Linear(1, 1)
    )
    with pytest.raises(ckptstore.ConflictError):
        manager.save(1, tag="taken")
    assert [event.step for event in events] == [1]
    manager.close()


def save_twice(repo, hook):
    with CheckpointManager(repo, on_commit=hook, model=torch.nn.Linear(1, 1)) as manager:
        manager.save(1)
        manager.save(2)


def test_a_save_in_the_background_outlives_a_hook_that_fails(repo):
    with pytest.warns(RuntimeWarning, match="partial failed"):
        save_twice(repo, partial(broken, []))
    assert [found.step for found in repo.log()] == [2, 1]


PLUGIN = """
print("imported", flush=True)
def told(event):
    print("told", event.step, flush=True)
def fails(event):
    raise OSError("no server")
"""
POINTS = """[ckptstore.on_commit]
a = tracker:told
b = tracker:fails
c = no_such_module:hook
"""
PROGRAM = """
import sys, warnings
import ckptstore, numpy
warnings.simplefilter("always")
repo = ckptstore.init("memory://")
print("opened")
repo.commit({"w": numpy.ones(2)}, step=1)
repo.commit({"w": numpy.zeros(2)}, step=2)
repo.diff("main", {"w": numpy.ones(2)})
"""


def test_entry_points_are_loaded_with_the_first_commit(tmp_path):
    (tmp_path / "tracker.py").write_text(PLUGIN)
    info = tmp_path / "tracker-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tracker\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PATH": ""},
        check=True,
    )
    assert done.stdout.split("\n") == ["opened", "imported", "told 1", "told 2", ""]
    assert done.stderr.count("RuntimeWarning") == 2, "one for each hook that fails"
    assert "b (tracker:fails) failed (OSError: no server)" in done.stderr
    assert "c (no_such_module:hook) failed (ModuleNotFoundError" in done.stderr


def test_importing_ckptstore_looks_for_no_entry_points():
    code = "import ckptstore, sys; print('ckptstore.commit_hooks' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["False"]
