"""LocalStorage on disks that lack what a repository needs, and the modes of what it makes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import StorageError
from ckptstore.retention import MaxToKeep
from ckptstore.storage import LocalStorage
from ckptstore.storage.local import RESERVE
from tests.helpers import disks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STATE = {"w": np.arange(30_000.0), "b": np.zeros(3), "lr": 0.1}
LACKING = [
    (disks.without_links(), "hard links"),
    (disks.without_links(errno.ENOTSUP), "hard links"),
    (disks.without_links(errno.ENOSYS), "hard links"),
    (disks.without_folder_fsync(), "an fsync of folders"),
    (disks.without_folder_fsync(errno.EBADF), "an fsync of folders"),
    (patch("fcntl.flock", disks.failing(errno.ENOSYS)), "locks"),
    (patch("fcntl.flock", disks.failing(errno.ENOLCK)), "locks"),
]


@pytest.mark.parametrize(("disk", "lack"), LACKING)
@pytest.mark.parametrize("there", ["", "a", "a/store", "a/store/tmp"])
def test_no_repository_is_made_where_the_disk_lacks_what_it_needs(
    scratch: Path, disk: Any, lack: str, there: str
) -> None:
    """The reason is given, and nothing is left that was not there."""
    (scratch / there).mkdir(parents=True, exist_ok=True)
    before = sorted(scratch.rglob("*"))
    with disk, pytest.raises(StorageError, match=f"without {lack} .* Use another disk"):
        ckptstore.init(scratch / "a/store")
    assert sorted(scratch.rglob("*")) == before


def test_no_repository_is_made_where_creating_replaces(scratch: Path) -> None:
    def link(source: str, target: str, **options: Any) -> None:
        os.rename(
            source, target, src_dir_fd=options["src_dir_fd"], dst_dir_fd=options["dst_dir_fd"]
        )
        os.close(os.open(source, os.O_CREAT, dir_fd=options["src_dir_fd"]))

    with patch("os.link", link), pytest.raises(StorageError, match="commits would be lost"):
        ckptstore.init(scratch / "store")
    assert os.listdir(scratch) == []


def test_what_init_tries_leaves_nothing_and_disturbs_nobody(scratch: Path) -> None:
    """Not even where a repository is, while its gc holds the lock."""
    repo = ckptstore.init(scratch)
    assert sorted(os.listdir(scratch)) == ["ckptstore.json", "tmp"]
    assert set(os.listdir(scratch / "tmp")) == set(RESERVE)
    fd = os.open(scratch, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(ckptstore.ConflictError, match="already a repository"):
        ckptstore.init(scratch)
    os.close(fd)
    repo.commit(STATE)


@pytest.mark.parametrize(("disk", "lack"), LACKING[:5])
def test_a_repository_that_was_copied_to_such_a_disk_is_read_and_not_written(
    scratch: Path, disk: Any, lack: str
) -> None:
    repo = ckptstore.init(scratch)
    first = repo.commit(STATE)
    with disk:
        with pytest.raises(StorageError, match=f"without {lack}"):
            ckptstore.open(scratch).commit({"w": np.ones(5)})
        assert ckptstore.open(scratch).resolve("main").id == first.id
        assert ckptstore.open(scratch).verify().ok


@pytest.mark.parametrize("call", ["os.rename", "os.link"])
def test_a_repository_on_two_file_systems_is_told_so(scratch: Path, call: str) -> None:
    repo = ckptstore.init(scratch)
    with (
        patch(call, disks.failing(errno.EXDEV)),
        pytest.raises(StorageError, match="on another file system than tmp/ there"),
    ):
        repo.commit(STATE)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002, 0o000])
@pytest.mark.parametrize(
    ("root", "folders", "files"),
    [(0o2775, 0o775, 0o644), (0o2770, 0o770, 0o640), (0o755, 0o755, 0o644), (0o700, 0o700, 0o600)],
)
def test_the_modes_of_what_is_made_follow_the_root_s(
    scratch: Path, mask: int, root: int, folders: int, files: int
) -> None:
    """Whatever the umask: a group writes folders of each other and reads all files."""
    scratch.chmod(root)
    with umask(mask):
        repo = ckptstore.open(scratch, create=True)
        for step in range(3):
            repo.commit({**STATE, "step": step}, step=step)
        repo.gc(MaxToKeep(1))
    modes = {path: path.stat().st_mode for path in scratch.rglob("*")}
    wrong = {
        path: oct(mode)
        for path, mode in modes.items()
        if mode & 0o777 != (folders if stat.S_ISDIR(mode) else files)
    }
    assert wrong == {}
    assert len(modes) > 15


def test_a_mode_costs_no_call_where_the_umask_gives_it(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[int] = []
    monkeypatch.setattr(os, "fchmod", lambda fd, mode: changed.append(mode))
    scratch.chmod(0o755)
    with umask(0o022):
        LocalStorage(scratch).put("objects/ab/cd", b"x")
    assert changed == []
    with umask(0o077):
        LocalStorage(scratch).put("objects/ef/cd", b"x")
    assert len(changed) == 2


def test_a_whole_disk_may_become_a_repository(scratch: Path) -> None:
    """Even a new one has a folder in it, which nobody but root may open."""
    (scratch / "lost+found").mkdir(mode=0)
    repo = ckptstore.init(scratch)
    repo.commit(STATE)
    assert repo.verify().ok
    assert repo.gc(grace=0).objects == 0
    assert (scratch / "lost+found").is_dir()
    assert repo.usage().objects > 0


def test_a_folder_that_another_user_has_just_made_is_used_once_it_has_its_mode(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty until then; one that has no such mode for good is used as it is."""
    scratch.chmod(0o775)
    (scratch / "objects/ab").mkdir(parents=True)
    for folder in (scratch / "objects", scratch / "objects/ab"):
        folder.chmod(0o700)
    waits: list[float] = []

    def grant(seconds: float) -> None:
        waits.append(seconds)
        (scratch / "objects/ab").chmod(0o775)

    monkeypatch.setattr("os.fchmod", disks.failing(errno.EPERM))
    monkeypatch.setattr("ckptstore.storage.folders.time.sleep", grant)
    (scratch / "tmp").mkdir(mode=0o775)
    (scratch / "tmp").chmod(0o775)
    LocalStorage(scratch).put("objects/ab/cd", b"x")
    assert len(waits) == 1
    assert (scratch / "objects/ab/cd").read_bytes() == b"x"


def test_a_batch_makes_nothing_where_what_was_written_is_gone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    storage.prepare({"objects/"})
    storage.put("objects/ab/x", b"x")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").mkdir()
    with storage.batch() as batch, pytest.raises(StorageError, match="is empty"):
        batch.stage(b"y")
    assert list((tmp_path / "store").iterdir()) == []
