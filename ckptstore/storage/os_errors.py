"""Errors of the operating system, translated to those of this package."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, StorageError
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


_HINTS = {
    errno.EMFILE: " Close some, or allow this process more (ulimit -n).",
    errno.ENFILE: " Close some, or allow this process more (ulimit -n).",
    errno.ENOSPC: " Free some space, or run gc, which works on a full disk.",
    errno.EDQUOT: " Free some space, or run gc, which works on a full disk.",
}


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
    """Translate errors of the operating system, naming what they concern.

    what: a file or folder of the repository; "" for its root, which is being made.
    """
    path = Path(root)
    root = root if len(root) <= 300 else f"{root[:300]}…"
    try:
        yield
    except FileNotFoundError as error:
        if not what:
            raise StorageError(
                f"{root} could not be made: the file system of {_nearest(path)} makes no folder "
                "there. Choose another place."
            ) from error
        if writing:
            raise StorageError(f"{what} could not be written: {root} is gone.") from error
        raise NotFoundError(f"{what} is not in {root}.") from error
    except OSError as error:
        nearest = _nearest(path)
        if not nearest.is_dir():
            raise InvalidInputError(f"{nearest} is a file; a folder is expected.") from error
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            raise CorruptError(
                f"{what} in {root} is a link, a folder or a device where a file was written."
            ) from error
        if error.errno == errno.EXDEV:
            raise StorageError(
                f"{what} in {root} is on another file system than {TEMPORARY}/ there. Keep a "
                "repository on one."
            ) from error
        subject, done = (f"{what} in {root}", "used") if what else (root, "made or used")
        hint = _HINTS.get(error.errno or 0, "")
        raise StorageError(
            f"{subject} could not be {done}: {error.strerror or error}.{hint}"
        ) from error


def _nearest(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there and can be seen."""
    try:
        return next((place for place in (path, *path.parents) if place.exists()), path)
    except OSError:  # a folder above must not be searched
        return Path("/")
