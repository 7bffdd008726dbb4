"""A gc whose system calls fail: the next gc finishes it, nothing kept is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.gc.test_kill import collect, complaint, recorded
from tests.helpers.crash import strace
from tests.helpers.crash.parts import some

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARTS = 8

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
def test_a_gc_that_met_an_io_error_fails_and_the_next_finishes_it(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    url = scratch / "url" / "store"
    calls = [call for call in recorded(scratch, url).calls if call.fd != 1]  # without its output
    points = [(call.name, call.number) for call in calls if call.changes(scratch)]
    assert len(set(points)) == len(points) >= 200
    failures = 0
    for name, number in points[part::PARTS]:
        ended = collect(scratch, url, trace=[name], inject=f"{name}:error=EIO:when={number}")
        assert ended.status == 0, f"EIO at {name} {number}"
        assert complaint(url) is None, f"EIO at {name} {number}"
        failures += len(ended.told.failed)
    assert failures > 10  # the reserve and what a dead process left may fail unnoticed
    record_property("injected errors", len(points[part::PARTS]))
