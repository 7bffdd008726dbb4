"""After any power failure of a traced run, every acknowledged commit is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.crash import power, strace
from tests.helpers.crash.checker import Told
from tests.helpers.crash.parts import some
from tests.helpers.crash.power import new_folder

PARTS = 6
STATES_MIN = 2400
SECOND_PARTS = 12

Record = Callable[[str, object], None]
pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("subsets", [8, pytest.param(100, marks=pytest.mark.deep)])
def test_every_state_that_a_power_failure_may_leave_holds_what_was_acknowledged(
    part: int, subsets: int, scratch: Path, record_property: Record
) -> None:
    volume = new_folder(scratch / "volume")
    run = strace.run(scratch / "log", volume / "above/store", 1, 7)
    assert len(run.told.acks) == 7
    states = power.states(run.calls, volume, subsets=subsets, part=part, parts=PARTS)
    checked = power.check(states, scratch / "state", url="above/store")
    assert checked >= STATES_MIN // PARTS
    record_property("power failures", checked)


@pytest.mark.parametrize("part", some(range(0, SECOND_PARTS, 4), range(SECOND_PARTS)))
def test_a_power_failure_while_two_processes_of_many_threads_commit_costs_nothing(
    part: int, scratch: Path, record_property: Record
) -> None:
    volume = new_folder(scratch / "volume")
    run = strace.run(scratch / "log", volume / "store", 1, 2, "--threads", 4, "--rival", 101)
    assert len(run.told.acks) == 4
    states = power.states(run.calls, volume, subsets=1, part=part, parts=SECOND_PARTS)
    checked = power.check(states, scratch / "state", url="store", writers=2)
    record_property("power failures", checked)


@pytest.mark.parametrize("first", some(range(1, 16, 4), range(16)))
def test_a_power_failure_costs_nothing_that_relies_on_what_a_killed_process_left(
    first: int, scratch: Path, record_property: Record
) -> None:
    recorded = strace.run(scratch / "log", scratch / "above/store", 1, 1)
    points = strace.points(recorded, scratch)
    checked = 0
    for place in range(first, len(points), 16):
        states = after_kill(points[place], scratch, part=place % SECOND_PARTS, parts=SECOND_PARTS)
        what = f"first killed at {points[place]}"
        checked += power.check(states, scratch / "state", url="above/store", writers=2, what=what)
    record_property("power failures", checked)


def after_kill(
    point: tuple[str, int], scratch: Path, *options: object, part: int = 0, parts: int = 1
) -> Iterator[tuple[Told, power.Tree]]:
    """States after a power failure of a killed process and of its successor."""
    volume = new_folder(scratch / "volume")
    name, number = point
    url = volume / "above/store"
    inject = f"{name}:signal=KILL:when={number}"
    killed = strace.run(scratch / "log", url, 1, 1, *options, inject=inject)
    assert killed.status != 0
    after = strace.run(scratch / "log", url, 1, 1, *options)
    calls = strace.parse([*killed.log, *after.log])
    return power.states(calls, volume, subsets=2, part=part, parts=parts)
