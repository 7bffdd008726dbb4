"""Processes that commit expiring states, read and collect on an object store with faults."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import ckptstore
from ckptstore.testing.s3_server import Request, S3Server
from tests.helpers import far_worker, gc_worker
from tests.helpers.crash.parts import some
from tests.helpers.root import ROOT

COMMITTERS = 4
FAULTS = ("reset", "dropped", "conflict", "throttled", "error", "unavailable", "duplicated")
SHARE = 0.02  # of the requests that fail
SECONDS_MAX = 500.0

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("one_thread")]


@pytest.mark.parametrize(("commits", "kills"), some([(50, 2)], [(50, 2), (250, 12)]))
def test_no_acknowledged_commit_is_lost_beside_collectors_that_die_and_a_server_that_fails(
    commits: int,
    kills: int,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    rng = random.Random(commits)

    def fault(request: Request) -> str | None:
        return rng.choice(FAULTS) if rng.random() < SHARE else None

    stop = scratch / "stop"
    with S3Server(signed_seconds=far_worker.SIGNED_SECONDS) as server:
        url = server.url("store")
        ckptstore.init(url, chunk_size=64 << 10).commit(gc_worker.state(0))
        server.fault = fault

        def start(role: str, seed: int) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, far_worker.__file__, role, url, stop, str(seed), str(commits)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )

        committers = [start("commit", seed) for seed in range(COMMITTERS)]
        others = [start(role, seed) for seed, role in enumerate(["read", "gc", "gc"])]
        for number in range(kills):
            dying = start("dies", 100 + number)
            while dying.poll() is None and any(one.poll() is None for one in committers):
                with suppress(subprocess.TimeoutExpired):
                    dying.wait(0.2)
            dying.kill()
            dying.communicate()
        said = [committer.communicate(timeout=SECONDS_MAX) for committer in committers]
        stop.touch()
        rest = [other.communicate(timeout=SECONDS_MAX) for other in others]
        server.fault = lambda request: None
        for process, (_, error) in zip([*committers, *others], [*said, *rest], strict=True):
            assert process.returncode == 0, error
        repo = far_worker.opened(url)
        repo.gc(grace=0)
        report = repo.verify()
        assert report.ok, report.problems
        expired = 0
        for seed, (acks, _) in enumerate(said):
            lines = [line.split() for line in acks.splitlines()]
            assert len(lines) == commits
            log = [item.id for item in repo.log(f"branch-{seed}")]
            expired += sum(item.expired for item in repo.log(f"branch-{seed}"))
            assert log[:commits] == [id for id, _ in reversed(lines)]
            found = repo.checkout(f"branch-{seed}")
            assert found["number"] == int(lines[-1][1])
            assert gc_worker.is_right(found)
        assert int(rest[0][0]) > 0
        assert expired > commits
    record_property("commits beside gc", COMMITTERS * commits)
    record_property("kills", kills)
