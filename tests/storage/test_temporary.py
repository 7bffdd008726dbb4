"""What dead writers left is removed soon; what a living process is writing never is."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from ckptstore.errors import StorageError
from ckptstore.storage import LocalStorage, writeback
from ckptstore.storage.local import RESERVE
from ckptstore.storage.temporary import UNLOCKED_SECONDS, UNTOUCHED_SECONDS, new_name
from ckptstore.testing.storage_suite import KEY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

A_WHILE = UNLOCKED_SECONDS + 5
SIZE = 1000


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path)
    storage.prepare(set())
    storage.hold_reserve()
    return storage


def age(folder: Path, seconds: float) -> None:
    """Make every temporary file look as if it had last been written to so long ago."""
    for path in (folder / "tmp").iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder / "tmp")) - set(RESERVE)


def die_writing(storage: LocalStorage) -> None:
    """Kill a process that has written a temporary file and not renamed it yet."""
    child = os.fork()
    if child == 0:
        try:
            storage.stage(bytes(SIZE))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_a_killed_writer_left_is_removed_after_a_minute(
    storage: LocalStorage, tmp_path: Path
) -> None:
    die_writing(storage)
    assert [item.is_left for item in storage.temporaries()] == [False]  # nothing is sure yet
    assert storage.sweep() == 0
    age(tmp_path, A_WHILE)
    assert storage.temporaries() == ((SIZE, True),)
    assert storage.sweep() == SIZE
    assert names(tmp_path) == set()


def test_what_a_living_process_is_writing_stays(storage: LocalStorage, tmp_path: Path) -> None:
    staged = storage.stage(bytes(SIZE))
    age(tmp_path, A_WHILE)
    assert storage.temporaries() == ((SIZE, False),)
    assert storage.sweep() == 0
    staged.put(KEY)
    assert storage.size(KEY) == SIZE


def test_what_is_dropped_is_gone(storage: LocalStorage, tmp_path: Path) -> None:
    storage.stage(bytes(SIZE)).drop()
    assert names(tmp_path) == set()


def test_an_error_of_early_writeback_fails_the_file(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may not report it again to the fsync."""
    for number, fails in ((errno.EIO, True), (errno.ENOSPC, True), (errno.ENOSYS, False)):
        monkeypatch.setattr(writeback, "_sync_file_range", lambda number=number: lambda fd: number)
        with pytest.raises(StorageError) if fails else nullcontext():
            storage.stage(b"x").drop()
        assert names(tmp_path) == set()


def test_it_is_locked_until_it_has_its_name(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be suspended between writing the last byte and giving the name."""
    swept = []
    for name in ("rename", "link"):
        call = getattr(os, name)

        def after_a_sweep(*paths: str, call: Callable[..., None] = call, **options: int) -> None:
            monkeypatch.undo()
            age(tmp_path, A_WHILE)
            swept.append(storage.sweep())
            call(*paths, **options)

        monkeypatch.setattr(os, name, after_a_sweep)
        storage.create(f"ops/{name}", b"x") if name == "link" else storage.put(KEY, b"x")
        monkeypatch.undo()
    assert swept == [0, 0]


def test_names_that_say_nothing_about_their_writer_wait_for_a_day(
    storage: LocalStorage, tmp_path: Path
) -> None:
    """Those of other hosts, of earlier boots and of releases that did not lock."""
    boot, rest = new_name().split("-", maxsplit=1)
    others = {f"{'0' * len(boot)}-{rest}", rest}
    for name in others:
        (tmp_path / "tmp" / name).write_bytes(b"xy")
    age(tmp_path, UNTOUCHED_SECONDS - 60)
    assert [item.is_left for item in storage.temporaries()] == [False, False]
    assert storage.sweep() == 0
    age(tmp_path, UNTOUCHED_SECONDS + 60)
    assert storage.sweep() == 4
    assert names(tmp_path) == set()


def test_a_file_system_without_locks_waits_for_a_day(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    storage.put(KEY, b"x")
    (tmp_path / "tmp" / new_name()).write_bytes(b"x")
    age(tmp_path, A_WHILE)
    assert storage.sweep() == 0
    age(tmp_path, UNTOUCHED_SECONDS + 60)
    assert storage.sweep() == 1


def test_links_and_folders_in_tmp_are_left_alone(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"x")
    (tmp_path / "tmp" / new_name()).symlink_to(tmp_path / "outside")
    (tmp_path / "tmp" / new_name()).mkdir()
    os.utime(tmp_path / "outside", (0, 0))
    before = names(tmp_path)
    assert storage.temporaries() == ()
    assert storage.sweep() == 0
    assert names(tmp_path) == before


def test_the_clock_needs_no_new_file(storage: LocalStorage, tmp_path: Path) -> None:
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", lambda *a, opened=os.open, **o: made.append(a) or opened(*a, **o))
        before = storage.now()
    assert not any(flags & os.O_CREAT for _, flags, *_ in made)
    storage.put(KEY, b"x")
    assert before <= (tmp_path / KEY).stat().st_mtime <= storage.now()


def test_a_copy_takes_no_room_or_copies_where_it_must(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.put(KEY, b"x")
    storage.copy(KEY, "history/linked")
    assert (tmp_path / "history/linked").samefile(tmp_path / KEY)

    def link(*paths: str, **folders: int) -> None:
        raise PermissionError(1, "Operation not permitted")  # another user's file

    monkeypatch.setattr(os, "link", link)
    storage.copy(KEY, "history/copied")
    assert not (tmp_path / "history/copied").samefile(tmp_path / KEY)
    assert storage.get("history/copied", bytes_max=1) == b"x"


def test_the_reserve_is_of_files_that_hold_room(storage: LocalStorage, tmp_path: Path) -> None:
    """One that was cut short, by a full disk or a power failure, is written again."""
    files = [tmp_path / "tmp" / name for name in RESERVE]
    first = [path.read_bytes() for path in files]
    assert sum(map(len, first)) == 64 << 10
    files[1].write_bytes(b"")
    files[2].unlink()
    storage.hold_reserve()
    assert [path.stat().st_size for path in files] == [len(data) for data in first]
    assert files[0].read_bytes() == first[0]
    assert storage.release_reserve()
    assert names(tmp_path) == set()
    assert not any(path.exists() for path in files)
