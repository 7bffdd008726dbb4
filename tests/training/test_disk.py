"""A run warns at its start if it has too little room, and a save on a full disk has ways on."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import Repository, StorageError
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.retention import KeepBest, MaxToKeep
from ckptstore.storage import LocalStorage, MemoryStorage
from ckptstore.training import CheckpointManager, disk
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from pathlib import Path


class Small(MemoryStorage):
    """A storage that is full once it holds `room` bytes of objects."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def stage(self, data: Any, **options: Any) -> Any:
        used = sum(item.size for item in self.list("objects/"))
        if used + memoryview(data).nbytes > self.room:
            cause = OSError(errno.ENOSPC, "No space left on device")
            raise StorageError("objects in it could not be used: No space left.") from cause
        return super().stage(data, **options)


def small(room: int) -> tuple[Small, Repository]:
    storage = Small(room)
    marker = Marker(store="0" * 32, chunk_bytes=1 << 20)
    storage.create(MARKER_KEY, marker.encode())
    return storage, Repository(storage, marker)


class Arrays:
    """100 kB that change with each step."""

    number = 0

    def state_dict(self) -> dict[str, Any]:
        self.number += 1
        return {"a": np.random.default_rng(self.number).integers(0, 255, 100_000, np.uint8)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def manager(repo: Repository, **options: Any) -> CheckpointManager:
    return CheckpointManager(repo, rng=False, async_save=False, state=Arrays(), **options)


def full(**options: Any) -> tuple[Small, CheckpointManager]:
    """A run on a disk with room for 3 checkpoints, which are there; the branch keeps 1."""
    storage, repo = small(350_000)
    run = manager(repo, **options)
    for step in (1, 2, 3):
        run.save(step)
    repo.set_retention(MaxToKeep(1))
    run._gc._every = 100  # the policy came between two gcs
    return storage, run


def test_the_error_says_what_a_gc_would_free() -> None:
    _, run = full()
    with pytest.raises(StorageError) as error:
        run.save(4)
    assert error.value.is_full
    assert "Nothing was saved: objects in it could not be used" in str(error.value)
    assert "would free 200" in str(error.value)
    assert "2 checkpoints would expire: run it, or pass on_full='gc'." in str(error.value)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1, 2, 3]


def test_the_error_says_that_a_gc_would_free_nothing() -> None:
    _, run = full()
    run.repository.set_retention(None)
    with pytest.raises(StorageError, match=r"would free nothing: the saved policies keep every"):
        run.save(4)


def test_a_gc_makes_room_once(caplog: pytest.LogCaptureFixture) -> None:
    storage, run = full(on_full="gc")
    assert run.save(4)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [3, 4]
    assert "A gc freed 200" in caplog.messages[0]
    storage.room = 0
    with pytest.raises(StorageError, match="Nothing was saved"):
        run.save(5)
    assert len(caplog.messages) == 2
    storage.room = 10**6
    assert run.save(5)


def test_no_gc_makes_room_at_the_cost_of_another_run() -> None:
    _, run = full(on_full="gc")
    run._place.keeps_all = True
    with pytest.raises(StorageError, match="Nothing was saved"):
        run.save(4)
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1, 2, 3]


def test_a_save_waits_for_room(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage, run = full(on_full="wait")
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            storage.room *= 2
        return False

    monkeypatch.setattr(disk.ending, "wait", wait)
    with caplog.at_level(logging.WARNING):
        assert run.save(4)
    assert waits == [disk.POLL_SECONDS] * 3
    assert len(caplog.messages) == 1
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1, 2, 3, 4]


def test_it_waits_no_longer_when_it_was_asked_to_end() -> None:
    _, run = full(on_full="wait")
    run._preemption.is_asked = True
    with pytest.raises(StorageError, match="Nothing was saved"):
        run.save(4)


@pytest.mark.concurrency
def test_a_program_that_ends_does_not_wait_for_room() -> None:
    script = (
        "from tests.training.test_disk import *\n"
        "_, run = full()\n"
        "run._disk._on_full = 'wait'\n"
        "run._background.start(lambda: run.save(4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    assert "The save waits until there is room." in done.stderr
    assert "StorageError: Nothing was saved" in done.stderr


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: free)


@pytest.mark.parametrize(
    ("options", "free", "text"),
    [
        ({}, 3 * 40_000 - 1, r"room for 120 kB, .* needs 120 kB or more, for 1 checkpoint of"),
        ({"max_to_keep": 3}, 4 * 120_000 - 1, "needs 480 kB or more, for 4 checkpoints of 120"),
        ({"policy": MaxToKeep(3) | KeepBest("loss")}, 599_999, "for 5 checkpoints"),
        ({"max_to_keep": 3}, 4 * 120_000, ""),
    ],
)
def test_a_run_with_too_little_room_is_warned_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, free: int, text: str
) -> None:
    """AdamW will take twice the room of the parameters. That is known before its first step."""
    with_free(monkeypatch, free)
    model = torch.nn.Linear(100, 100, bias=False)
    parts = {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}
    if text:
        with pytest.warns(UserWarning, match=text):
            CheckpointManager(tmp_path / "store", **parts, **options)
    else:
        CheckpointManager(tmp_path / "store", **parts, **options)


def test_what_is_there_already_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with manager(repo, max_to_keep=3) as run:
        for step in range(1, 4):
            run.save(step)
    with_free(monkeypatch, 101_000)  # for the one that comes before another goes
    with manager(repo, max_to_keep=3) as run:
        assert run.restore().step == 3
    with_free(monkeypatch, 99_000)
    with pytest.warns(UserWarning, match="for 1 checkpoint of 100"):
        manager(repo, max_to_keep=3).close()
