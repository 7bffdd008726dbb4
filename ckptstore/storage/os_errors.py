"""Errors of the operating system, translated to those of this package."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors import (
    CkptStoreError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ckptstore.storage.temporary import TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

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


class Translated:
    """Translates errors of the operating system, naming what they concern.

    As a context it costs a storage call nothing, unlike a generator or a path made in advance.
    """

    __slots__ = ("_root", "_what", "_writing")

    def __init__(self, what: str, root: str, *, writing: bool) -> None:
        self._what, self._root, self._writing = what, root, writing

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Raise the translation of an error."""
        if isinstance(error, OSError):
            raise self._translation(error) from error

    def _translation(self, error: OSError) -> CkptStoreError:
        what, path = self._what, Path(self._root)
        root = self._root if len(self._root) <= 300 else f"{self._root[:300]}…"
        if isinstance(error, FileNotFoundError):
            if not what:
                return StorageError(
                    f"{root} could not be made: the file system of {_nearest(path)} makes no "
                    "folder there. Choose another place."
                )
            if self._writing:
                return StorageError(f"{what} could not be written: {root} is gone.")
            return NotFoundError(f"{what} is not in {root}.")
        nearest = _nearest(path)
        if not nearest.is_dir():
            return InvalidInputError(f"{nearest} is a file; a folder is expected.")
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            return CorruptError(
                f"{what} in {root} is a link, a folder or a device where a file was written."
            )
        if error.errno == errno.EXDEV:
            return StorageError(
                f"{what} in {root} is on another file system than {TEMPORARY}/ there. Keep a "
                "repository on one."
            )
        subject, done = (f"{what} in {root}", "used") if what else (root, "made or used")
        hint = _HINTS.get(error.errno or 0, "")
        return StorageError(f"{subject} could not be {done}: {error.strerror or error}.{hint}")


def translated(what: str, root: str, *, writing: bool = False) -> Translated:
    """Translate errors of the operating system, naming what they concern.

    what: a file or folder of the repository; "" for its root, which is being made.
    """
    return Translated(what, root, writing=writing)


def _nearest(path: Path) -> Path:
    """Return a path, or the nearest one above it that is there and can be seen."""
    try:
        return next((place for place in (path, *path.parents) if place.exists()), path)
    except OSError:  # a folder above must not be searched
        return Path("/")
