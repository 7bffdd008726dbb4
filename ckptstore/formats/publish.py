"""Writing a file or folder whole or not at all: it gets its name when it is durable.

This is for exports. Repositories write through `ckptstore.storage`.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
    finally:
        _remove(temporary)


def _flush(path: Path) -> None:
    """Make a file, or a folder with all that it holds, durable."""
    if path.is_dir():
        for inside in path.iterdir():
            _flush(inside)
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
            os.link(temporary, path)
    elif not path.exists():
        temporary.rename(path)
    elif not overwrite:
        raise FileExistsError
    else:
        _replace_folder(temporary, path)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Replace a folder, which is back under its name if that fails."""
    former = temporary.with_name(f"{temporary.name}.former")
    path.rename(former)
    try:
        temporary.rename(path)
    except OSError:
        former.rename(path)
        raise
    shutil.rmtree(former)


def _remove(path: Path) -> None:
    """Remove what is left of a file or folder that did not get its name."""
    if os.path.isdir(path):  # unlike the method, never raises
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
