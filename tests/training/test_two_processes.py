"""Of two processes with a manager for one branch, the second is refused at its start."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import ckptstore
from ckptstore import ConflictError
from ckptstore.training import CheckpointManager
from tests.helpers.children import do_in_child
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OTHER = """
import sys, torch
from ckptstore.training import CheckpointManager
with CheckpointManager(sys.argv[1], branch="run", model=torch.nn.Linear(2, 2)) as manager:
    manager.save(1)
    manager.wait()
    print("saved", flush=True)
    sys.stdin.read()
print("ended", flush=True)
sys.stdin.read()
"""


def manager(store: Any, **options: Any) -> CheckpointManager:
    return CheckpointManager(store, rng=False, model=torch.nn.Linear(2, 2), **options)


def held_files(store: Path) -> list[str]:
    return [name for name in os.listdir(store / "tmp") if name.startswith("held-")]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process whose manager has saved to the branch "run"."""
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, str(tmp_path / "store")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        yield process
        process.kill()


@pytest.mark.concurrency
def test_the_second_is_refused_until_the_first_ends(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    store = tmp_path / "store"
    with pytest.raises(ConflictError, match=rf"'run'.*held by process {other.pid} of.*'run-2'"):
        manager(store, branch="run")
    assert (
        ckptstore.open(store).holder("run") == f"process {other.pid} of user root" or os.geteuid()
    )
    with manager(store) as main:  # another branch
        main.restore("run")
        main.save(2)
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert ckptstore.open(store).holder("run") is None
    assert len(held_files(store)) == 1
    with manager(store, branch="run") as next_run:
        assert next_run.restore_or_initialize() == 1
        next_run.save(2)
    assert held_files(store) == []


@pytest.mark.concurrency
def test_a_closed_manager_excludes_nobody_and_a_save_holds_the_branch_again(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    store = tmp_path / "store"
    assert other.stdin is not None
    assert other.stdout is not None
    os.kill(other.pid, signal.SIGSTOP)  # whether it runs or not
    with pytest.raises(ConflictError):
        manager(store, branch="run")
    os.kill(other.pid, signal.SIGCONT)
    other.communicate("")
    with manager(store, branch="run") as run:
        run.restore()
        run.save(2)
    assert held_files(store) == []
    run.save(3)
    assert len(held_files(store)) == 1
    run.close()


def test_a_manager_that_nobody_holds_any_more_releases_its_branch(tmp_path: Path) -> None:
    for _ in range(2):  # as a cell of a notebook that is run again
        run = manager(tmp_path / "store")
        run.restore_or_initialize()
        run.save(1 if run.latest is None else 2)
        run.wait()
        assert len(held_files(tmp_path / "store")) == 1
    del run
    gc.collect()
    assert held_files(tmp_path / "store") == []


@pytest.mark.concurrency
def test_a_child_saves_with_the_manager_of_its_parent_and_does_not_keep_its_branch(
    tmp_path: Path,
) -> None:
    run = manager(tmp_path / "store", async_save=False)
    run.save(1)
    do_in_child(lambda: run.save(2))
    assert len(held_files(tmp_path / "store")) == 1
    with pytest.raises(ConflictError, match="another writer"):
        run.save(3)
    assert ckptstore.open(tmp_path / "store").holder("main")


def test_only_the_first_of_a_group_of_processes_holds_the_branch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    manager(tmp_path / "store")
    assert held_files(tmp_path / "store") == []
    monkeypatch.setenv("RANK", "0")
    first = manager(tmp_path / "store")
    assert len(held_files(tmp_path / "store")) == 1
    first.close()


def test_a_repository_in_memory_is_held_by_nobody() -> None:
    run = manager("memory://")
    assert run.repository.holder("main") is None
