"""After any power failure of a real ext4, every acknowledged commit is there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

import ckptstore
from tests.gc.test_kill import KEPT
from tests.gc.test_kill import complaint as complaint_of_gc
from tests.helpers import mounts
from tests.helpers.children import exit_code, fork
from tests.helpers.crash import ext4, victim
from tests.helpers.crash.checker import Told, complaint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Record = Callable[[str, object], None]

FAILURES = 250
DEEP_FAILURES = 1500

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread", "may_mount")]


@pytest.fixture
def may_mount() -> None:
    if reason := mounts.refusal():
        pytest.skip(f"{reason}: the power failures of an ext4 were not tried")


@pytest.mark.parametrize("count", [FAILURES, pytest.param(DEEP_FAILURES, marks=pytest.mark.deep)])
@pytest.mark.parametrize("is_beside_gc", [False, True], ids=["commits", "gc-beside-commits"])
def test_every_power_failure_of_an_ext4_leaves_what_was_acknowledged(
    is_beside_gc: bool, count: int, scratch: Path, record_property: Record
) -> None:
    if is_beside_gc:
        work, complaint, reports = commit_beside_gc, complaint_beside_gc, (b"GC", 2)
    else:
        work, complaint, reports = commit_by_threads, complaint_of_commits, (b"ACK", 8)
    recording = ext4.record(scratch, work)
    failures = ext4.failures(recording.log, count=count)
    word, times = reports
    assert failures[-1].reported.count(word) == times
    found = ext4.complaints(recording, failures, scratch, complaint, consume=list)
    assert [said for said in found if said] == []
    assert len(found) >= FAILURES
    record_property("power failures of an ext4", len(found))


@pytest.mark.seeded
@pytest.mark.parametrize("bug", ["no-file-fsync", "no-folder-fsync", "operation-before-manifest"])
def test_power_failures_of_an_ext4_catch(bug: str, scratch: Path) -> None:
    recording = ext4.record(scratch, lambda disk: commit(disk, 1, 1, "--bug", bug))
    failures = ext4.failures(recording.log, count=0)
    assert ext4.complaints(recording, failures, scratch, complaint_of_commits, consume=any)


def commit_by_threads(disk: Path) -> None:
    commit(disk, 1, 7, "--threads", 4)


def commit(disk: Path, *arguments: object) -> None:
    """Let a victim work."""
    victim.main([str(part) for part in (disk / "above/store", *arguments)])


def commit_beside_gc(disk: Path) -> None:
    """Commit, and collect with a policy while another process commits, twice."""
    commit(disk, 1, 4)
    for first in (5, 7):
        gc = fork(partial(commit, disk, first, first - 1, "--keep", KEPT))
        commit(disk, first, first + 1)
        assert exit_code(gc) == 0


def complaint_of_commits(disk: Path, told: Told) -> str | None:
    return complaint(disk / "above/store", told)


def complaint_beside_gc(disk: Path, told: Told) -> str | None:
    """A complaint about commits, or about the next gc."""
    url = disk / "above/store"
    found = complaint(url, told, keep=KEPT)
    if found:
        return found
    commits = len(ckptstore.open(url).log("main"))
    return complaint_of_gc(url, commits=commits, metrics=frozenset())
