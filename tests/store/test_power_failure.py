"""After any power failure or kill, each acknowledged note is there and none is half published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.helpers.crash import checker, power, strace
from tests.helpers.crash.parts import some
from tests.helpers.crash.power import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARTS = 4
STATES_MIN = 200

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
def test_every_state_that_a_power_failure_may_leave_has_the_acknowledged_notes(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    volume = new_folder(scratch / "volume")
    run = strace.run(scratch / "log", volume / "store", 1, 3, "--notes")
    assert len(run.told.noted) == 3
    states = power.states(run.calls, volume, subsets=2, part=part, parts=PARTS)
    checked = power.check(states, scratch / "state", url="store")
    assert checked >= STATES_MIN // PARTS
    record_property("power failures", checked)


@pytest.mark.seeded
def test_a_note_that_is_not_flushed_is_noticed(scratch: Path) -> None:
    volume = new_folder(scratch / "volume")
    run = strace.run(
        scratch / "log", volume / "store", 1, 1, "--notes", "--bug", "notes-not-flushed"
    )
    states = power.states(run.calls, volume, subsets=2)
    assert any(power.complaints(states, scratch / "state", url="store"))


@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
def test_a_kill_at_any_call_loses_no_acknowledged_note(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    recorded = strace.run(scratch / "log", scratch / "first/store", 1, 1, "--notes")
    points = strace.points(recorded, scratch)[part::PARTS]
    for name, number in points:
        url = scratch / f"{name}-{number}" / "store"
        inject = f"{name}:signal=KILL:when={number}"
        killed = strace.run(scratch / "log", url, 1, 1, "--notes", inject=inject)
        assert checker.complaint(url, killed.told) is None, f"killed at {name} {number}"
    record_property("kills", len(points))
