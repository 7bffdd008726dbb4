"""Saves in flight when a training forks, when threads cannot be started, and when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

import ckptstore
from ckptstore.training import CallbackList, CheckpointManager, ProgbarLogger, TensorBoard
from ckptstore.training.background import Background
from tests.helpers.children import DEADLINE_SECONDS, HeldStorage, do_in_child, exit_code, fork
from tests.helpers.root import ROOT

pytestmark = pytest.mark.concurrency


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldStorage]:
    """A repository whose writes of this process wait."""
    ckptstore.init(tmp_path / "store")
    storage = HeldStorage(tmp_path / "store")
    yield storage
    storage.go_on.set()


@pytest.fixture
def manager(held: HeldStorage) -> Iterator[CheckpointManager]:
    """A manager with a save in flight, which waits until `held.go_on` is set."""
    model = torch.nn.Linear(300, 300)
    made = CheckpointManager(held.repository(), model=model, save_on_signal=True)
    made.save(1)
    held.has_begun.wait()
    yield made
    held.go_on.set()
    made.close()


def steps(held: HeldStorage) -> set[int | None]:
    return {checkpoint.step for checkpoint in held.repository().log()}


def test_a_child_has_no_job_and_can_start_one() -> None:
    background, go_on = Background(), threading.Event()
    background.start(go_on.wait)

    def work() -> None:
        assert not background.is_busy
        background.wait()
        done = threading.Event()
        background.start(done.set)
        background.wait()
        assert done.is_set()

    do_in_child(work)
    assert background.is_busy
    go_on.set()
    background.wait()


def test_the_error_of_a_job_is_raised_in_the_parent_only() -> None:
    background = Background()
    background.start(lambda: 1 // 0)
    while background.is_busy:
        pass
    do_in_child(background.raise_error)
    with pytest.raises(ZeroDivisionError):
        background.raise_error()


def test_a_child_ends_while_a_save_is_in_flight(manager: CheckpointManager) -> None:
    child = get_context("fork").Process(target=signal.alarm, args=(DEADLINE_SECONDS,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_child_that_exits_as_any_program_does_ends_while_a_save_is_in_flight(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(EXITS)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "store"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "child ended with 5\n", "")
    assert [checkpoint.step for checkpoint in ckptstore.open(tmp_path / "store").log()] == [1]


EXITS = """
import os, signal, sys, torch, ckptstore
from ckptstore.training import CheckpointManager
from tests.helpers.children import HeldStorage, exit_code

ckptstore.init(sys.argv[1])
held = HeldStorage(sys.argv[1])
manager = CheckpointManager(held.repository(), model=torch.nn.Linear(300, 300))
manager.save(1)
held.has_begun.wait()
pid = os.fork()
if not pid:
    signal.alarm(30)
    with manager:
        sys.exit(5)
print("child ended with", exit_code(pid))
held.go_on.set()
"""


def test_data_loader_workers_end_by_themselves_while_a_save_is_in_flight(
    manager: CheckpointManager,
) -> None:
    loader = DataLoader(torch.arange(8), num_workers=1, multiprocessing_context="fork")
    epoch: Any = iter(loader)
    assert len(list(epoch)) == 8
    assert [worker.exitcode for worker in epoch._workers] == [0]  # else torch terminates them


def test_a_child_saves_while_a_save_of_its_parent_is_in_flight(
    manager: CheckpointManager, held: HeldStorage
) -> None:
    def save() -> None:
        manager.branch = "child"  # on the same one, the second of the two would be refused
        assert manager.save(2, metrics={"loss": 0.5})
        made = manager.wait()
        assert made is not None
        assert made.step == 2

    do_in_child(save)
    assert steps(held) == {2}
    held.go_on.set()
    manager.wait()
    assert steps(held) == {1, 2}
    assert held.repository().verify().ok


def test_a_child_copies_its_state_though_torch_had_threads_in_the_parent(
    manager: CheckpointManager, held: HeldStorage
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        (torch.zeros(1000, 1000) + 1).sum()
        do_in_child(lambda: manager.save(2))
    finally:
        torch.set_num_threads(before)


def test_sigterm_ends_the_children_of_a_training_that_saves_on_it(
    manager: CheckpointManager,
) -> None:
    reader, writer = os.pipe()

    def work() -> None:
        os.write(writer, b"!")
        signal.pause()

    child = fork(work)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    assert exit_code(child) == -signal.SIGTERM
    assert not manager.preempted
    os.close(reader)
    os.close(writer)


def test_a_save_is_made_by_the_caller_where_no_thread_can_be_started(
    held: HeldStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.go_on.set()
    manager = CheckpointManager(held.repository(), model=torch.nn.Linear(3, 3))

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        manager.save(1)
        assert steps(held) == {1}
    manager.save(2)
    manager.close()
    assert [checkpoint.step for checkpoint in held.repository().log()] == [2, 1]


def test_callbacks_leave_their_threads_to_the_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = CallbackList([TensorBoard(tmp_path), ProgbarLogger(verbose=1)], epochs=2)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    streams = sys.stdout, sys.stderr
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_epoch_end(0, {"loss": 0.5})
    callbacks.on_epoch_begin(1)
    assert (sys.stdout, sys.stderr) != streams

    def end() -> None:
        assert (sys.stdout, sys.stderr) == streams
        monkeypatch.setattr(SummaryWriter, "close", None)  # it waits for its thread
        callbacks.on_train_end()

    do_in_child(end)
    callbacks.on_train_end()
    assert (sys.stdout, sys.stderr) == streams
