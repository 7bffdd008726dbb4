"""Folders of torch.distributed.checkpoint, in which each tensor is divided into shards.

The shards, from any number of processes, are put together as one array. Each was written by
torch.save to a part of a file. It is unpickled as a .pt file is, and its elements are read in
place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.strided import BoxesArray, FileArray, gather
from ckptstore.documents.canonical import VALUES_MAX
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats.dcp.metadata import Place, TensorEntry, read_metadata
from ckptstore.formats.torch.load import load

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.formats.dcp.metadata import Index, Metadata
    from ckptstore.state.flatten import Flat

METADATA = ".metadata"
DATA = "__0_0.distcp"  # the first file of rank 0


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the state in a folder, with arrays that read its files, no metadata, and a list.

    The list names the files that the state does not need.
    """
    metadata = read_metadata(_opened(path, METADATA))
    files = _Files(path)
    values = {name: _value(name, entry, files) for name, entry in metadata.entries.items()}
    left_out = [name for name in os.listdir(path) if name != METADATA and name not in files.opened]
    return _nested(path, metadata, values), {}, left_out


def is_exported(path: Path) -> bool:
    """Return whether everything in a folder is what `write` makes."""
    with os.scandir(path) as entries:
        return all(
            entry.name in (METADATA, DATA) and entry.is_file(follow_symlinks=False)
            for entry in entries
        )


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write a state as dcp.save does in one process."""
    from ckptstore.formats.dcp import save  # with torch.distributed, which reading does not need

    del drop_values  # the format holds every value
    path.mkdir()
    save.write(flat, data=path / DATA, metadata=path / METADATA)


class _Files:
    """The files of a folder. Each is opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: dict[str, OpenFile] = {}
        self._arrays: dict[Place, LazyArray] = {}

    def load(self, place: Place) -> Any:
        """Return what torch.save wrote to a place. Two names of one tensor are tied."""
        if place in self._arrays:
            return self._arrays[place]
        value = self._load(place)
        if isinstance(value, LazyArray):
            self._arrays[place] = value
        return value

    def _load(self, place: Place) -> Any:
        name = place.name
        if name != os.path.basename(name) or name in ("", ".", "..") or "\0" in name:
            raise InvalidInputError(
                f"{self.folder} refers to the file {shown(name)}; only names of files in the "
                "folder itself are expected."
            )
        if name not in self.opened:
            self.opened[name] = _opened(self.folder, name)
        file = self.opened[name]
        if not 0 <= place.offset <= place.offset + place.size <= file.nbytes or place.size < 0:
            raise InvalidInputError(
                f"{file.path} has {file.nbytes} bytes, and should hold {place.size} from "
                f"{place.offset} on."
            )
        return load(file, start=place.offset, size=place.size)


def _opened(folder: Path, name: str) -> OpenFile:
    """Open a file of a folder. Links are not followed, since they could lead out of it."""
    path = folder / name
    if path.is_symlink():
        raise InvalidInputError(f"{path} is a link, and links are not followed out of a folder.")
    if not path.exists():
        raise InvalidInputError(
            f"{folder} refers to the file {shown(name)}, which does not exist. Get the whole "
            "folder."
        )
    return OpenFile(path, follow=False)


class ShardedArray(BoxesArray):
    """An array whose parts are in files. They fill it and do not overlap."""

    def __init__(self, *, dtype: str, shape: Index, parts: list[tuple[Index, FileArray]]) -> None:
        super().__init__(kind="tensor", dtype=dtype, shape=shape)
        self.parts = parts

    def read_box(self, target: Any, origin: tuple[int, ...]) -> None:
        """Fill a numpy array with the box of its shape that begins at this index."""
        ends = [begin + length for begin, length in zip(origin, target.shape, strict=True)]
        for start, part in self.parts:
            stops = (begin + length for begin, length in zip(start, part.shape, strict=True))
            low = [max(pair) for pair in zip(origin, start, strict=True)]
            high = [min(pair) for pair in zip(ends, stops, strict=True)]
            if all(first < last for first, last in zip(low, high, strict=True)):
                steps = zip(low, start, part.strides, strict=True)
                offset = part.offset + sum((at - begin) * step for at, begin, step in steps)
                box = zip(low, high, origin, strict=True)
                within = tuple(slice(first - at, last - at) for first, last, at in box)
                gather(part.file, offset, part.strides, target[within])


def _value(name: str, entry: TensorEntry | Place, files: _Files) -> Any:
    """A value, or the array that shards add up to."""
    if isinstance(entry, Place):
        return files.load(entry)
    parts = []
    for shard in entry.shards:
        part = files.load(shard.place)
        if (
            not isinstance(part, LazyArray)
            or part.dtype != entry.dtype
            or part.shape != shard.lengths
        ):
            raise InvalidInputError(
                f"{files.folder} holds something else than the shard of shape "
                f"{list(shard.lengths)} and dtype {entry.dtype} that it lists for {shown(name)}."
            )
        if len(entry.shards) == 1:
            return part
        if not isinstance(part, FileArray):
            raise InvalidInputError(
                f"{files.folder} holds shards of {shown(name)} that are conjugated, or from a "
                "machine with another byte order."
            )
        parts.append((shard.origin, part))
    return ShardedArray(dtype=entry.dtype, shape=entry.shape, parts=parts)


class _Part(dict[str | int, Any]):
    """A dict or a list that is not complete yet."""


def _nested(folder: Path, metadata: Metadata, values: dict[str, Any]) -> dict[str, Any]:
    """The values in the nested dicts and lists from which they were saved."""
    root = _Part()
    for name, value in values.items():
        *keys, last = metadata.paths.get(name, (name,))
        part: Any = root
        for key in keys:
            part = part.setdefault(key, _Part())
            if type(part) is not _Part:
                break
        if type(part) is not _Part or last in part:
            raise InvalidInputError(f"{folder} lists {shown(name)} where it has another value.")
        part[last] = value
    built = _Builder(folder).build(root) if root else {}
    if not isinstance(built, dict):
        raise InvalidInputError(f"{folder} has a list where the names of its values are expected.")
    return built


class _Builder:
    """Makes dicts and lists of parts.

    A position in a list is only a claim, so `room` counts the items that lists may still have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.room = folder, VALUES_MAX

    def build(self, part: _Part) -> dict[str, Any] | list[Any]:
        """Return a dict of names or a list of positions. Empty containers were not saved: None."""
        items = {
            key: self.build(item) if type(item) is _Part else item for key, item in part.items()
        }
        named = {key: item for key, item in items.items() if isinstance(key, str)}
        if len(named) == len(items):
            return named
        numbered = {key: item for key, item in items.items() if isinstance(key, int)}
        self.room -= max(numbered) + 1
        if named or min(numbered) < 0 or self.room < 0:
            raise InvalidInputError(f"{self.folder} has a list with positions that no list has.")
        return [numbered.get(position) for position in range(max(numbered) + 1)]
