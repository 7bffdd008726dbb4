"""Repositories that are emptied, removed, unmounted or replaced under an open handle."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore import CkptStoreError, StorageError
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.retention import MaxToKeep
from ckptstore.storage import LocalStorage
from tests.helpers.counting_storage import CountingStorage, repository

Change = Callable[[ckptstore.Repository], object]

CHANGES: dict[str, Change] = {
    "commit": lambda repo: repo.commit({"x": np.ones(20_000)}),
    "commit of nothing new": lambda repo: repo.commit({"x": np.zeros(20_000)}),
    "tag": lambda repo: repo.tag("other", "main"),
    "branch": lambda repo: repo.branch("other"),
    "derive": lambda repo: repo.branch("other", include="x"),
    "delete": lambda repo: repo.delete_branch("main"),
    "undo": lambda repo: repo.undo(),
    "config": lambda repo: repo.set_retention(MaxToKeep(3)),
    "gc": lambda repo: repo.gc(MaxToKeep(1), grace=0),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


def made(root: Path) -> ckptstore.Repository:
    repo = ckptstore.init(root)
    repo.commit({"x": np.zeros(20_000)}, step=1)
    repo.commit({"x": np.zeros(30_000)}, step=2)
    return repo


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


def empty(root: Path) -> None:
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_is_written_where_a_repository_was(root: Path, change: str) -> None:
    repo = made(root)
    empty(root)
    with pytest.raises(StorageError, match="removed, or its disk"):
        CHANGES[change](repo)
    assert not list(root.iterdir())
    shutil.rmtree(root)
    with pytest.raises(StorageError, match="removed, or its disk"):
        CHANGES[change](repo)
    assert not root.exists()


@pytest.mark.parametrize("change", CHANGES)
def test_another_repository_in_the_same_place_is_not_changed(root: Path, change: str) -> None:
    repo = made(root)
    root.rename(root.with_name("old"))
    other = made(root)  # with the same objects, of which a gc would delete some
    other.commit({"x": np.zeros(40_000)}, branch="third")
    before = files(root)
    with pytest.raises(StorageError, match="holds another repository"):
        CHANGES[change](repo)
    left = files(root)
    assert {name for name in left if not name.startswith(("objects/", "checkpoints/"))} == {
        name for name in before if not name.startswith(("objects/", "checkpoints/"))
    }
    assert left | before == left
    assert other.verify().ok


def test_a_shorter_log_of_another_repository_is_found_before_anything_is_written(
    root: Path,
) -> None:
    repo = made(root)
    root.rename(root.with_name("old"))
    ckptstore.init(root)
    before = files(root)
    with pytest.raises(StorageError, match="holds another repository"):
        CHANGES["commit"](repo)
    assert files(root) == before


READS: dict[str, Callable[[ckptstore.Repository], object]] = {
    "log": lambda repo: repo.log(),
    "branches": lambda repo: repo.branches(),
    "checkout": lambda repo: repo.checkout("main"),
    "usage": lambda repo: repo.usage(),
    "retention": lambda repo: repo.retention(),
}


@pytest.mark.parametrize("commits", [0, 1, 2, 3])  # made() makes 2
def test_no_other_repository_in_the_same_place_is_read(root: Path, commits: int) -> None:
    repo = made(root)
    root.rename(root.with_name("old"))
    other = ckptstore.init(root)
    for step in range(commits):
        other.commit({"x": np.ones(step + 1)})
    for read in (*READS.values(), *READS.values()):
        with pytest.raises(StorageError, match="holds another repository"):
            read(repo)
    shutil.rmtree(root)
    root.with_name("old").rename(root)
    for read in READS.values():
        read(repo)


def test_a_follower_takes_nothing_from_another_repository(root: Path) -> None:
    repo = made(root)
    follower = repo.follow("main", poll_seconds=0.01)
    assert follower.wait()
    root.rename(root.with_name("old"))
    made(root).commit({"x": np.ones(3)}, step=3)
    with pytest.raises(StorageError, match="holds another repository"):
        follower.wait(timeout=5)


@pytest.mark.parametrize("gone", ["removed", "emptied", "replaced"])
def test_arrays_that_are_read_later_name_the_repository_that_is_gone(root: Path, gone: str) -> None:
    repo = made(root)
    checkpoint, lazy = repo.resolve("main"), repo.checkout(lazy=True)
    root.rename(root.with_name("old"))
    if gone != "removed":
        root.mkdir()
    if gone == "replaced":
        root.rmdir()
        ckptstore.init(root)
    reads: tuple[Callable[[], object], ...] = (
        lambda: lazy["x"][:3],
        lambda: checkpoint.array("x")[:3],
        repo.usage,
    )
    for read in reads:
        with pytest.raises(StorageError, match=r"holds another repository|no longer holds"):
            read()


def test_what_another_handle_committed_costs_one_read_of_the_marker() -> None:
    storage = CountingStorage()
    repo = repository(storage)
    repo.commit({"x": np.arange(3)})
    repository(storage).commit({"x": np.arange(4)})
    storage.forget()
    repo.log()
    assert storage.reads[MARKER_KEY] == 1
    repo.log()
    assert storage.reads[MARKER_KEY] == 1


def test_a_repository_that_was_emptied_does_not_read_as_a_new_one(root: Path) -> None:
    repo = made(root)
    empty(root)
    reads: tuple[Callable[[], object], ...] = (
        repo.log,
        repo.branches,
        repo.checkout,
        repo.usage,
        lambda: repo.retention(),
        lambda: repo.resolve("main"),
        lambda: repo.plan_gc(MaxToKeep(1)),
    )
    for read in reads:
        with pytest.raises(StorageError, match="is missing"):
            read()


def test_a_handle_goes_on_once_its_repository_is_back(root: Path) -> None:
    repo = made(root)
    root.rename(root.with_name("elsewhere"))
    with pytest.raises(StorageError):
        CHANGES["commit"](repo)
    root.with_name("elsewhere").rename(root)
    repo.commit({"x": np.ones(20_000)}, step=3)
    assert [checkpoint.step for checkpoint in repo.log()] == [3, 2, 1]
    assert repo.verify().ok


class Emptied(LocalStorage):
    """A folder that is emptied right before a write, counted from 1."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.writes: list[str] = []
        self._at, self._counting = at, threading.Lock()

    def _count(self, key: str) -> None:
        with self._counting:
            self.writes.append(key)
            if len(self.writes) == self._at:
                empty(Path(self.url))

    def put(self, key: str, data: Any) -> None:
        self._count(key)
        super().put(key, data)

    @contextmanager
    def batch(self) -> Iterator[LocalStorage]:
        yield self

    def stage(self, data: Any, **options: Any) -> Any:
        self._count("an object")
        return super().stage(data, **options)

    def create(self, key: str, data: Any, **options: Any) -> bool:
        self._count(key)
        return super().create(key, data, **options)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("at", range(1, 7))
def test_no_commit_is_acknowledged_whose_repository_is_emptied_meanwhile(
    root: Path, at: int
) -> None:
    made(root)
    storage = Emptied(root, at)
    repo = ckptstore.Repository(storage, Marker.decode((root / MARKER_KEY).read_bytes()))
    with pytest.raises(CkptStoreError):
        repo.commit({"x": np.ones(50_000), "y": np.full(50_000, 2)})
    assert len(storage.writes) >= at
    assert (at == 6) == storage.writes[-1].startswith("ops/")
    assert not list(root.glob("ops/*"))


class Replaced(Emptied):
    """A folder in whose place another repository comes right before a write."""

    def _count(self, key: str) -> None:
        self.writes.append(key)
        if len(self.writes) == self._at:
            root = Path(self.url)
            root.rename(root.with_name("elsewhere"))
            made(root)


@pytest.mark.usefixtures("one_thread")
def test_no_operation_goes_into_a_repository_that_came_in_its_place_meanwhile(root: Path) -> None:
    """The marker was compared a moment ago, as another writer had come first."""
    other = made(root)
    repo = ckptstore.Repository(Replaced(root, 1), Marker.decode((root / MARKER_KEY).read_bytes()))
    assert repo.resolve("main").step == 2
    other.commit({"x": np.ones(3)}, step=3)
    with pytest.raises(StorageError, match="another repository"):
        repo.commit({"x": np.ones(50_000)}, step=4)
    assert [checkpoint.step for checkpoint in ckptstore.open(root).log()] == [2, 1]
    assert len(list((root / "ops").iterdir())) == 2


def test_a_writer_makes_no_folder_in_a_folder_that_was_emptied(root: Path) -> None:
    made(root)
    with LocalStorage(root).batch() as storage:
        storage.put("objects/00/a", b"a")
        empty(root)
        for key in ("history/b", "objects/01/c"):
            with pytest.raises(CkptStoreError):
                storage.put(key, b"b")
    assert not list(root.iterdir())


@pytest.mark.parametrize("change", CHANGES)
def test_an_operation_costs_one_read_of_the_marker_and_a_read_none(change: str) -> None:
    storage = CountingStorage()
    repo = repository(storage)
    for step in range(3):
        repo.commit({"x": np.arange(20_000) + step}, step=step)
    storage.forget()
    CHANGES[change](repo)
    operations = sum(key.startswith("ops/") for key in storage.written)
    assert operations > 0
    assert storage.reads[MARKER_KEY] == operations
    storage.forget()
    repo.log()
    repo.branches()
    assert not storage.reads[MARKER_KEY]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_not_mounted_is_not_written_under(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", mount], check=False).returncode:
        pytest.skip("this system mounts nothing")
    repo = made(mount)
    subprocess.run(["umount", mount], check=True)
    with pytest.raises(StorageError, match="its disk is not mounted"):
        CHANGES["commit"](repo)
    assert not list(mount.iterdir())
