"""Writing a file or folder whole or not at all: it gets its name when it is durable.

This is for exports, which any disk has to take: one without hard links, or without an fsync of
folders, where the name alone may be lost in a power failure. Repositories write through
`ckptstore.storage`, which asks more of a disk.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ckptstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
    temporary = path.with_name(f".ckptstore-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        yield temporary
        _flush(temporary)
        _rename(temporary, path, overwrite=overwrite)
        _flush_folder(path.parent)
    finally:
        _remove(temporary)


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
    former = temporary.with_name(f"{temporary.name}.former")
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
