"""Files and folders that people have already, in and out: .safetensors, .npz, .npy, .zarr, torch's .pt under all its suffixes,
and in only the folders of torch.distributed.checkpoint.

Nothing here runs code from a file: .pt is read with `weights_only=True`, and there is no fallback. Arrays are streamed both
ways: what is read holds arrays that read the file as they are wanted, and what is written is read a piece at a time. A module
of this package is imported when its format is met, so that nobody waits for a framework that theirs does not need.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import codecs
from ckptstore.arrays import source as arrays
from ckptstore.errors import InvalidInputError, NotFoundError, StorageError, shown
from ckptstore.formats import names as _names
from ckptstore.python_gc import paused_collector
from ckptstore.state.flatten import flatten
from ckptstore.zarr.hierarchy import ZarrValues

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

__all__ = ["FileState", "check_free", "has_format", "named", "read_file", "write_file"]

SAFETENSORS = ".safetensors"
_DCP = "ckptstore.formats.dcp.folder"
_SHARDED = "ckptstore.formats.sharded"
_TORCH = "ckptstore.formats.torch.file"
_ZARR = "ckptstore.zarr.folder_write"
_BY_SUFFIX = {
    SAFETENSORS: "ckptstore.formats.safetensors",
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".bin": _TORCH,
    ".npz": "ckptstore.formats.npz",
    ".npy": "ckptstore.formats.npy",
    ".zarr": _ZARR,
}
_INDICES = (".safetensors.index.json", ".bin.index.json")
_FOLDERS = frozenset({_DCP, _SHARDED, _ZARR})  # modules whose form is a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """What a file held: a state to commit, and what else the file said."""

    state: Any
    meta: dict[str, Any] = field(default_factory=dict)


def has_format(path: str | Path) -> bool:
    """True when the suffix says how to read it."""
    return Path(path).suffix.lower() in _BY_SUFFIX


def named(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """A state of arrays by path, as a format without nesting is read."""
    return _names.nested(arrays)


def read_file(path: str | Path) -> FileState:
    """Read a checkpoint file or folder; the suffix says how, or what the folder holds.

    Its arrays are read from it only as they are wanted, so it must stay as it is until the state is committed.
    InvalidInputError when it is not what it seems.
    """
    path = _path(path)
    try:
        if not path.exists():
            raise NotFoundError(f"{path} is not there.")
        module = _module(_of_folder(path) if path.is_dir() else _of_file(path))
        state, meta = module.read(path)
    except ImportError as error:
        raise _lacking(path, error) from error
    except OSError as error:
        raise StorageError(f"{shown(str(path))} could not be read: {error.strerror}.") from error
    name = os.fsencode(os.path.basename(os.path.abspath(path))).decode(errors="replace")
    return FileState(state=state, meta={"file": name, **meta})


def write_file(
    state: Any,
    path: str | Path,
    *,
    overwrite: bool = False,
    drop_values: bool = False,
    shard_bytes: int | None = None,
) -> None:
    """Write a state to a file or folder, whole or not at all; the suffix says how.

    drop_values: leave out plain values when the format has no place for them.
    shard_bytes: write a folder of .safetensors files of at most so many bytes of arrays each, or of one larger array.
    """
    path = _path(path)
    name = _of_output(path, shard_bytes)
    check_free(path, overwrite=overwrite, shard_bytes=shard_bytes)
    write = _writer(name, state, drop_values=drop_values, shard_bytes=shard_bytes)
    temporary = path.absolute().with_name(f".ckptstore-{os.getpid()}-{secrets.token_hex(6)}")
    try:
        write(temporary)
        _flush(temporary)
        _publish(temporary, path.absolute(), overwrite=overwrite)
    except ImportError as error:
        raise _lacking(path, error) from error
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        _remove(temporary)


def _writer(
    name: str, state: Any, *, drop_values: bool, shard_bytes: int | None
) -> Callable[[Path], None]:
    """What writes a state to a path that is free."""
    module = _module(name)
    if isinstance(state, ZarrValues):
        if name != _ZARR:
            raise InvalidInputError("A Zarr hierarchy as it was set is written to a .zarr only.")
        return partial(module.write_values, state)
    options = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
    with paused_collector():
        flat = flatten(state, describe=arrays.describe, encode=codecs.encode)
    return lambda path: module.write(flat, path, drop_values=drop_values, **options)


def check_free(
    path: str | Path, *, overwrite: bool = False, shard_bytes: int | None = None
) -> None:
    """Refuse a destination that cannot be written, before anything is read."""
    path = _path(path)
    name = _of_output(path, shard_bytes)
    if _is_taken(path):
        if not overwrite:
            raise _exists(path)
        is_folder = name in _FOLDERS
        if path.is_dir() != is_folder or (is_folder and path.is_symlink()):
            raise InvalidInputError(
                f"{path} is {_kind(path)}, and {'a folder' if is_folder else 'a file'} would take its place. "
                "Pass another name."
            )
        if is_folder and not _module(name).is_exported(path):
            raise InvalidInputError(
                f"{path} holds more than an export of a checkpoint, so nothing takes its place. Pass another name."
            )
    if not path.absolute().parent.is_dir():
        raise NotFoundError(f"The folder {path.absolute().parent} is not there.")


def _is_taken(path: Path) -> bool:
    """Whether anything has this name, a link too; an error when nothing can have it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{shown(str(path))} cannot be written: {why}.") from error
    return True


def _of_file(path: Path) -> str:
    """The module that reads a file."""
    name = _of_suffix(path)
    if name in _FOLDERS:
        raise InvalidInputError(f"{path} is {_kind(path)}; a {path.suffix.lower()} is a folder.")
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a regular file.")
    return name


def _of_folder(path: Path) -> str:
    """The module that reads a folder, by the files in it."""
    if path.joinpath(".metadata").exists():
        return _DCP
    if any(path.joinpath(name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        return _ZARR
    if any(name.endswith((SAFETENSORS, *_INDICES)) for name in os.listdir(path)):
        return _SHARDED
    raise InvalidInputError(
        f"{path} is a folder without a checkpoint that could be read: .safetensors files, the index of .bin files, "
        "zarr.json, or the .metadata of torch.distributed.checkpoint. Commit any other file in it by its own name."
    )


def _of_output(path: Path, shard_bytes: int | None) -> str:
    """The module that writes to a path."""
    if shard_bytes is None:
        return _of_suffix(path)
    if not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise InvalidInputError(f"{shown(shard_bytes)} is not a size in bytes.")
    if has_format(path) and path.suffix.lower() != SAFETENSORS:
        raise InvalidInputError(
            f"A {path.suffix.lower()} is not written in shards, only .safetensors. Pass the name of a folder for them."
        )
    return _SHARDED


def _of_suffix(path: Path) -> str:
    try:
        return _BY_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_BY_SUFFIX)
        raise InvalidInputError(
            f"{shown(path.name or str(path))} has no suffix that says how to read or write it: {known}."
        ) from None


def _module(name: str) -> ModuleType:
    return import_module(name)


def _path(path: object) -> Path:
    if not isinstance(path, (str, Path)):
        raise InvalidInputError(f"{shown(path)} is not the path of a file.")
    return Path(path)


def _kind(path: Path) -> str:
    return "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a file"


def _exists(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} exists. Pass another name, or overwrite it (overwrite=True).")


def _lacking(path: Path, error: ImportError) -> InvalidInputError:
    return InvalidInputError(
        f"{path} needs a package that cannot be imported ({error}). Install it, or use another format: .safetensors, .npz and "
        ".zarr need no torch."
    )


def _flush(path: Path) -> None:
    """Have a file, or a folder with all that it holds, lie on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            _flush(inside)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Give what was written its name; FileExistsError when that is taken."""
    if not temporary.is_dir():
        if overwrite:
            temporary.replace(path)
        else:
            os.link(temporary, path)
        return
    if not overwrite or not path.exists():
        if path.exists():
            raise FileExistsError
        temporary.rename(path)
        return
    former = temporary.with_name(f"{temporary.name}.former")
    path.rename(former)
    try:
        temporary.rename(path)
    except OSError:
        former.rename(path)
        raise
    shutil.rmtree(former)


def _remove(path: Path) -> None:
    """Remove what is left of a file or folder that was not published."""
    if os.path.isdir(path):  # which, unlike the method, never raises
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
