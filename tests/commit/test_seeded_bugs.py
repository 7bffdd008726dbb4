"""The crash tests can fail: each mistake that is made on purpose is caught."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.commit.test_io_errors import fail_once_at, recorded_points
from tests.commit.test_kill import kill_at
from tests.commit.test_power_failure import after_kill
from tests.helpers.crash import bugs, power, strace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.crash,
    pytest.mark.seeded,
    pytest.mark.usefixtures("one_thread"),
    strace.needed,
]


@pytest.mark.parametrize("bug", ["operation-before-manifest", "temporary-name-by-pid-only"])
def test_kills_catch(bug: str, scratch: Path) -> None:
    """The next commit, which the checker makes, is made with the same mistake."""
    recorded = strace.run(scratch / "log", scratch / "first/store", 1, 1, "--bug", bug)
    renames = [point for point in strace.points(recorded, scratch) if "rename" in point[0]]
    with bugs.seeded(bug):
        assert any(kill_at(point, scratch, "--bug", bug) for point in reversed(renames))


@pytest.mark.parametrize("bug", ["failed-fsync-ignored", "failed-fsync-tried-again"])
def test_injected_errors_catch(bug: str, scratch: Path) -> None:
    fsyncs = [point for point in recorded_points(scratch) if point[0] == "fsync"]
    caught = [fail_once_at(point, "EIO", scratch, "--bug", bug) for point in fsyncs[:3]]
    assert all(caught)


@pytest.mark.parametrize(
    "bug",
    [
        "no-file-fsync",
        "names-before-bytes",
        "no-folder-fsync",
        "no-parent-folder-fsync",
        "operation-before-manifest",
    ],
)
def test_power_failures_catch(bug: str, scratch: Path) -> None:
    volume = scratch / "volume"
    volume.mkdir()
    run = strace.run(scratch / "log", volume / "above/store", 1, 2, "--bug", bug)
    states = power.states(run.calls, volume, subsets=1)
    assert any(power.complaints(states, scratch / "state", url="above/store"))


def test_power_failures_catch_a_commit_that_does_not_flush_what_a_killed_process_left(
    scratch: Path,
) -> None:
    bug = "found-objects-not-flushed"
    # As deep as the store of `after_kill`: each folder above a new store is fsynced.
    recorded = strace.run(scratch / "log", scratch / "first/above/store", 1, 1)
    points = strace.points(recorded, scratch)
    renames = [place for place, (name, _) in enumerate(points) if "rename" in name]
    last_object = renames[-2]  # the last rename is the manifest's
    flush = points[last_object + 1]
    assert flush[0] == "fsync"
    states = after_kill(flush, scratch, "--bug", bug)
    assert any(power.complaints(states, scratch / "state", url="above/store", writers=2))
