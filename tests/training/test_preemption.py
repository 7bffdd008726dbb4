"""Signals that ask a training to save: who hears them, what they do, and what stays as it was."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptstore
from ckptstore.errors import InvalidInputError
from ckptstore.training import BackupAndRestore, CallbackList, CheckpointManager, ModelCheckpoint
from ckptstore.training import preemption as module
from tests.helpers.root import ROOT

pytestmark = pytest.mark.concurrency

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
BOTH = {"SIGTERM": "end", "SIGUSR1": "continue"}


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """After each test the handlers are those from before."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, inherited)
    assert after == before


@pytest.fixture
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any two signals count as two."""
    monkeypatch.setattr(module, "SAME_SECONDS", -1)


def manager(store: Any = "memory://", **options: Any) -> CheckpointManager:
    options.setdefault("save_on_signal", True)
    options.setdefault("save_interval_steps", 1000)
    return CheckpointManager(store, model=torch.nn.Linear(2, 2), **options)


def steps(found: CheckpointManager) -> list[int | None]:
    return [checkpoint.step for checkpoint in found.checkpoints]


@pytest.mark.parametrize(
    ("choice", "numbers"),
    [
        (True, {signal.SIGTERM}),
        (False, set()),
        ("SIGUSR1", {signal.SIGUSR1}),
        (signal.SIGUSR1, {signal.SIGUSR1}),
        (int(signal.SIGHUP), {signal.SIGHUP}),
        (("SIGTERM", signal.SIGINT), {signal.SIGTERM, signal.SIGINT}),
        (BOTH, {signal.SIGTERM, signal.SIGUSR1}),
    ],
    ids=str,
)
def test_exactly_the_chosen_signals_are_listened_for(choice: Any, numbers: set[int]) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with manager(save_on_signal=choice):
        changed = {number for number in SIGNALS if signal.getsignal(number) is not before[number]}
    assert changed == numbers


@pytest.mark.parametrize(
    "choice",
    ["SIGKILL", "TERM", signal.SIGSEGV, 0, 1000, 1.5, None, ("SIGTERM", "x"), {"SIGTERM": "stop"}],
    ids=str,
)
def test_what_is_no_signal_to_wait_for_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidInputError, match="save_on_signal"):
        manager(save_on_signal=choice)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_and_ends_with_its_own_code(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = signal.Signals[name]
    with manager(save_on_signal=("SIGTERM", "SIGINT", "SIGUSR1")) as found:
        assert not found.save(1)
        signal.raise_signal(number)
        assert found.preempted
        with pytest.raises(SystemExit) as ended:
            found.save(2)
    assert (ended.value.code, steps(found)) == (128 + number, [2])
    assert f"{name} received; saved step 2 to main." in capsys.readouterr().err


def test_a_signal_can_ask_for_a_save_alone() -> None:
    with manager(save_on_signal=BOTH) as found:
        assert not found.save(1)
        signal.raise_signal(signal.SIGUSR1)
        assert (found.preempted, found.save_requested, found.should_save(2)) == (False, True, True)
        assert found.save(2)
        assert (found.save_requested, found.save(3)) == (False, False)
    assert steps(found) == [2]


def test_a_save_alone_is_made_even_while_another_is_in_flight() -> None:
    with manager(save_on_signal=BOTH, when_busy="skip") as found:
        assert found.save(1, force=True)
        signal.raise_signal(signal.SIGUSR1)
        assert found.save(2)
    assert steps(found) == [1, 2]


@pytest.mark.parametrize("kind", [ModelCheckpoint, BackupAndRestore])
def test_callbacks_save_for_either_kind_of_signal(kind: Any) -> None:
    found = manager(save_on_signal=BOTH)
    callbacks = CallbackList([kind(found)], model=found.tracked["model"], epochs=1)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    callbacks.on_train_batch_end(0)
    signal.raise_signal(signal.SIGUSR1)
    callbacks.on_train_batch_end(1)
    callbacks.on_train_batch_end(2)
    signal.raise_signal(signal.SIGTERM)
    with found, pytest.raises(SystemExit):
        callbacks.on_train_batch_end(3)
    assert steps(found) == [2, 4]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_handlers_are_put_back_in_any_order_of_closing(order: tuple[int, ...]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    managers = [manager() for _ in range(3)]
    for number in order[:-1]:
        managers[number].close()
        assert signal.getsignal(signal.SIGTERM) is not before
    managers[order[-1]].close()
    managers[0].close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_reaches_all_managers_and_each_saves_before_the_program_ends() -> None:
    with manager() as first, manager() as second:
        signal.raise_signal(signal.SIGTERM)
        assert first.save(3)
        with pytest.raises(SystemExit):
            second.save(3)
    assert (steps(first), steps(second)) == ([3], [3])


def test_a_manager_that_saves_no_more_does_not_keep_the_program_from_ending() -> None:
    with manager() as first, manager() as idle:
        signal.raise_signal(signal.SIGTERM)
        assert first.save(3)
        with pytest.raises(SystemExit):
            first.save(4)
    assert (steps(first), steps(idle)) == ([3], [])


def test_a_manager_that_nobody_holds_listens_no_more() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    before = signal.getsignal(signal.SIGTERM)
    found = manager()
    del found
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    manager().close()
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_a_handler_that_came_on_top_stays_and_may_call_ours() -> None:
    heard: list[str] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append("before"))
    found = manager()
    ours: Any = signal.getsignal(signal.SIGTERM)

    def top(number: int, frame: Any) -> None:
        heard.append("top")
        ours(number, frame)

    signal.signal(signal.SIGTERM, top)
    signal.raise_signal(signal.SIGTERM)
    assert (heard, found.preempted) == (["top"], True)
    found.close()
    assert signal.getsignal(signal.SIGTERM) is top
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["top", "top", "before"]
    with manager() as other:
        signal.raise_signal(signal.SIGTERM)
        assert other.preempted
        assert len(heard) == 3
    assert signal.getsignal(signal.SIGTERM) is top
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.usefixtures("_no_wait")
def test_a_second_signal_does_what_it_would_have_done_without_a_manager() -> None:
    with manager(save_on_signal=("SIGTERM", "SIGINT")):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_same_signal_passed_on_at_once_is_no_second_one() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with manager() as found:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (heard, found.preempted) == ([], True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_signals_that_save_alone_may_come_often() -> None:
    with manager(save_on_signal=BOTH) as found:
        for step in range(1, 4):
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR1)
            assert found.save(step)
    assert steps(found) == [1, 2, 3]


def child_handlers(connection: Any) -> None:
    connection.send([signal.getsignal(number) for number in SIGNALS[:4]])


def test_a_forked_child_has_no_handler_of_ours() -> None:
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    hang_up = signal.getsignal(signal.SIGHUP)  # ignored under nohup
    with manager(save_on_signal={**BOTH, "SIGINT": "end"}) as found:
        signal.raise_signal(signal.SIGTERM)
        child = context.Process(target=child_handlers, args=(theirs,))
        child.start()
        told = mine.recv()
        child.join()
        assert found.preempted
    assert told == [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, hang_up]


def test_a_child_that_is_ended_right_after_its_fork_ends() -> None:
    """The signal may come before the child has its own handlers."""
    context = multiprocessing.get_context("fork")
    with manager():
        for _ in range(20):
            child = context.Process(target=time.sleep, args=(60,))
            child.start()
            child.terminate()
            child.join(10)
            code = child.exitcode
            child.kill()
            assert code == -signal.SIGTERM


def test_the_blocked_signals_of_a_thread_are_those_from_before_a_fork() -> None:
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def tell() -> None:
        theirs.send(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGWINCH,))
    try:
        with manager():
            child = context.Process(target=tell)
            child.start()
            assert mine.recv() == before | {signal.SIGWINCH}
            child.join()
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before | {signal.SIGWINCH}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class EndedLoader:
    """Batches of a loader whose workers are ended, with this process, by one signal."""

    def __iter__(self) -> Iterator[int]:
        yield from range(2)
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly")


def run_plain(found: CheckpointManager) -> None:
    with found:
        for step, _ in enumerate(EndedLoader(), start=1):
            found.save(step, epoch=5)


def test_what_a_loop_had_done_is_saved_when_its_loader_has_ended() -> None:
    found = manager()
    with pytest.raises(SystemExit) as ended:
        run_plain(found)
    assert (ended.value.code, steps(found)) == (143, [2])
    other = manager(found.repository, save_on_signal=False)
    other.restore()
    assert other.epoch == 5


def test_what_was_saved_is_not_saved_again_when_the_loader_has_ended() -> None:
    found = manager(save_interval_steps=1)
    with pytest.raises(SystemExit):
        run_plain(found)
    assert steps(found) == [1, 2]


def test_a_loader_that_ends_before_any_save_or_without_a_signal_is_an_error_as_ever() -> None:
    with pytest.raises(RuntimeError, match="exited"), manager():
        list(EndedLoader())
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with pytest.raises(RuntimeError, match="exited"):
        run_plain(manager(save_on_signal="SIGUSR1"))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_callbacks_save_when_the_loader_has_ended() -> None:
    found = manager()
    callbacks = CallbackList([BackupAndRestore(found)], model=found.tracked["model"], epochs=1)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)

    def train() -> None:
        for batch, _ in callbacks.batches(EndedLoader()):
            callbacks.on_train_batch_end(batch)

    with found, pytest.raises(SystemExit):
        train()
    assert steps(found) == [2]


def test_an_error_of_the_loader_waits_for_a_save_only_if_the_signal_is_listened_for() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    heard: list[str] = []

    def loaders(number: int, frame: Any) -> None:
        raise RuntimeError(f"DataLoader worker (pid 7) is killed by signal: {heard[-1]}. ")

    loaders.__module__ = "torch.utils.data._utils.signal_handling"
    signal.signal(signal.SIGCHLD, loaders)
    with manager() as found:
        found.save(1)
        heard.append(signal.strsignal(signal.SIGTERM) or "")
        signal.raise_signal(signal.SIGCHLD)
        heard.append(signal.strsignal(signal.SIGKILL) or "")
        with pytest.raises(RuntimeError, match="killed"):
            signal.raise_signal(signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) is loaders
    signal.signal(signal.SIGCHLD, before)


PROGRAM = """
import sys, time, torch
from torch.utils.data import DataLoader, Dataset
from ckptstore.training import BackupAndRestore, CallbackList, CheckpointManager

class Slow(Dataset):
    def __len__(self):
        return 100_000
    def __getitem__(self, index):
        time.sleep(float(sys.argv[3]))
        return index  # a tensor would pass through a connection that a killed worker resets

def say(step):
    if step == 3:
        print("ready", flush=True)

if __name__ == "__main__":
    torch.set_num_threads(1)
    loader = DataLoader(Slow(), batch_size=2, num_workers=2, collate_fn=list)
    signals = {"SIGTERM": "end", "SIGUSR1": "continue", "SIGINT": "end"}
    with CheckpointManager(
        sys.argv[1], model=torch.nn.Linear(2, 2), save_on_signal=signals, save_interval_steps=10**6
    ) as manager:
        if sys.argv[2] == "callbacks":
            callbacks = CallbackList([BackupAndRestore(manager)], manager=manager)
            callbacks.on_train_begin()
            callbacks.on_epoch_begin(0)
            for batch, _ in callbacks.batches(loader):
                callbacks.on_train_batch_end(batch)
                say(batch + 1)
        for step, _ in enumerate(loader, start=1):
            manager.save(step)
            say(step)
            if sys.argv[2] == "busy" and step == 3:
                time.sleep(60)
"""


def start(folder: Path, loop: str, seconds: float = 0.01) -> subprocess.Popen[str]:
    path = folder / "program.py"
    path.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, str(path), str(folder / "store"), loop, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "number"),
    [
        ("plain", signal.SIGTERM),
        pytest.param("plain", signal.SIGINT, marks=pytest.mark.deep),
        pytest.param("callbacks", signal.SIGTERM, marks=pytest.mark.deep),
    ],
)
def test_a_signal_to_the_whole_group_saves_although_it_ends_the_workers_of_the_loader(
    tmp_path: Path, loop: str, number: signal.Signals
) -> None:
    process = start(tmp_path, loop)
    os.killpg(process.pid, number)
    code, said = end_of(process)
    assert code == 128 + number, said
    (checkpoint,) = ckptstore.open(tmp_path / "store").log()
    assert f"{number.name} received; saved step {checkpoint.step} to main." in said


@pytest.mark.slow
def test_a_save_alone_asked_of_the_whole_group_lets_the_workers_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, "plain")
    repo = ckptstore.open(tmp_path / "store")
    os.killpg(process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 30
    while not repo.branches():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, said = end_of(process)
    assert code == 143, said
    newest, first = repo.log()
    assert newest.step is not None
    assert first.step is not None
    assert newest.step > first.step


@pytest.mark.slow
def test_a_second_signal_ends_the_program_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "busy")
    process.send_signal(signal.SIGTERM)
    time.sleep(module.SAME_SECONDS + 0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, said = end_of(process)
    assert code == -signal.SIGTERM, said
    assert not ckptstore.open(tmp_path / "store").branches()


@pytest.mark.slow
def test_workers_that_end_by_another_signal_are_an_error_as_ever(tmp_path: Path) -> None:
    process = start(tmp_path, "plain")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, said = end_of(process)
    assert code == 1
    assert "DataLoader worker" in said
    assert not ckptstore.open(tmp_path / "store").branches()
