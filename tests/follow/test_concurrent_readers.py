"""One process trains and runs gc; another follows it while threads read."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import ckptstore
from ckptstore.arrays import frameworks as arrays
from ckptstore.follow import rwlock
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS = 40

pytestmark = pytest.mark.concurrency

TRAINER = """
import sys, torch
from torch import nn
import ckptstore
from ckptstore.retention import MaxToKeep

repo = ckptstore.open(sys.argv[1])
model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50), nn.Linear(50, 4))
for step in range(1, int(sys.argv[2]) + 1):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
    repo.commit({"model": model.state_dict()}, step=step)
    repo.gc(MaxToKeep(2), grace=0)
"""


def net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 50), nn.Linear(50, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def values(model: nn.Module) -> set[float]:
    """The least and the greatest number of each array: one number, where all is of one step."""
    arrays = list(model.state_dict().values())
    return {float(end) for array in arrays for end in (array.min(), array.max())}


def serve(store: Path) -> tuple[list[int], list[set[float]]]:
    """Follow a trainer to its end; the steps served and every mixture that a reader saw."""
    repo = ckptstore.init(store, chunk_size=64 << 10)
    model, follower = net(), repo.follow(poll_seconds=0.002)
    done, mixtures = threading.Event(), []

    def read() -> None:
        while not done.is_set():
            with follower.reading():
                seen = values(model)
            if len(seen) > 1:
                mixtures.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    process = subprocess.Popen([sys.executable, "-c", TRAINER, str(store), str(STEPS)], cwd=ROOT)
    served = []
    try:
        while not served or served[-1] < STEPS:
            assert process.poll() in (None, 0)
            assert follower.wait(timeout=60) is not None
            update = follower.update(model)
            assert update is not None
            served.append(update.checkpoint.step or 0)
            assert values(model) == {float(served[-1])}
    finally:
        done.set()
        for reader in readers:
            reader.join(30)
        process.wait(60)
    return served, mixtures


def test_whoever_reads_sees_one_whole_step(tmp_path: Path) -> None:
    served, mixtures = serve(tmp_path / "store")
    assert served == sorted(served)
    assert served[-1] == STEPS
    assert mixtures == []


def test_the_readers_would_notice_an_update_that_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def at_once(_: Any) -> Iterator[None]:
        yield

    real = arrays.copy_chunk

    def slowly(*args: Any) -> None:
        real(*args)
        threading.Event().wait(0.002)

    monkeypatch.setattr(rwlock.RWLock, "writing", at_once)
    monkeypatch.setattr(arrays, "copy_chunk", slowly)
    _, mixtures = serve(tmp_path / "store")
    assert mixtures
