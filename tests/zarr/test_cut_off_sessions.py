"""Sessions cut off by kill -9 at every system call, and by a power failure."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.helpers.crash import power, strace
from tests.helpers.crash.checker import complaint
from tests.helpers.crash.power import new_folder
from tests.helpers.crash.victim import arrays

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST, LAST = 3, 5  # the last one has one array more
COMMITS = LAST - FIRST + 1
PARTS = 4
KILLED = -9
STATES_MIN = 600

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_session_killed_at_any_call_leaves_the_head_before_or_after_it(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    recorded = strace.run(scratch / "log", scratch / "first" / "store", FIRST, LAST, "--zarr")
    assert len(recorded.told.acks) == COMMITS
    points = strace.points(recorded, scratch)
    assert len(set(points)) == len(points) >= 100
    chosen = points[part::PARTS]
    for name, number in chosen:
        url = scratch / "above" / "store"
        inject = f"{name}:signal=KILL:when={number}"
        ended = strace.run(scratch / "log", url, FIRST, LAST, "--zarr", trace=[name], inject=inject)
        assert ended.status == KILLED
        assert complaint(url, ended.told, state=arrays) is None, f"killed at {name} {number}"
        shutil.rmtree(scratch / "above", ignore_errors=True)
    record_property("kills", len(chosen))


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("subsets", [4, pytest.param(60, marks=pytest.mark.deep)])
def test_every_state_that_a_power_failure_may_leave_holds_the_sessions_that_were_acknowledged(
    part: int, subsets: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    volume = new_folder(scratch / "volume")
    run = strace.run(scratch / "log", volume / "above/store", FIRST, LAST, "--zarr")
    assert len(run.told.acks) == COMMITS
    states = power.states(run.calls, volume, subsets=subsets, part=part, parts=PARTS)
    checked = power.check(states, scratch / "state", url="above/store", state=arrays)
    assert checked >= STATES_MIN // PARTS
    record_property("power failures", checked)
