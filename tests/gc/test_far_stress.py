"""Processes that commit expiring states, read and collect on an object store with faults.

On our own server, and on those of others behind a proxy that injects the same faults, as they have
none of their own, and refuses old signatures, which they do not look at.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ckptstore
from ckptstore.testing.s3_server import Request, S3Server
from tests.helpers import far_worker, gc_worker
from tests.helpers.crash.parts import some
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.forks import Forks, Program
from tests.helpers.judges import AWS, Judge
from tests.helpers.root import ROOT

COMMITTERS = 4
FAULTS = (
    *("reset", "dropped", "truncated", "conflict", "throttled", "error", "unavailable"),
    "duplicated",
)
SHARE = 0.02  # of the requests that fail
SECONDS_MAX = 3000.0

pytestmark = [pytest.mark.concurrency, pytest.mark.timeout(SECONDS_MAX)]


@pytest.mark.parametrize(
    ("server", "commits", "kills"),
    some(
        [("ours", 50, 2), ("ministack", 250, 4)],
        [
            ("ours", 50, 2),
            ("ministack", 250, 4),
            ("ours", 250, 12),
            ("ours", 1500, 60),
            ("ministack", 1000, 40),
            ("moto", 250, 12),
        ],
    ),
)
def test_no_acknowledged_commit_is_lost_beside_kills_and_a_server_that_fails(
    server: str,
    commits: int,
    kills: int,
    started: Callable[[str], Judge],
    forks: Forks,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rng = random.Random(commits)

    def fault(request: Request) -> str | None:
        return rng.choice(FAULTS) if rng.random() < SHARE else None

    stop = scratch / "stop"
    with _serving(server, started) as (proxy, url):
        ckptstore.init(url, chunk_size=64 << 10).commit(gc_worker.state(0))
        proxy.fault = fault

        def start(role: str, seed: int) -> Program:
            return forks.start(far_worker.__file__, role, url, stop, seed, commits)

        committers = [start("commit", seed) for seed in range(COMMITTERS)]
        others = [start(role, seed) for seed, role in enumerate(["read", "gc", "gc"])]
        dead: dict[int, list[str]] = {}
        for number in range(kills):
            seed = 100 + number
            dying = start(("gc dies", "commit dies")[number % 2], seed)
            while dying.poll() is None and any(one.poll() is None for one in committers):
                time.sleep(0.05)
            dying.send_signal(9)
            acks, error = dying.communicate(SECONDS_MAX)
            assert dying.returncode == -9, error
            dead[seed] = _acknowledged(acks)
        said = [committer.communicate(SECONDS_MAX) for committer in committers]
        stop.touch()
        rest = [other.communicate(SECONDS_MAX) for other in others]
        proxy.fault = lambda request: None
        for process, (_, error) in zip([*committers, *others], [*said, *rest], strict=True):
            assert process.returncode == 0, error
        repo = far_worker.opened(url)
        repo.gc(grace=0)
        report = repo.verify()
        assert report.ok, report.problems
        acknowledged = {seed: _acknowledged(acks) for seed, (acks, _) in enumerate(said)}
        assert all(len(lines) == commits for lines in acknowledged.values())
        expired = 0
        for seed, lines in (acknowledged | dead).items():
            if not lines:
                continue
            log = list(repo.log(f"branch-{seed}"))
            ids = [item.id for item in reversed(log)]
            made = [line.split()[0] for line in lines]
            assert [id for id in ids if id in set(made)] == made
            assert seed >= COMMITTERS or ids[-commits:] == made
            expired += sum(item.expired for item in log)
            numbers = {id: int(number) for id, number in map(str.split, lines)}
            for item in log:
                if not item.expired:
                    found = repo.checkout(item.id)
                    assert gc_worker.is_right(found)
                    assert found["number"] == numbers.get(item.id, found["number"])
        assert int(rest[0][0]) > 0
        assert expired > commits
    record_property("commits beside gc", COMMITTERS * commits)
    record_property("kills", kills)


@contextmanager
def _serving(server: str, started: Callable[[str], Judge]) -> Iterator[tuple[S3Server, str]]:
    """A server with faults, and the URL of a repository on it."""
    if server == "ours":
        with S3Server(signed_seconds=far_worker.SIGNED_SECONDS) as ours:
            yield ours, ours.url("store")
    else:
        judge = started(server)
        with FaultProxy(judge.port, signed_seconds=far_worker.SIGNED_SECONDS) as proxy:
            yield proxy, judge.url(f"stress-{time.time_ns()}", port=proxy.port)


def _acknowledged(said: str) -> list[str]:
    """The whole lines of a committer, as it may have died while it wrote one."""
    return [line.rstrip("\n") for line in said.splitlines(keepends=True) if line.endswith("\n")]
