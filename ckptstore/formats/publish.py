"""Writing a file or folder whole or not at all: it gets its name when it is durable.

This is for exports, which any disk has to take: one without hard links, or without an fsync of
folders, where the name alone may be lost in a power failure. Repositories write through
`ckptstore.storage`, which asks more of a disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors import StorageError
from ckptstore.storage.temporary import UNLOCKED_SECONDS, hold, is_free, new_name

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = ".ckptstore-"  # of a folder in which an export is being written
CONTENT = "new"  # what is being written there
FORMER = "former"  # a folder that it replaces

# How a folder answers that has no fsync (FUSE, SMB), or that this user may not open. Never EIO.
_NO_FSYNC = frozenset({errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES})


def check_room(folder: Path, size: int, *, what: str) -> None:
    """StorageError unless the disk of a folder has room, before anything is written.

    Args:
        folder: Where to write.
        size: The bytes to write, at the least.
        what: Names them in the error.
    """
    disk = shutil.disk_usage(folder)
    if size > disk.free and disk.total:  # some file systems state nothing
        raise StorageError(
            f"{what} would have {size:,} bytes, and {folder} has room for {disk.free:,}. Choose "
            "some of the arrays (include), or a folder on another disk."
        )


@contextmanager
def published(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a free path beside another one, and give what was written there the other's name.

    Args:
        path: The name to give.
        overwrite: Whether to replace a file, or a folder by a folder.

    Raises:
        FileExistsError: The name is taken.
        OSError: It could not be written.
    """
    path = path.absolute()
    _sweep(path.parent)
    with _held_folder(path.parent) as folder:
        temporary = folder / CONTENT
        yield temporary
        _flush(temporary)
        _rename(temporary, path, overwrite=overwrite)
    _flush_folder(path.parent)


@contextmanager
def _held_folder(parent: Path) -> Iterator[Path]:
    """Yield a new folder that is locked while this process lives, and remove it in the end."""
    folder = parent / f"{PREFIX}{new_name()}"
    with ExitStack() as stack:
        stack.callback(_remove, folder)
        folder.mkdir(mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        hold(descriptor)
        yield folder


def _sweep(parent: Path) -> None:
    """Remove what killed exports left in a folder, as far as this is known for sure (ADR 0027).

    A folder that was being replaced is left: it may be the only one of its content.
    """
    now = time.time()
    with suppress(OSError), os.scandir(parent) as found:
        descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for item in found:
                if (
                    item.name.startswith(PREFIX)
                    and now - item.stat(follow_symlinks=False).st_mtime > UNLOCKED_SECONDS
                    and is_free(item.name, within=descriptor, prefix=PREFIX)
                    and not os.path.lexists(os.path.join(item.path, FORMER))
                ):
                    _remove(Path(item.path))
        finally:
            os.close(descriptor)


def _flush(path: Path) -> None:
    """Make a file, or a folder with all that it holds, durable."""
    if path.is_dir():
        for inside in path.iterdir():
            _flush(inside)
        _flush_folder(path)
    else:
        _fsync(path)


def _flush_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    try:
        _fsync(path)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if not temporary.is_dir():
        if overwrite:
            temporary.replace(path)
        else:
            _rename_file(temporary, path)
    elif not path.exists():
        temporary.rename(path)
    elif not overwrite:
        raise FileExistsError
    else:
        _replace_folder(temporary, path)


def _rename_file(temporary: Path, path: Path) -> None:
    """Give a file a name that must be free."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        _rename_over_claim(temporary, path)
    else:
        temporary.unlink()


def _rename_over_claim(temporary: Path, path: Path) -> None:
    """Give a file a name that an empty file has taken first."""
    claim = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    try:
        if not _is_empty_claim(claim, path):
            raise FileExistsError
        temporary.replace(path)
    except OSError:
        if _is_empty_claim(claim, path):
            path.unlink()
        raise
    finally:
        os.close(claim)


def _is_empty_claim(claim: int, path: Path) -> bool:
    """Return whether a name still belongs to the empty file that took it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(claim)) and status.st_size == 0


def _replace_folder(temporary: Path, path: Path) -> None:
    """Replace a folder, which is back under its name if that fails."""
    former = temporary.with_name(FORMER)
    try:
        path.rename(former)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(path)  # a folder in the lower layer of an overlay has no rename
        temporary.rename(path)
        return
    try:
        temporary.rename(path)
        shutil.rmtree(former)
    except BaseException:  # a signal too
        if path.exists():
            _remove(former)
        else:
            former.rename(path)
        raise


def _remove(path: Path) -> None:
    """Remove what is left of a file or folder that did not get its name."""
    if os.path.isdir(path):  # unlike the method, never raises
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
