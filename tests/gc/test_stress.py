"""Processes that commit expiring states, read and collect, with differing clocks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptstore
from tests.helpers import gc_worker
from tests.helpers.root import ROOT

COMMITTERS = 4

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize("clocks", [(0, 0, 0, 0, 0, 0, 0), (-48, 720, 0, -48, 720, -48, 720)])
def test_no_acknowledged_commit_is_lost_beside_collectors_without_grace(
    clocks: tuple[int, ...], scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    url, stop = scratch / "store", scratch / "stop"
    ckptstore.init(url, chunk_size=64 << 10).commit(gc_worker.state(0))
    roles = ["commit"] * COMMITTERS + ["read", "gc", "gc"]
    running = [
        subprocess.Popen(
            [sys.executable, gc_worker.__file__, role, url, stop, str(seed), str(hours)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed, (role, hours) in enumerate(zip(roles, clocks, strict=True))
    ]
    said = [process.communicate(timeout=200) for process in running[:COMMITTERS]]
    stop.touch()
    said += [process.communicate(timeout=200) for process in running[COMMITTERS:]]
    for role, process, (_, error) in zip(roles, running, said, strict=True):
        assert process.returncode == 0, f"{role}: {error}"
    repo = ckptstore.open(url)
    assert repo.verify().ok
    for seed in range(COMMITTERS):
        acks = [line.split() for line in said[seed][0].splitlines()]
        assert len(acks) == gc_worker.COMMITS
        head, *older = repo.log(f"branch-{seed}")
        assert (head.id, head.expired) == (acks[-1][0], False)
        assert [c.id for c in older][: len(acks) - 1] == [id for id, _ in acks[-2::-1]]
        found = repo.checkout(head.id)
        assert found["number"] == int(acks[-1][1])
        assert gc_worker.is_right(found)
    read, *expired = (int(said[number][0]) for number in range(COMMITTERS, len(roles)))
    assert read > 0
    assert sum(expired) > COMMITTERS * gc_worker.COMMITS / 2
    assert all(c.expired for seed in range(COMMITTERS) for c in repo.log(f"branch-{seed}")[1:])
    record_property("commits beside gc", COMMITTERS * gc_worker.COMMITS)
