"""A disk that fails, or is full, at every system call that changes files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import ckptstore
from tests.helpers.crash import strace, victim
from tests.helpers.crash.checker import Told, complaint, equal
from tests.helpers.crash.parts import some
from tests.helpers.crash.victim import GAVE_UP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMITS = 4
PARTS = 8
# The disk fails, a quota is used up, the disk is now mounted read-only, a file server restarted.
ERRORS = ("EIO", "EDQUOT", "EROFS", "ESTALE")
TRIALS = [(error, part) for error in ERRORS for part in range(PARTS)]

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread")]


@strace.needed
@pytest.mark.parametrize(("error", "part"), some(TRIALS[: PARTS + 1], TRIALS))
def test_a_commit_that_met_an_error_fails_and_the_next_works(
    error: str, part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    points = recorded_points(scratch)[part::PARTS]
    for point in points:
        assert fail_once_at(point, error, scratch) is None, f"{error} at {point}"
    record_property("injected errors", len(points))


@strace.needed
@pytest.mark.parametrize("part", range(PARTS))
def test_a_full_disk_fails_every_commit_and_harms_none_before(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    points = [point for point in recorded_points(scratch)[part::PARTS] if point[0] != "openat"]
    for name, number in points:
        url = scratch / "store"
        inject = f"{name}:error=ENOSPC:when={number}+"
        ended = strace.run(scratch / "log", url, 1, COMMITS, trace=[name], inject=inject)
        assert ended.status == GAVE_UP, f"ENOSPC from {name} {number} on"
        assert complaint(url, ended.told) is None, f"ENOSPC from {name} {number} on"
        shutil.rmtree(url, ignore_errors=True)
    record_property("injected errors", len(points))


def test_a_write_cut_short_by_a_limit_fails_the_commit(scratch: Path) -> None:
    ended = subprocess.run(
        [sys.executable, victim.__file__, str(scratch / "store"), "1", "2"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(strace.ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        check=False,
    )
    told = Told.parse(ended.stdout)
    assert ended.returncode == GAVE_UP
    assert told.failed == (1, 1)
    assert complaint(scratch / "store", told) is None


def test_a_write_that_takes_only_some_bytes_goes_on(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1000]))
    repo = ckptstore.init(scratch / "store", chunk_size=victim.CHUNK_BYTES)
    repo.commit(victim.state(1))
    monkeypatch.undo()
    assert equal(repo.checkout(), victim.state(1))
    assert repo.verify().ok


def recorded_points(scratch: Path) -> list[tuple[str, int]]:
    """Every call that changes files, without acknowledgements and the reserve, which may fail."""
    recorded = strace.run(scratch / "log", scratch / "store", 1, COMMITS)
    shutil.rmtree(scratch / "store")
    return [
        (call.name, call.number)
        for call in recorded.calls
        if call.changes(scratch) and call.fd != 1 and "/reserve-" not in "".join(call.paths)
    ]


def fail_once_at(point: tuple[str, int], error: str, scratch: Path, *options: object) -> str | None:
    """Let a call of a victim fail; a complaint about its output or repository, or None."""
    name, number = point
    url = scratch / "store"
    inject = f"{name}:error={error}:when={number}"
    ended = strace.run(scratch / "log", url, 1, COMMITS, *options, trace=[name], inject=inject)
    found = complaint(url, ended.told)
    shutil.rmtree(url)
    if len(ended.told.failed) != 1:
        return f"{len(ended.told.failed)} commits failed"
    if ended.status != 0 or [n for n, _ in ended.told.acks] != list(range(1, COMMITS + 1)):
        return f"after the failure the victim ended with {ended.status}, {ended.told.acks}"
    return found
