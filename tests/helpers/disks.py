"""The habits of other file systems, for the calls of this process."""

from __future__ import annotations

import errno
import io
import os
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

NOBODY = 65534

_fsync, _rename = os.fsync, os.rename


def failing(number: int) -> Callable[..., Any]:
    """A call that fails with this error."""

    def call(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def without_links(number: int = errno.EPERM) -> AbstractContextManager[object]:
    """No hard links, as on FAT, many SMB shares and drives in the cloud."""
    return patch("os.link", failing(number))


def without_folder_fsync(number: int = errno.EINVAL) -> AbstractContextManager[object]:
    """No fsync of folders, as on some SMB shares and FUSE file systems."""

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            failing(number)()
        _fsync(fd)

    return patch("os.fsync", fsync)


def without_renames_of(folder: Path) -> AbstractContextManager[object]:
    """No rename of a folder, as of one that is in the lower layer of an overlay."""

    def rename(source: Any, target: Any, **options: Any) -> None:
        if os.fspath(source) == os.fspath(folder):
            failing(errno.EXDEV)()
        _rename(source, target, **options)

    return patch("os.rename", rename)


@contextmanager
def without_case(folder: Path) -> Iterator[None]:
    """Names below a folder that differ by case are one, for opening files and making folders."""

    def folded(path: Any) -> Any:
        text = os.fspath(path)
        below = isinstance(text, str) and text.startswith(f"{folder}/")
        return f"{folder}{text[len(str(folder)) :].lower()}" if below else path

    def folding(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda path, *args, **options: call(folded(path), *args, **options)

    with ExitStack() as stack:
        for module, name in ((io, "open"), (os, "mkdir"), (os, "stat")):
            stack.enter_context(patch.object(module, name, folding(getattr(module, name))))
        yield


@contextmanager
def read_only() -> Iterator[None]:
    """Nothing can be made, changed or removed, as where a file system is mounted read-only."""
    refuse = failing(errno.EROFS)
    real = os.open

    def open_to_read(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            refuse()
        return real(path, flags, *args, **options)

    with ExitStack() as stack:
        stack.enter_context(patch("os.open", open_to_read))
        for name in ("link", "mkdir", "rename", "replace", "unlink", "utime"):
            stack.enter_context(patch.object(os, name, refuse))
        yield


@contextmanager
def as_stranger(folder: Path) -> Iterator[None]:
    """Act as another user, who may read what is in a folder and write nowhere."""
    if os.geteuid():
        pytest.skip("only root can act as another user")
    for place in (folder, *folder.parents):
        place.chmod(place.stat().st_mode | 0o055)
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
