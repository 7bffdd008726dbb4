"""Threads of one process, and meetings of two handles at exactly the wrong moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ckptstore
from ckptstore import ConflictError
from ckptstore.documents.marker import Marker
from ckptstore.storage import Listed, MemoryStorage
from tests.helpers.crash import bugs
from tests.helpers.crash.checker import equal
from tests.helpers.crash.victim import CHUNK_BYTES, state

pytestmark = pytest.mark.concurrency

MARKER = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)


def test_threads_that_share_a_handle_commit_into_one_line(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    ready = threading.Barrier(4)

    def work(first: int) -> list[str]:
        ready.wait()
        return [repo.commit(state(n), step=n, retry=True).id for n in range(first, first + 5)]

    with ThreadPoolExecutor(4) as pool:
        made = [id for ids in pool.map(work, range(100, 500, 100)) for id in ids]
    history = repo.log("main")
    assert sorted(found.id for found in history) == sorted(made)
    assert [found.parents for found in history] == [
        tuple(older.id for older in history[place + 1 : place + 2]) for place in range(20)
    ]
    for found in history:
        assert equal(repo.checkout(found.id), state(found.step or 0))
    assert repo.verify().ok


def test_of_threads_that_make_the_same_repository_one_succeeds(tmp_path: Path) -> None:
    ready = threading.Barrier(8)

    def make(_: int) -> bool:
        ready.wait()
        try:
            ckptstore.init(tmp_path / "above" / "store")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(make, range(8))) == 1


@pytest.mark.parametrize("moment", [1, 2])
def test_a_commit_that_another_overtakes_raises_and_changes_nothing(
    moment: int, tmp_path: Path
) -> None:
    repo, rival = two_handles(tmp_path, moment)
    with pytest.raises(ConflictError, match="moved to"):
        repo.commit(state(2), step=2)
    assert [found.step for found in rival.log("main")] == [7, 1]


@pytest.mark.parametrize("moment", [1, 2])
def test_with_retry_a_commit_that_another_overtakes_lands_on_top_of_it(
    moment: int, tmp_path: Path
) -> None:
    repo, rival = two_handles(tmp_path, moment)
    made = repo.commit(state(2), step=2, retry=True)
    assert [found.step for found in rival.log("main")] == [2, 7, 1]
    assert rival.resolve("main").id == made.id
    assert equal(rival.checkout("main"), state(2))
    assert equal(rival.checkout("main~1"), state(7))


def test_these_tests_catch_an_operation_that_overwrites_another(tmp_path: Path) -> None:
    repo, rival = two_handles(tmp_path, moment=2)
    with bugs.seeded("create-overwrites"):
        repo.commit(state(2), step=2)
    assert [found.step for found in rival.log("main")] == [2, 1]


@pytest.mark.parametrize("look", range(1, 14))
def test_verify_finds_nothing_wrong_with_a_commit_that_comes_meanwhile(look: int) -> None:
    storage = Interrupted()
    storage.create("ckptstore.json", MARKER.encode())
    rival = ckptstore.Repository(storage, MARKER)
    rival.commit(state(1), step=1)
    storage.before = {storage.looks + look: lambda: rival.commit(state(2), step=2)}
    report = ckptstore.Repository(storage, MARKER).verify()
    assert not storage.before
    assert report.problems == ()


class Interrupted(MemoryStorage):
    """A storage that calls `before` with the number of each look before it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.before: dict[int, Callable[[], object]] = {}

    def list(self, prefix: str) -> Iterator[Listed]:
        self._look()
        return super().list(prefix)

    def get(self, key: str, *, bytes_max: int) -> bytes:
        self._look()
        return super().get(key, bytes_max=bytes_max)

    def size(self, key: str) -> int | None:
        self._look()
        return super().size(key)

    def _look(self) -> None:
        self.looks += 1
        if happen := self.before.pop(self.looks, None):
            happen()


def two_handles(folder: Path, moment: int) -> tuple[ckptstore.Repository, ckptstore.Repository]:
    """Two handles on one repository; the second commits in the middle of a commit of the first.

    moment: 1, after the arrays are written; 2, between the look at the newest operation and the try
    to append the next.
    """
    rival = ckptstore.init(folder / "store")
    rival.commit(state(1), step=1)
    looks = 0

    def clock() -> float:
        """A commit looks at its clock at just these moments."""
        nonlocal looks
        looks += 1
        if looks == moment:
            rival.commit(state(7), step=7)
        return 0.0

    return ckptstore.open(folder / "store", clock=clock), rival
