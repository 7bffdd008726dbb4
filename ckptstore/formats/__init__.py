"""Files that people have already, in and out: .safetensors, and torch's .pt and .pth.

Nothing here runs code from a file: .pt is read with `weights_only=True`, and there is no fallback.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, NotFoundError, StorageError, shown
from ckptstore.formats import safetensors, torch_file

if TYPE_CHECKING:
    from types import ModuleType

_BY_SUFFIX: dict[str, ModuleType] = {
    ".safetensors": safetensors,
    ".pt": torch_file,
    ".pth": torch_file,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What a file held: a state to commit, and what else the file said."""

    state: Any
    meta: dict[str, Any] = field(default_factory=dict)


def has_format(path: str | Path) -> bool:
    """True when the suffix says how to read it."""
    return Path(path).suffix.lower() in _BY_SUFFIX


def read_file(path: str | Path) -> FileState:
    """Read a checkpoint file; the suffix says how. InvalidInputError when it is not what its suffix says."""
    path = _path(path)
    module = _module(path)
    try:
        if not path.exists():
            raise NotFoundError(f"{path} is not there.")
        if not path.is_file():
            raise InvalidInputError(f"{path} is not a regular file.")
        state, meta = module.read(path)
    except OSError as error:
        raise StorageError(f"{shown(str(path))} could not be read: {error.strerror}.") from error
    return FileState(state=state, meta={"file": path.name, **meta})


def write_file(
    state: Any, path: str | Path, *, overwrite: bool = False, drop_values: bool = False
) -> None:
    """Write a state to a file, whole or not at all; the suffix says how.

    drop_values: leave out plain values when the format has no place for them (.safetensors).
    """
    path = _path(path)
    module = _module(path)
    check_free(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(6)}")
    try:
        module.write(state, temporary, drop_values=drop_values)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    except FileExistsError as error:
        raise InvalidInputError(
            f"{path} exists. Pass another name, or overwrite it on purpose (--force)."
        ) from error
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def check_free(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a destination that cannot be written, before anything is read."""
    path = _path(path)
    _module(path)
    if os.path.lexists(path) and not overwrite:
        raise InvalidInputError(
            f"{path} exists. Pass another name, or overwrite it on purpose (--force)."
        )
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder.")
    if not path.absolute().parent.is_dir():
        raise NotFoundError(f"The folder {path.absolute().parent} is not there.")


def _path(path: object) -> Path:
    if not isinstance(path, (str, Path)):
        raise InvalidInputError(f"{shown(path)} is not the path of a file.")
    return Path(path)


def _module(path: Path) -> ModuleType:
    try:
        return _BY_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_BY_SUFFIX)
        raise InvalidInputError(
            f"{shown(path.name)} has no suffix that says how to read or write it: {known}."
        ) from None
