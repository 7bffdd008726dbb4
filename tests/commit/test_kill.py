"""kill -9 of a process that commits, at every system call that changes files."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.helpers.crash import strace
from tests.helpers.crash.checker import Told, complaint
from tests.helpers.crash.parts import some

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMITS = 9
PARTS = 8
KILLED = -9

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("first", some(range(1, 2), range(1, 3 * COMMITS, COMMITS)))
def test_a_kill_at_any_call_that_changes_files_costs_nothing_that_was_acknowledged(
    first: int, part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    commits = first, first + COMMITS - 1
    recorded = strace.run(scratch / "log", scratch / "first" / "store", *commits)
    points = strace.points(recorded, scratch)
    assert len(set(points)) == len(points) >= 300
    for point in points[part::PARTS]:
        assert kill_at(point, scratch, commits=commits) is None, f"killed at {point}"
    record_property("kills", len(points[part::PARTS]))


@pytest.mark.parametrize(
    ("name", "least"), [("write", 5), ("fsync", 5), ("renameat", 5), ("mkdirat", 2)]
)
def test_a_kill_while_several_threads_write_costs_nothing_that_was_acknowledged(
    name: str, least: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    kills = 0
    for number in range(1, 8):  # of whichever thread comes to its call of that number first
        log, url = scratch / "log", scratch / "store"
        inject = f"{name}:signal=KILL:when={number}"
        ended = strace.run(log, url, 1, 7, "--threads", 8, trace=[name], inject=inject)
        kills += ended.status == KILLED
        assert complaint(url, ended.told) is None, f"killed at {name} {number}"
        shutil.rmtree(url)
    assert kills >= least
    record_property("kills", kills)


def test_what_was_acknowledged_outlives_kill_after_kill_in_one_repository(
    scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    recorded = strace.run(scratch / "log", scratch / "first", 1, 3)
    points = strace.points(recorded, scratch)
    rng = random.Random(0)
    acks: list[tuple[int, str]] = []
    kills = 12
    for _ in range(kills):
        name, number = rng.choice(points)
        inject = f"{name}:signal=KILL:when={number}"
        first = len(acks) + 1
        ended = strace.run(
            scratch / "log", scratch / "store", first, first + 2, trace=[name], inject=inject
        )
        acks += ended.told.acks
    told = Told(initialised=True, acks=tuple(acks), failed=())
    assert complaint(scratch / "store", told, writers=kills) is None
    assert len(acks) > kills
    record_property("kills", kills)


def kill_at(
    point: tuple[str, int],
    scratch: Path,
    *options: object,
    commits: tuple[int, int] = (1, COMMITS),
) -> str | None:
    """Kill a victim at a call; what is wrong with its repository then, or None."""
    name, number = point
    url = scratch / "above" / "store"
    inject = f"{name}:signal=KILL:when={number}"
    ended = strace.run(scratch / "log", url, *commits, *options, trace=[name], inject=inject)
    last = ended.calls[-1]
    assert ended.status == KILLED
    assert last.result is None
    assert (last.name, last.number) == point
    assert last.changes(scratch)
    found = complaint(url, ended.told)
    shutil.rmtree(scratch / "above", ignore_errors=True)
    return found
