"""After any power failure during a gc, kept checkpoints are whole and the next finishes."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore.errors import CkptStoreError
from ckptstore.retention import MaxToKeep
from tests.gc.test_kill import KEPT, complaint
from tests.helpers.crash import power, strace
from tests.helpers.crash.checker import equal
from tests.helpers.crash.parts import some
from tests.helpers.crash.power import new_folder
from tests.helpers.crash.victim import state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COMMITS = 8
PARTS = 4
STATES_MIN = 600
EXPIRED = 2

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


@pytest.mark.parametrize("part", some(range(0, PARTS, 2), range(PARTS)))
@pytest.mark.parametrize("subsets", [2, pytest.param(60, marks=pytest.mark.deep)])
def test_every_state_that_a_power_failure_may_leave_of_a_gc_is_finished_by_the_next(
    part: int, subsets: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    volume, place = new_folder(scratch / "volume"), scratch / "state"
    run = strace.run(scratch / "log", volume / "store", 1, COMMITS, "--keep", KEPT)
    assert run.status == 0
    checked = 0
    for told, tree in power.states(run.calls, volume, subsets=subsets, part=part, parts=PARTS):
        if len(told.acks) == COMMITS:  # the gc has begun
            place.mkdir()
            power.lay_out(tree, place)
            assert complaint(place / "store", commits=COMMITS, metrics=frozenset()) is None, (
                f"state {checked}"
            )
            shutil.rmtree(place)
            checked += 1
    assert checked >= STATES_MIN // PARTS
    record_property("power failures", checked)


@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
def test_without_a_journal_no_commit_relies_on_a_deleted_object_that_came_back(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    """Its name comes back as the name of other bytes; the size is right."""
    found = list(complaints_without_journal(scratch, part))
    assert [complaint for complaint in found if complaint] == []
    assert len(found) >= 40
    record_property("power failures", len(found))


def test_without_a_journal_deletes_that_are_not_flushed_are_noticed(scratch: Path) -> None:
    assert any(complaints_without_journal(scratch, 0, "--bug", "deletes-not-flushed"))


def complaints_without_journal(scratch: Path, part: int, *options: str) -> Iterator[str | None]:
    """A complaint or None for each state that a power failure during a gc may leave."""
    volume, place = new_folder(scratch / "volume"), scratch / "state"
    run = strace.run(scratch / "log", volume / "store", 1, EXPIRED + 1, "--keep", 1, *options)
    for told, tree in power.states(
        run.calls, volume, subsets=0, part=part, parts=PARTS, journal=False
    ):
        if len(told.acks) == EXPIRED + 1:
            place.mkdir()
            power.lay_out(tree, place)
            yield complaint_of_commits(place / "store")
            shutil.rmtree(place)


def complaint_of_commits(url: Path) -> str | None:
    """A complaint if what has expired cannot be committed again and read, or None."""
    try:
        repo = ckptstore.open(url)
        for n in range(1, EXPIRED + 1):
            made = repo.commit(state(n), branch="again", retry=True)
            if not equal(repo.checkout(made.id), state(n)):
                return f"{n} is not what was committed"
        repo.gc(MaxToKeep(1), grace=0)
        problems = repo.verify().problems
    except CkptStoreError as error:
        return str(error)
    return problems[0].error if problems else None
