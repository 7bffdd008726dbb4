"""Folders of a local storage: opened without following links, made with a mode, listed, flushed."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError
from ckptstore.storage.os_errors import required
from ckptstore.storage.protocol import Listed, check_key
from ckptstore.storage.temporary import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GRANT_POLLS, GRANT_POLL_SECONDS = 100, 0.01
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(name: str, *, make: int | None, within: int | None = None) -> int:
    """Open a folder that is no link, and make a missing one with a mode, if one is given.

    An empty folder without that mode was just made by another user, who is about to set it.
    """
    for _ in range(0 if make is None else GRANT_POLLS):
        assert make is not None
        try:
            fd = os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=within)
        except FileNotFoundError:
            with suppress(FileExistsError):  # another process made it just now
                os.mkdir(name, make, dir_fd=within)
            continue
        except PermissionError:
            pass
        else:
            if grant(fd, make) or os.listdir(fd):
                return fd
            os.close(fd)
        time.sleep(GRANT_POLL_SECONDS)
    return os.open(name, FOLDER | os.O_NOFOLLOW, dir_fd=within)


def grant(fd: int, mode: int) -> bool:
    """Give a file or folder the permissions that the umask took away; False if that is refused."""
    given = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & ~given:
        try:
            os.fchmod(fd, given | mode)
        except PermissionError:  # another user made it
            return False
    return True


def fsync_folder(path: Path, root: str) -> None:
    """Fsync a folder above the root, or the root itself."""
    fd = os.open(path, FOLDER)
    try:
        with required("an fsync of folders", root):
            os.fsync(fd)
    finally:
        os.close(fd)


def parents_on_device(root: Path) -> Iterator[Path]:
    """Yield the folders above, up to the mount point.

    Any of them may be new and not yet flushed by the process that made it.
    """
    device = root.stat().st_dev
    return takewhile(lambda folder: folder.stat().st_dev == device, root.parents)


def folders_above(key: str) -> Iterator[tuple[str, ...]]:
    """Yield the folders that hold a key, from the root down, each as its parts."""
    parts = tuple(key.split("/")[:-1])
    for length in range(len(parts) + 1):
        yield parts[:length]


def walk(fd: int, prefix: str) -> Iterator[Listed]:
    """List every key below a folder."""
    for key, entry in entries_below(fd, prefix):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted since
            continue
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        yield Listed(key, size, status.st_mtime)


def entries_below(fd: int, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """List every key below a folder, with its entry, of which a look is taken before the next."""
    with os.scandir(fd) as entries:
        for entry in entries:
            key = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False) and _may_hold_keys(key):
                if prefix or entry.name != TEMPORARY:
                    try:
                        inner = os.open(entry.name, FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:  # deleted since
                        continue
                    try:
                        yield from entries_below(inner, f"{key}/")
                    finally:
                        os.close(inner)
            else:
                yield key, entry


def _may_hold_keys(folder: str) -> bool:
    """True for a folder in which keys may be; others may not even be readable."""
    try:
        check_key(f"{folder}/key")
    except InvalidInputError:
        return False
    return True
