"""Commits to a far storage: many requests at once, in bounded memory, without a hang."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import pytest
import torch

from ckptstore.commit import put
from ckptstore.errors import InvalidInputError, StorageError
from ckptstore.storage.diskless import StagedCopy
from tests.helpers.counting_storage import CHUNK_BYTES, CountingStorage, array_objects, repository

CHUNKS = 60
ROOM_CHUNKS = 4


class FarCounting(CountingStorage):
    """Counts the bytes of copies that are alive, and the threads that look and put.

    fails_after: how many objects can be put. put_seconds: how long each put takes.
    """

    def __init__(self, fails_after: int = 1 << 30, put_seconds: float = 0.0) -> None:
        super().__init__()
        self.fails_after, self.put_seconds = fails_after, put_seconds
        self.staged = self.staged_max = 0
        self.looks: set[int] = set()
        self.look_count = 0
        self.puts: set[int] = set()
        self._counted = threading.Lock()

    @property
    def is_far(self) -> bool:
        return True

    def stage(self, data: Any, **options: Any) -> StagedCopy:
        size = memoryview(data).nbytes
        self._count(size)
        staged = super().stage(data, **options)
        weakref.finalize(staged, self._count, -size)
        return staged

    def size(self, key: str) -> int | None:
        if key.startswith("objects/"):
            self.looks.add(threading.get_ident())
            with self._counted:
                self.look_count += 1
        return super().size(key)

    def put(self, key: str, data: Any, **options: Any) -> None:
        if key.startswith("objects/"):
            self.puts.add(threading.get_ident())
            time.sleep(self.put_seconds)
            with self._counted:
                self.fails_after -= 1
                if self.fails_after < 0:
                    raise StorageError("The network is down.")
        super().put(key, data, **options)

    def _count(self, size: int) -> None:
        with self._counted:
            self.staged += size
            self.staged_max = max(self.staged_max, self.staged)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put, "FAR_BYTES_MAX", ROOM_CHUNKS * CHUNK_BYTES)


def _state(chunks: int = CHUNKS) -> dict[str, torch.Tensor]:
    values = torch.Generator().manual_seed(0)
    return {
        f"w{number}": torch.rand(CHUNK_BYTES // 4, generator=values) for number in range(chunks)
    } | {f"small{number}": torch.rand(9, generator=values) for number in range(chunks)}


def test_copies_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put, "FAR_PUT_THREADS", 2)
    storage = FarCounting(put_seconds=0.005)
    repository(storage).commit(_state())
    assert storage.staged == 0
    # A copy may still be in the hands of each thread that has just put one.
    freed = put.FAR_PUT_THREADS * CHUNK_BYTES
    assert CHUNK_BYTES < storage.staged_max <= ROOM_CHUNKS * CHUNK_BYTES + freed


def test_an_object_larger_than_the_room_is_put_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put, "FAR_BYTES_MAX", CHUNK_BYTES // 2)
    storage = FarCounting()
    repo = repository(storage)
    repo.commit(_state(9))
    assert repo.verify().ok


def test_the_threads_that_put_look() -> None:
    storage = FarCounting()
    repository(storage).commit(_state())
    assert storage.looks <= storage.puts


def test_what_is_there_is_not_put_again() -> None:
    """It is not known from a parent, as the branch begins empty."""
    storage = FarCounting()
    repo = repository(storage)
    state = _state()
    first = repo.commit(state, branch="first")
    storage.forget()
    second = repo.commit(state, branch="second")
    assert not [key for key in storage.written if key.startswith("objects/")]
    assert (first.new_bytes > 0, second.new_bytes) == (True, 0)
    assert repo.verify().ok


def test_after_many_looks_that_found_nothing_few_are_made() -> None:
    storage = FarCounting()
    repo = repository(storage)
    repo.commit({"other": 1}, branch="other")
    state = _state(200)
    storage.look_count = 0
    repo.commit(state)
    assert storage.look_count >= put.MISSED_MAX
    assert storage.look_count < put.MISSED_MAX + 200 // put.LOOK_EVERY + put.FAR_PUT_THREADS
    assert repo.verify().ok


def test_the_first_commit_and_one_after_another_that_was_all_new_look_for_few_objects() -> None:
    """A commit after one with few new objects looks for all of its own."""
    storage = FarCounting()
    repo = repository(storage)
    few = CHUNKS // put.LOOK_EVERY + 2
    looks = []
    for add in (0, 1):
        storage.look_count = 0
        repo.commit({name: array + add for name, array in _state().items()})
        looks.append(storage.look_count)
    assert all(count <= few for count in looks), looks
    state = {name: array + 1 for name, array in _state().items()}
    state["w1"] = state["w1"] + 1
    repo.commit(state)
    storage.look_count = 0
    repo.commit({name: array + 2 for name, array in _state().items()})
    assert storage.look_count > few
    assert repo.verify().ok


def test_objects_that_are_there_after_many_new_ones_are_found_again() -> None:
    """At most as many are put again as are put between two looks, and by threads meanwhile."""
    storage = FarCounting()
    repo = repository(storage)
    state = _state(400)
    old = repo.commit(
        {name: state[name] for name in state if name[:2] in ("w2", "w3")}, branch="old"
    )
    storage.forget()
    repo.commit({f"a{name}": array for name, array in state.items()}, branch="new")
    again = array_objects(old) & storage.written.keys()
    assert len(array_objects(old)) > 2 * (put.LOOK_EVERY + put.FAR_PUT_THREADS)
    assert len(again) <= put.LOOK_EVERY + put.FAR_PUT_THREADS
    assert repo.verify().ok


@pytest.mark.parametrize("puts", [0, 1, 7, 30])
def test_an_error_of_one_put_ends_the_commit_though_others_wait_for_room(puts: int) -> None:
    storage = FarCounting(fails_after=puts)
    repo = repository(storage)
    with pytest.raises(StorageError, match="network is down"):
        repo.commit(_state())
    assert repo.branches() == {}
    storage.fails_after = 1 << 30
    repo.commit(_state())
    assert repo.verify().ok


def test_an_array_that_changes_meanwhile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = FarCounting()
    repo = repository(storage)
    state = {"w": torch.zeros(CHUNK_BYTES // 4)}
    real = FarCounting.stage

    def stage(self: FarCounting, data: Any, **options: Any) -> StagedCopy:
        state["w"][5] += 1
        return real(self, data, **options)

    monkeypatch.setattr(FarCounting, "stage", stage)
    with pytest.raises(InvalidInputError, match="changed while it was being committed"):
        repo.commit(state)
    assert repo.branches() == {}


def test_lost_objects_of_an_unreadable_parent_are_put_again() -> None:
    storage = FarCounting()
    repo = repository(storage)
    state = _state(5)
    made = repo.commit(state)
    page = made._manifest.pages[0].digest
    key = repo._objects.key(page)
    storage._data[key] = b"damaged" + storage._data[key][7:]
    again = repository(storage)
    storage.forget()
    again.commit(state)
    assert len([key for key in storage.written if key.startswith("objects/")]) == 5 + 3
    assert again.verify().ok
