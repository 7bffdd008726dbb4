"""Verify and other readers beside a gc and commits, in every order: no damage is ever reported."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest

import ckptstore
from ckptstore import ExpiredError, NotFoundError, Repository
from ckptstore.retention import MaxToKeep
from ckptstore.verify.run import _Verify
from tests.gc.test_interleavings import (
    World,
    branch_at_the_old,
    collect,
    commit_of_the_deleted_branch,
    commit_partly_the_same,
    commit_the_same_again,
    state,
)
from tests.helpers.schedule import Schedule, sticky

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from ckptstore.verify import VerifyReport

PARTS = 4
SCHEDULES = 60  # in each part
pytestmark = pytest.mark.concurrency


def verify(repo: Repository, world: World) -> VerifyReport:
    return repo.verify()


def log(repo: Repository, world: World) -> Any:
    return repo.log()


def lost(repo: Repository, world: World) -> Any:
    found = repo.lost()
    assert not found
    return found


def branches(repo: Repository, world: World) -> Any:
    return repo.branches()


def usage(repo: Repository, world: World) -> Any:
    return repo.usage()


def dry_run(repo: Repository, world: World) -> Any:
    return repo.plan_gc(MaxToKeep(1), grace=0)


def checkout(repo: Repository, world: World) -> Any:
    return repo.checkout("main~1")


def diff(repo: Repository, world: World) -> Any:
    return repo.diff("main~1", "main", numeric=True)


def move_and_expire(repo: Repository, world: World) -> Any:
    """What was the head when a reader began has expired when it goes on."""
    for number in range(3, 6):
        repo.commit(state(number), step=number, retry=True)
        repo.gc(MaxToKeep(1), grace=0)


def delete_the_branch(repo: Repository, world: World) -> Any:
    repo.branch("passing", world.old)
    repo.delete_branch("passing")
    repo.gc(MaxToKeep(1), grace=0)


WRITERS: list[Any] = [
    collect,
    move_and_expire,
    commit_the_same_again,
    commit_partly_the_same,
    commit_of_the_deleted_branch,
    branch_at_the_old,
    delete_the_branch,
]
READERS = [log, lost, branches, usage, dry_run, checkout, diff]


def play(world: World, cast: Sequence[Any], seed: int) -> list[Any]:
    """Run one schedule, and return what each actor returned or raised."""
    choose = sticky(random.Random(seed), [0.0, 0.5, 0.9, 0.98])
    storage, handle = world.open()
    handles = [handle() for _ in cast]
    storage.schedule = Schedule(choose)
    results = storage.schedule.run(
        [
            lambda act=act, repo=repo: act(repo, world)
            for act, repo in zip(cast, handles, strict=True)
        ]
    )
    storage.schedule = None
    return results


def false_alarm(result: object) -> str | None:
    """Complaint about what a verify said of a healthy repository."""
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {result}"
    problems = getattr(result, "problems", ())
    return str(problems[0]) if problems else None


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("part", range(PARTS))
def test_verify_beside_a_gc_and_commits_reports_no_damage(part: int) -> None:
    world = World()
    for number in range(SCHEDULES):
        seed = number * PARTS + part
        writer, other = WRITERS[seed % len(WRITERS)], WRITERS[seed // 7 % len(WRITERS)]
        results = play(world, (verify, writer, other), seed)
        names = f"{writer.__name__}, {other.__name__}"
        assert false_alarm(results[0]) is None, f"schedule {seed} of verify beside {names}"


@pytest.mark.usefixtures("one_thread")
@pytest.mark.seeded
def test_a_verify_that_does_not_look_again_is_caught_by_these_tests() -> None:
    """A seeded bug: what failed once is damage."""
    world = World()

    def at_once(self: _Verify) -> Any:
        users, suffering = self.users(*self.newest())
        return list(self.problems(users, suffering))

    with patch.object(_Verify, "confirmed", at_once):
        assert any(
            false_alarm(play(world, (verify, move_and_expire), seed)[0]) for seed in range(200)
        )


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["chunk", "manifest", "operation"])
def test_damage_is_found_beside_a_gc(kind: str) -> None:
    """That of the checkpoint which stays, whatever the gc does to others meanwhile."""
    world = World()
    hit = {
        "chunk": _key(np.full(8192, 1).tobytes()),
        "manifest": f"checkpoints/{world.new}.json",
        "operation": "ops/000000000002.json",
    }[kind]
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), None):
        if damage is None and kind == "operation":
            continue  # a gap is none
        whole = world.data[hit]
        if damage:
            world.data[hit] = damage(whole)
        else:
            del world.data[hit]
        for seed in range(20):
            report, _ = play(world, (verify, collect), seed)
            keys = {problem.key for problem in report.problems}
            assert keys == {hit}, f"schedule {seed}: {report.problems}"
        world.data[hit] = whole


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_readers_beside_a_gc_report_no_damage(reader: Callable[[Repository, World], Any]) -> None:
    """At most that a checkpoint has expired."""
    world = World()
    for seed in range(60):
        writer = WRITERS[seed % len(WRITERS)]
        result, *_ = play(world, (reader, writer), seed)
        if isinstance(result, Exception) and not isinstance(result, ExpiredError):
            assert reader is checkout, result
            assert isinstance(result, NotFoundError), f"schedule {seed}: {result!r}"


def test_verify_beside_a_training_that_collects_reports_no_damage(tmp_path: Path) -> None:
    """In threads and on a disk, until there were many verifies during many gc runs."""
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit(state(0))
    ended = threading.Event()
    errors: list[BaseException] = []

    def train() -> None:
        try:
            other = ckptstore.open(tmp_path / "store")
            for step in range(1, 46):
                other.commit({**state(step), "w": np.full((200, 200), step / 2)}, step=step)
                if step % 3 == 0:
                    other.gc(MaxToKeep(1), grace=0)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=train)
    thread.start()
    reports = []
    while not ended.is_set():
        reports.append(repo.verify())
    thread.join()
    assert not errors
    assert len(reports) > 3
    assert [report.problems for report in reports if not report.ok] == []
    assert repo.verify().ok


def _key(data: bytes) -> str:
    digest = ckptstore.Digest.of(data)
    return f"objects/{digest[:2]}/{digest[2:]}"
