"""After any power failure during a gc, kept checkpoints are whole and the next finishes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.gc.test_kill import KEPT, complaint
from tests.helpers.crash import power, strace
from tests.helpers.crash.parts import some
from tests.helpers.crash.power import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMITS = 8
PARTS = 4
STATES_MIN = 600

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", some(range(0, PARTS, 2), range(PARTS)))
@pytest.mark.parametrize("subsets", [2, pytest.param(60, marks=pytest.mark.deep)])
def test_every_state_that_a_power_failure_may_leave_of_a_gc_is_finished_by_the_next(
    part: int, subsets: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    volume, state = new_folder(scratch / "volume"), scratch / "state"
    run = strace.run(scratch / "log", volume / "store", 1, COMMITS, "--keep", KEPT)
    assert run.status == 0
    checked = 0
    for told, tree in power.states(run.calls, volume, subsets=subsets, part=part, parts=PARTS):
        if len(told.acks) == COMMITS:  # the gc has begun
            state.mkdir()
            power.lay_out(tree, state)
            assert complaint(state / "store", commits=COMMITS, metrics=frozenset()) is None, (
                f"state {checked}"
            )
            shutil.rmtree(state)
            checked += 1
    assert checked >= STATES_MIN // PARTS
    record_property("power failures", checked)
