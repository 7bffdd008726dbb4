"""kill -9 of a gc at every system call: the next gc finishes it, nothing kept is lost."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore.store.objects import key_of
from tests.helpers.crash import strace
from tests.helpers.crash.checker import equal
from tests.helpers.crash.victim import CHUNK_BYTES, state

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore import Repository

COMMITS = 24
KEPT = 2
PARTS = 8
KILLED = -9

pytestmark = [pytest.mark.crash, pytest.mark.usefixtures("one_thread"), strace.needed]


def prepared(url: Path) -> None:
    """A line of checkpoints, of which most will expire, and what a deleted branch left."""
    repo = ckptstore.init(url, chunk_size=CHUNK_BYTES)
    for n in range(1, COMMITS + 1):
        repo.commit(state(n), step=n, metrics={"loss": 1 / n})
    repo.commit(state(100), branch="side")
    repo.delete_branch("side")


def recorded(scratch: Path, url: Path) -> strace.Run:
    """A gc that nothing stops; `collect` begins from the same repository."""
    prepared(scratch / "base")
    run = collect(scratch, url)
    assert run.status == 0
    return run


def collect(scratch: Path, url: Path, **options: str | list[str]) -> strace.Run:
    """Run a gc on a fresh copy of the prepared repository."""
    shutil.rmtree(url, ignore_errors=True)
    shutil.copytree(scratch / "base", url)
    return strace.run(scratch / "log", url, 1, 0, "--keep", KEPT, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", range(PARTS))
def test_a_gc_killed_at_any_call_that_changes_files_is_finished_by_the_next(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    url = scratch / "url" / "store"
    points = strace.points(recorded(scratch, url), scratch)
    assert len(set(points)) == len(points) >= 200
    for name, number in points[part::PARTS]:
        inject = f"{name}:signal=KILL:when={number}"
        ended = collect(scratch, url, trace=[name], inject=inject)
        assert ended.status == KILLED
        assert complaint(url) is None, f"killed at {name} {number}"
    record_property("kills", len(points[part::PARTS]))


def complaint(
    url: Path, *, commits: int = COMMITS, metrics: frozenset[str] = frozenset({"loss"})
) -> str | None:
    """A complaint about the repository after one more commit, or None."""
    repo = ckptstore.open(url)
    if not repo.verify().ok:
        return f"verify found {repo.verify().problems[0]}"
    made = repo.commit(state(1), step=commits + 1, metrics={"loss": 0.0})
    expected = {made.id: 1} | {c.id: c.step or 0 for c in repo.log("main")[1 : KEPT + 1]}
    for id, n in expected.items():
        if not equal(repo.checkout(id), state(n)):
            return f"checkpoint {id.short} is not what was committed as {n}"
    repo.gc(MaxToKeep(KEPT), grace=0)
    log = repo.log("main")
    if [(c.step, c.expired) for c in log] != [
        (step, step <= commits + 1 - KEPT) for step in range(commits + 1, 0, -1)
    ]:
        return "the log does not tell of all checkpoints"
    if any(c.metrics.keys() != metrics for c in log[1:]) or log[0].metrics.keys() != {"loss"}:
        return "metrics were lost"
    if repo._oplog.newest().condemned is not None:
        return "something is still condemned"
    if not repo.verify().ok:
        return f"verify found {repo.verify().problems[0]} after the next gc"
    return garbage(repo)


def garbage(repo: Repository) -> str | None:
    """What is there that nothing reaches, or None."""
    reached = set()
    for found in repo.log("main")[:KEPT]:
        reached.add(key_of(found._manifest.structure))
        for page in repo._catalog.pages(found._manifest):
            reached.update(key_of(digest) for digest, _ in page.digests())
        reached.update(key_of(ref.digest) for ref in found._manifest.pages)
    left = {item.key for item in repo._storage.list("objects/")} - reached
    return f"{len(left)} objects are left that nothing reaches" if left else None
