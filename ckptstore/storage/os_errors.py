"""Errors of the operating system, translated to those of this package."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, NotFoundError, StorageError
from ckptstore.storage.temporary import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator

# How a file system answers a call that it does not have.
_LACKING = frozenset(
    {
        *(errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF),
        *(errno.EMLINK, errno.ENOLCK),
    }
)


@contextmanager
def required(what: str, root: str) -> Iterator[None]:
    """Name what a file system lacks, instead of its answer to a call that it does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in _LACKING:
            raise
        raise StorageError(
            f"{root} is on a file system without {what} ({error.strerror}), which a repository "
            "needs. Use another disk; exports can be written to this one."
        ) from error


@contextmanager
def translated(what: str, root: str, *, writing: bool = False) -> Iterator[None]:
    """Translate errors of the operating system, naming what they concern."""
    root = root if len(root) <= 300 else f"{root[:300]}…"
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            raise StorageError(f"{what} could not be written: {root} is gone.") from error
        raise NotFoundError(f"{what} is not in {root}.") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            raise CorruptError(
                f"{what} in {root} is a link, a folder or a device where a file was written."
            ) from error
        if error.errno == errno.EXDEV:
            raise StorageError(
                f"{what} in {root} is on another file system than {TEMPORARY}/ there. Keep a "
                "repository on one."
            ) from error
        is_out_of_files = error.errno in (errno.EMFILE, errno.ENFILE)
        hint = " Close some, or allow this process more (ulimit -n)." if is_out_of_files else ""
        raise StorageError(
            f"{what} in {root} could not be used: {error.strerror or error}.{hint}"
        ) from error
