"""Checkpoint files and folders of other tools: .safetensors, .pt, .npz, .h5, .keras, .zarr, .dcp.

The last is a folder of torch.distributed.checkpoint, which may have any name when it is read. No
code from a file is run: a .pt is read as `weights_only=True` reads it, and there is no fallback.
Arrays are streamed in both directions: a state that was read holds arrays that read the file as
they are needed, and a state is written a piece at a time (docs/adr/0017). A format's module is
imported when a file of that format is met, so no format needs the framework of another one.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.commit.flatten import flatten
from ckptstore.documents.zarr_document import NODE_DOCUMENTS
from ckptstore.errors import InvalidInputError, NotFoundError, StorageError, shown
from ckptstore.formats import first_bytes
from ckptstore.formats import names as _names
from ckptstore.formats.publish import check_room, published

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "FileState",
    "check_free",
    "has_format",
    "holds_folder",
    "named",
    "read_file",
    "write_file",
]

SAFETENSORS = ".safetensors"
_HDF5 = "ckptstore.formats.hdf5"
_KERAS = "ckptstore.formats.keras_archive"
_NPZ = "ckptstore.formats.npz"
_DCP = "ckptstore.formats.dcp.folder"
_HUGGING_FACE = "ckptstore.formats.hugging_face"
_SHARDED = "ckptstore.formats.sharded"
_TENSORFLOW = "ckptstore.formats.tensor_bundle"
_TORCH = "ckptstore.formats.torch.file"
_ZARR = "ckptstore.zarr.folder_write"
_BY_SUFFIX = {
    SAFETENSORS: "ckptstore.formats.safetensors",
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": _TORCH,
    ".bin": _TORCH,
    ".npz": _NPZ,
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".keras": _KERAS,
    ".npy": "ckptstore.formats.npy",
    ".zarr": _ZARR,
    ".dcp": _DCP,
}
_BY_CONTENTS = {
    first_bytes.TORCH: _TORCH,
    first_bytes.SAFETENSORS: _BY_SUFFIX[SAFETENSORS],
    first_bytes.NPZ: _NPZ,
    first_bytes.HDF5: _HDF5,
    first_bytes.KERAS: _KERAS,
    first_bytes.NPY: _BY_SUFFIX[".npy"],
}
FORMATS = tuple(suffix[1:] for suffix in (".pt", SAFETENSORS, ".npz", ".npy"))
_OF_TENSORFLOW = re.compile(r".+\.index|.+\.data-[0-9]{5}-of-[0-9]{5}|checkpoint")
_OF_TRAINER = re.compile(r"checkpoint-[0-9]+")  # folders that Hugging Face's Trainer writes
_UNPACKED = frozenset({_HDF5, _KERAS, _NPZ})  # modules that unpack what is compressed
_WITH_FACTS = frozenset({_HUGGING_FACE, _TORCH})  # modules that find a step, an epoch or metrics
_FOLDERS = frozenset({_DCP, _HUGGING_FACE, _SHARDED, _ZARR})  # modules whose format is a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """The contents of a file.

    Attributes:
        state: A state to commit. Its arrays are read from the file as they are needed.
        meta: The file's name and metadata, as plain JSON for `commit(meta=)`.
        left_out: The names of what is in the folder and not part of the state.
        step: The step of the checkpoint, if the file or folder has it.
        epoch: The epoch, if it has it.
        metrics: The metrics that it has of that step.
    """

    state: Any
    meta: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    step: int | None = None
    epoch: int | None = None
    metrics: Mapping[str, int | float] = field(default_factory=dict)


def has_format(path: str | Path) -> bool:
    """Return whether the suffix of a path is that of a format.

    Args:
        path: A file or folder; it need not exist.


    Example:
        >>> from ckptstore import formats
        >>> formats.has_format("tuned.safetensors"), formats.has_format("notes.txt")
        (True, False)
    """
    return Path(path).suffix.lower() in _BY_SUFFIX


def holds_folder(state: object) -> bool:
    """Return whether a state is a whole folder of Hugging Face, which `write_file` writes again.

    Args:
        state: What `read_file` returned as a state, or a checkout of it.

    Example:
        >>> from ckptstore import formats
        >>> formats.holds_folder({"model": {}})
        False
    """
    is_folder: bool = import_module(_HUGGING_FACE).holds_folder(state)
    return is_folder


def named(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state of arrays by path, nested as a file without nesting is read.

    Args:
        arrays: Arrays by path.

    Returns:
        Nested dicts in which the names are paths. The names stay keys if one is not a path, or if
        one array would be inside another.

    Example:
        >>> from ckptstore import formats
        >>> formats.named({"model/weight": 1, "model/bias": 2})
        {'model': {'weight': 1, 'bias': 2}}
    """
    return _names.nested(arrays)


def read_file(
    path: str | Path, *, format: str | None = None, bytes_max: int | None = None
) -> FileState:
    """Read a checkpoint file or folder.

    The arrays are read as they are needed, so the file must not change until the state is
    committed.

    Args:
        path: A file or a folder. The format of a file is taken from its first bytes, else from its
            suffix; that of a folder from its files.
        format: The format of a file, if neither tells: "pt", "safetensors", "npz" or "npy".
        bytes_max: The most bytes that compressed arrays of a .npz may unpack to. By default,
            64 MiB and 100 times the size of the file.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: It is damaged, could run code, holds what no checkpoint can hold, or
            would unpack to more than `bytes_max`.
        StorageError: It could not be read.

    Example:
        >>> import ckptstore, numpy
        >>> from ckptstore import formats
        >>> formats.write_file({"model": {"weight": numpy.ones(3)}}, "weights.npz")
        >>> file = formats.read_file("weights.npz")
        >>> checkpoint = ckptstore.init("memory://").commit(file.state, meta=file.meta)
        >>> checkpoint.meta
        {'file': 'weights.npz'}
        >>> checkpoint.array("model/weight")[:]
        array([1., 1., 1.])
    """
    path = _path(path)
    try:
        if not path.exists() and not _has_index(path):
            raise NotFoundError(f"{path} does not exist.")
        name = _of_folder(path) if path.is_dir() else _of_file(path, format)
        options = {"bytes_max": bytes_max} if name in _UNPACKED else {}
        module = import_module(name)
        state, meta, *left_out = module.read(path, **options)
        facts = module.facts(path, state) if name in _WITH_FACTS else {}
    except ImportError as error:
        raise _lacking(path, error) from error
    except OSError as error:
        raise StorageError(f"{shown(str(path))} could not be read: {error.strerror}.") from error
    name = os.fsencode(os.path.basename(os.path.abspath(path))).decode(errors="replace")
    return FileState(
        state=state,
        meta={"file": name, **meta},
        left_out=tuple(*map(sorted, left_out)),
        **facts,
    )


def write_file(
    state: Any,
    path: str | Path,
    *,
    overwrite: bool = False,
    drop_values: bool = False,
    shard_bytes: int | None = None,
) -> None:
    """Write a state to a file or folder, whole or not at all.

    Args:
        state: Arrays and plain values in any nesting, or a Zarr hierarchy of a checkpoint.
        path: Where to write it. The suffix is that of the format. A state that was read from a
            folder of Hugging Face is written as such a folder to a path without one.
        overwrite: Whether to replace a file, or an export in a folder. If the path is a link, what
            it leads to is replaced.
        drop_values: Whether to leave out plain values if the format has no place for them.
        shard_bytes: Write a folder of .safetensors files, each with at most this many bytes of
            arrays, or with one larger array.

    Raises:
        InvalidInputError: The format cannot hold the state, or the path is taken.
        NotFoundError: There is no such folder to write to.
        StorageError: It could not be written, or there is no room for it.
    """
    path = _path(path)
    name = _of_output(path, shard_bytes, state)
    target = _target(path, name, overwrite=overwrite, state=state)
    size, write = _writer(name, state, drop_values=drop_values, shard_bytes=shard_bytes)
    check_room(target.absolute().parent, size, what=str(path))
    try:
        with published(target, overwrite=overwrite) as temporary:
            write(temporary)
    except ImportError as error:
        raise _lacking(path, error) from error
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error


def _writer(
    name: str, state: Any, *, drop_values: bool, shard_bytes: int | None
) -> tuple[int, Callable[[Path], None]]:
    """Return the bytes of the arrays of a state, and a function that writes it to a free path."""
    from ckptstore.zarr.contents import ZarrValues  # with numpy, which `has_format` does not need

    module = import_module(name)
    if isinstance(state, ZarrValues):
        if name != _ZARR:
            raise InvalidInputError("A Zarr hierarchy as it was set is written to a .zarr only.")
        return state.nbytes, partial(module.write_values, state)
    options = {} if shard_bytes is None else {"shard_bytes": shard_bytes}
    flat = flatten(state)
    size = sum(source.nbytes for source in flat.arrays.values())
    if name == _HUGGING_FACE:
        return size, partial(module.write, state, **options)
    return size, lambda path: module.write(flat, path, drop_values=drop_values, **options)


def check_free(
    path: str | Path,
    *,
    overwrite: bool = False,
    shard_bytes: int | None = None,
    state: object = None,
) -> None:
    """Raise an error if `write_file` could not write to a path.

    Args:
        path: As of `write_file`.
        overwrite: As of `write_file`.
        shard_bytes: As of `write_file`.
        state: As of `write_file`; None for one that is not of a folder of Hugging Face.

    Raises:
        InvalidInputError: It is taken, or its suffix is not that of a format.
        NotFoundError: There is no such folder to write to.
        StorageError: Nothing can have that path.
    """
    path = _path(path)
    _target(path, _of_output(path, shard_bytes, state), overwrite=overwrite, state=state)


def _target(path: Path, module: str, *, overwrite: bool, state: object) -> Path:
    """Return where a module of a format writes: the path, or what a link there leads to."""
    target = _followed(path)
    if os.path.lexists(path):
        if not overwrite:
            raise _exists(path)
        if target.exists():
            _check_replaced(target, module, state)
    if not target.parent.is_dir():
        raise NotFoundError(f"The folder {target.parent} does not exist.")
    return target


def _followed(path: Path) -> Path:
    """Return an absolute path without a link at its end; an error if nothing can have it."""
    try:
        path = path.absolute()
        # The system refuses a link that leads round, or that another user planted.
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except FileNotFoundError as error:
        raise StorageError(
            f"{shown(str(path))} cannot be written: the working folder is gone. Pass an absolute "
            "path."
        ) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{shown(str(path))} cannot be written: {why}.") from error


def _check_replaced(path: Path, module: str, state: object) -> None:
    """Raise an error if a file or folder is not one that an export may replace."""
    is_folder = module in _FOLDERS
    if path.is_dir() != is_folder:
        raise InvalidInputError(
            f"{path} is {_kind(path)}, and {'a folder' if is_folder else 'a file'} would "
            "replace it. Pass another name."
        )
    more = (state,) if module == _HUGGING_FACE else ()
    if is_folder and not import_module(module).is_exported(path, *more):
        raise InvalidInputError(
            f"{path} holds more than an export of a checkpoint, so it is not replaced. Pass "
            "another name."
        )


def _has_index(path: Path) -> bool:
    """Return whether a path is the name of a checkpoint of TensorFlow, which is in other files."""
    return bool(path.name) and path.with_name(f"{path.name}.index").is_file()


def _of_file(path: Path, format: str | None) -> str:
    """Return the module that reads a file: by its first bytes, its suffix, or the format given."""
    is_named = _OF_TENSORFLOW.fullmatch(path.name) or not path.exists()
    if is_named and import_module(_TENSORFLOW).prefix_of(path) is not None:
        return _TENSORFLOW
    if not path.is_file():
        raise InvalidInputError(f"{path} is not a regular file.")
    if format is not None:
        if format not in FORMATS:
            raise InvalidInputError(
                f"The format {shown(format)} is not known; {', '.join(FORMATS)} are."
            )
        return _BY_SUFFIX[f".{format}"]
    file = OpenFile(path)
    head = file.read(0, min(file.nbytes, first_bytes.HEAD_BYTES))
    contents = first_bytes.identify(head, size=file.nbytes)
    if isinstance(contents, first_bytes.Foreign):
        raise InvalidInputError(f"{path} is {contents.what}. {contents.way_out}.")
    if contents is not None:
        return _BY_CONTENTS[contents]
    if path.suffix.lower() not in _BY_SUFFIX:
        raise InvalidInputError(
            f"{path} is of an unknown format: neither its first bytes nor its suffix show one. "
            f"State it, if it is one of {', '.join(FORMATS)}."
        )
    name = _of_suffix(path)
    if name in _FOLDERS:
        raise InvalidInputError(f"{path} is {_kind(path)}; a {path.suffix.lower()} is a folder.")
    return name


def _of_folder(path: Path) -> str:
    """The module that reads a folder, by the files in it."""
    if path.joinpath(".metadata").exists():
        return _DCP
    if any(path.joinpath(name).exists() for name in NODE_DOCUMENTS):
        return _ZARR
    if import_module(_HUGGING_FACE).is_folder(os.listdir(path)):
        return _HUGGING_FACE
    if import_module(_TENSORFLOW).prefix_of(path) is not None:
        return _TENSORFLOW
    if any(map(_OF_TRAINER.fullmatch, os.listdir(path))):
        raise InvalidInputError(
            f"{path} is a folder of checkpoints. Commit one of them by its name, or all: use "
            f"plan_import with {str(path / 'checkpoint-{step}')!r}."
        )
    raise InvalidInputError(
        f"{path} is a folder without a checkpoint that could be read: .safetensors files, "
        "pytorch_model.bin, trainer_state.json, zarr.json, the .index of TensorFlow, or the "
        ".metadata of torch.distributed.checkpoint. Commit any other file in it by its own name."
    )


def _of_output(path: Path, shard_bytes: int | None, state: object) -> str:
    """The module that writes a state to a path."""
    is_whole = not has_format(path) and holds_folder(state)
    if shard_bytes is None:
        return _HUGGING_FACE if is_whole else _of_suffix(path)
    if not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise InvalidInputError(f"{shown(shard_bytes)} is not a size in bytes.")
    if has_format(path) and path.suffix.lower() != SAFETENSORS:
        raise InvalidInputError(
            f"A {path.suffix.lower()} is not written in shards, only .safetensors. Pass the name "
            "of a folder for them."
        )
    return _HUGGING_FACE if is_whole else _SHARDED


def _of_suffix(path: Path) -> str:
    try:
        return _BY_SUFFIX[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_BY_SUFFIX)
        raise InvalidInputError(
            f"{shown(path.name or str(path))} has no suffix of a known format: {known}."
        ) from None


def _path(path: object) -> Path:
    if not isinstance(path, (str, Path)):
        raise InvalidInputError(f"{shown(path)} is not the path of a file.")
    return Path(path)


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file"


def _exists(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} exists. Pass another name, or overwrite it (overwrite=True).")


def _lacking(path: Path, error: ImportError) -> InvalidInputError:
    return InvalidInputError(
        f"{path} needs a package that cannot be imported ({error}). Install it, or use another "
        "format: .safetensors, .npz and .zarr need no torch."
    )
