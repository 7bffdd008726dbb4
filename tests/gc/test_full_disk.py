"""gc on a full disk: with no byte, no inode or neither left it frees, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore import StorageError
from ckptstore.gc import remaining
from ckptstore.retention import MaxToKeep
from ckptstore.storage.local import RESERVE
from ckptstore.store.catalog import Catalog
from tests.helpers.crash import strace
from tests.helpers.crash.checker import equal
from tests.helpers.crash.parts import some
from tests.helpers.crash.victim import CHUNK_BYTES, state
from tests.helpers.equality import difference
from tests.helpers.small_disk import KINDS, empty, fill, small_disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ckptstore import Repository

CHUNK = 64 << 10
COUNT = 6
PARTS = 4  # of long tests
OWN_BYTES = 400_000


def arrays(number: int) -> dict[str, Any]:
    """A state that shares one array with all others."""
    own = np.random.default_rng(number).integers(0, 255, OWN_BYTES, dtype=np.uint8)
    return {"own": own, "shared": np.arange(30_000), "number": number}


def prepared(url: Path | str, number: int = COUNT) -> Repository:
    repo = ckptstore.init(url, chunk_size=CHUNK)
    for step in range(number):
        repo.commit(arrays(step), step=step, metrics={"loss": 1.0})
    return repo


def assert_kept(repo: Repository, *, kept: int, why: str = "newest") -> None:
    """Only the newest are left, bit for bit; of the others when and why they expired."""
    log = repo.log()
    assert repo.verify().problems == ()
    assert [c.step for c in log if not c.expired] == [c.step for c in log[:kept]]
    for found in log:
        if found.expired:
            with pytest.raises(ckptstore.ExpiredError, match=why):
                repo.checkout(found.id)
        else:
            assert difference(arrays(found.step or 0), repo.checkout(found.id)) is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["bytes", "inodes", "both"])
def test_a_gc_on_a_full_disk_frees(kind: str, what: str, tmp_path: Path) -> None:
    with small_disk(kind, tmp_path) as disk:
        repo = prepared(disk / "store")
        fill(disk, what=what)
        with pytest.raises(StorageError) as full:
            repo.commit(arrays(50))
        assert full.value.is_full
        report = ckptstore.open(repo.url).gc(MaxToKeep(1), grace=0)
        assert len(report.expired) == COUNT - 1
        assert report.bytes > (COUNT - 1) * OWN_BYTES
        assert_kept(repo, kept=1)
        assert names(disk / "store/tmp") == set(RESERVE)
        repo.commit(arrays(60), step=60)
        assert_kept(repo, kept=2)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_gc_without_a_single_inode_frees(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, but the disk is only imagined, so that no root is needed."""
    repo = prepared(tmp_path / "store")
    Inodes(tmp_path, error).limit(monkeypatch)
    with pytest.raises(StorageError) as full:
        repo.commit(arrays(50))
    assert full.value.is_full
    report = repo.gc(MaxToKeep(1), grace=0)
    assert (len(report.expired), report.bytes > OWN_BYTES) == (COUNT - 1, True)
    assert_kept(repo, kept=1)
    assert names(tmp_path / "store/tmp") == set(RESERVE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_or_tag_that_is_deleted_on_a_full_disk_leaves_the_gc_its_room(
    kind: str, tmp_path: Path
) -> None:
    with small_disk(kind, tmp_path) as disk:
        repo = prepared(disk / "store")
        repo.tag("v1", "main~1")
        for step in range(3):
            repo.commit(arrays(70 + step), step=step, branch="mistake")
        fill(disk, what="both")
        with pytest.raises(StorageError):
            repo.tag("v2")
        repo.delete_tag("v1")
        repo.delete_branch("mistake")
        assert "delete" in repo._oplog.newest().done
        report = repo.gc(MaxToKeep(1), grace=0)
        assert len(report.expired) == COUNT - 1 + 3
        assert_kept(repo, kept=1)


def test_many_checkpoints_expire_on_a_full_disk_a_few_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operation condemns no more than there is room for."""
    monkeypatch.setattr(remaining, "LEAST_OBJECTS", 2)
    repo = prepared(tmp_path / "store", 12)
    Inodes(tmp_path, errno.ENOSPC).limit(monkeypatch)
    before = repo._oplog.newest().seq
    repo.gc(MaxToKeep(1), grace=0)
    parts = [op.condemned for op in repo._oplog.between(before + 1, repo._oplog.newest())]
    assert parts[0] is not None
    assert (len(parts[0].checkpoints), 0 < len(parts[0].digests) <= 64) == (1, True)
    assert len(parts) < 6
    assert_kept(repo, kept=1)


def test_checkpoints_that_free_nothing_alone_expire_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same state again and again: only the last of them to go frees its arrays."""
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    for step in range(5):
        repo.commit(arrays(1), step=step)
    repo.commit(arrays(2), step=5)
    Inodes(tmp_path, errno.ENOSPC).limit(monkeypatch)
    report = repo.gc(MaxToKeep(1), grace=0)
    assert (len(report.expired), report.bytes > OWN_BYTES) == (5, True)
    assert repo.verify().ok
    assert [c.expired for c in repo.log()] == [False] + 5 * [True]


def test_leftovers_and_old_operations_make_room_where_there_is_no_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a repository that an earlier release made."""
    repo = prepared(tmp_path / "store")
    repo._storage.release_reserve()
    inodes = Inodes(tmp_path, errno.ENOSPC)
    inodes.limit(monkeypatch)
    with pytest.raises(StorageError, match=r"Delete some other file there.*No space left"):
        repo.gc(MaxToKeep(1), grace=0)
    assert repo.verify().ok
    for number in range(4):
        left = tmp_path / "store/tmp" / f"1-{number}"
        inodes.free += 1
        left.touch()
        os.utime(left, (0, 0))
    report = repo.gc(MaxToKeep(1), grace=0)
    assert len(report.expired) == COUNT - 1
    assert_kept(repo, kept=1)
    assert names(tmp_path / "store/tmp") == set(RESERVE)


def test_reasons_for_which_there_was_no_room_are_recorded_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo = prepared("memory://reasons")
    record, left = Catalog.record, [1]

    def record_later(catalog: Catalog, expiries: Any) -> None:
        if left:
            left.pop()
            raise StorageError("no room") from OSError(errno.ENOSPC, "No space left on device")
        record(catalog, expiries)

    monkeypatch.setattr(Catalog, "record", record_later)
    repo.gc(MaxToKeep(1), grace=0)
    assert not left
    assert_kept(repo, kept=1)


@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
@pytest.mark.parametrize("lasts", [False, True])
def test_a_disk_that_becomes_full_at_any_call_of_a_gc_costs_nothing(
    lasts: bool, part: int, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lasts: until the end of the gc, whatever it deletes. Else for one call only."""
    base, url = scratch / "base", scratch / "store"
    prepared(base, 3)
    for number in count(part, PARTS):
        shutil.rmtree(url, ignore_errors=True)
        shutil.copytree(base, url)
        repo = ckptstore.open(url)
        with monkeypatch.context() as patch, suppress_full():
            faults = Faults(number, lasts=lasts)
            faults.inject(patch)
            repo.gc(MaxToKeep(1), grace=0)
        assert repo.verify().problems == (), f"call {number}"
        repo.gc(MaxToKeep(1), grace=0)
        assert [c.expired for c in repo.log()] == [False, True, True], f"call {number}"
        assert repo.verify().problems == ()
        assert difference(arrays(2), repo.checkout()) is None
        assert repo._oplog.newest().condemned is None
        if not faults.were_met:
            break
    assert number > 20


@pytest.mark.crash
@pytest.mark.usefixtures("one_thread")
@strace.needed
@pytest.mark.parametrize("part", some(range(1), range(PARTS)))
def test_a_gc_killed_on_a_full_disk_is_finished_there_by_the_next(
    part: int, scratch: Path, record_property: Callable[[str, object], None]
) -> None:
    base = scratch / "base"
    repo = ckptstore.init(base, chunk_size=CHUNK_BYTES)
    for n in range(1, COUNT + 1):
        repo.commit(state(n), step=n)

    def collect(**options: Any) -> strace.Run:
        """Fill the disk around a copy, and collect there; the log of the calls lies elsewhere."""
        shutil.rmtree(url, ignore_errors=True)
        shutil.copytree(base, url)
        fill(disk, what="both")
        return strace.run(scratch / "log", url, 1, 0, "--keep", 1, **options)

    with small_disk("tmpfs", scratch) as disk:
        url = disk / "store"
        recorded = collect()
        assert recorded.status == 0
        points = strace.points(recorded, disk)
        assert len(points) > 40
        for name, number in points[part::PARTS]:
            empty(disk)
            ended = collect(trace=[name], inject=f"{name}:signal=KILL:when={number}")
            assert ended.status == -signal.SIGKILL
            repo = ckptstore.open(url)
            assert repo.verify().problems == (), f"killed at {name} {number}"
            repo.gc(MaxToKeep(1), grace=0)
            log = repo.log()
            assert [c.expired for c in log] == [False] + [True] * (COUNT - 1)
            assert repo.verify().problems == ()
            assert equal(repo.checkout(), state(COUNT))
        empty(disk)
    record_property("kills", len(points[part::PARTS]))


class Inodes:
    """A disk that has no inode left until one is freed. Links need none, as on most disks."""

    def __init__(self, folder: Path, error: int) -> None:
        self.folder, self.error, self.free = folder, error, 0
        self.open, self.mkdir, self.unlink = os.open, os.mkdir, os.unlink

    def limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "open", self._open)
        monkeypatch.setattr(os, "mkdir", self._mkdir)
        monkeypatch.setattr(os, "unlink", self._unlink)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            try:
                os.stat(path, dir_fd=dir_fd)
            except FileNotFoundError:
                self._take()
        return self.open(path, flags, mode, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._take()
        self.mkdir(path, mode, dir_fd=dir_fd)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        is_last = os.stat(path, dir_fd=dir_fd).st_nlink == 1
        self.unlink(path, dir_fd=dir_fd)
        self.free += is_last

    def _take(self) -> None:
        if not self.free:
            raise OSError(self.error, os.strerror(self.error))
        self.free -= 1


class Faults:
    """A disk that is full at one call, or from that call on."""

    CALLS = ("open", "write", "fsync", "link", "mkdir")

    def __init__(self, number: int, *, lasts: bool) -> None:
        self.number, self.lasts, self.seen, self.were_met = number, lasts, 0, False

    def inject(self, patch: pytest.MonkeyPatch) -> None:
        for name in self.CALLS:
            patch.setattr(os, name, partial(self._call, getattr(os, name)))

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if call is not os.open.args[0] or arguments[1] & os.O_CREAT:  # type: ignore[attr-defined]
            self.seen += 1
            if self.seen == self.number + 1 or (self.lasts and self.seen > self.number):
                self.were_met = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments, **options)


@contextmanager
def suppress_full() -> Iterator[None]:
    """Pass over the error of a full disk, and no other."""
    try:
        yield
    except StorageError as error:
        if not error.is_full:
            raise


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
