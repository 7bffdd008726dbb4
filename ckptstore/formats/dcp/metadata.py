"""The .metadata of a folder of torch.distributed.checkpoint: its values, their places and nesting.

Every field that is needed is checked. Others are ignored.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ckptstore.documents.chunks import DIMENSIONS_MAX
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import CkptStoreError, InvalidInputError, first_line, shown
from ckptstore.formats.dcp.pickle import ForeignNameError, Record, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.arrays.file import OpenFile

METADATA_BYTES_MAX = 32 << 20
SPLIT_AXES_MAX = 6

Index = tuple[int, ...]
ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a file in the folder."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a tensor: the index where it begins, its shape, and its place."""

    origin: Index
    lengths: Index
    place: Place


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in shards that fill it and do not overlap. Shards without elements are left out."""

    dtype: str
    shape: Index
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The contents of a folder.

    Attributes:
        entries: Tensors, and the places of other values, by name.
        paths: The keys that lead to each.
    """

    entries: dict[str, TensorEntry | Place]
    paths: dict[str, tuple[str | int, ...]]


def read_metadata(file: OpenFile) -> Metadata:
    """Read and check the document.

    Raises:
        InvalidInputError: It is damaged, could run code, or is larger than the limits allow.
    """
    if file.nbytes > METADATA_BYTES_MAX:
        raise InvalidInputError(
            f"{file.path} has {file.nbytes} bytes; at most {METADATA_BYTES_MAX} are read."
        )
    try:
        root = load(file.read(0, file.nbytes))
        state = _state(root, "Metadata")
        places = dict(_places(state))
        entries = {
            _of(name, str): _entry(name, entry, places)
            for name, entry in _of(state.get("state_dict_metadata"), dict).items()
        }
        return Metadata(entries, dict(_paths(state)))
    except ForeignNameError as error:
        raise InvalidInputError(
            f"{file.path} names {error}, which no metadata of torch.distributed.checkpoint needs. "
            "Reading it could run code, and it is not read."
        ) from error
    except CkptStoreError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"{file.path} is not the metadata of torch.distributed.checkpoint: {first_line(error)}."
        ) from error


def _entry(
    name: str, entry: object, places: dict[tuple[str, Index | None], Place]
) -> TensorEntry | Place:
    """One entry, with its place or those of its shards."""
    if type(entry).__name__ == "BytesStorageMetadata":
        return _place(places, name, None)
    state = _state(entry, "TensorStorageMetadata")
    shape = _index(state.get("size"))
    if len(shape) > DIMENSIONS_MAX:
        raise ValueError(
            f"{shown(name)} has {len(shape)} dimensions; at most {DIMENSIONS_MAX} can be held"
        )
    dtype = str(_of(_state(state.get("properties"), "TensorProperties")[0], torch.dtype))
    dtype = dtype.removeprefix("torch.")
    if dtype not in ITEM_BYTES:
        raise ValueError(f"{shown(name)} has the dtype {dtype}, which no checkpoint can hold")
    by_box: dict[tuple[Index, Index], Shard] = {}
    for chunk in _of(state.get("chunks"), list):
        part = _state(chunk, "ChunkStorageMetadata")
        origin, lengths = _index(part.get("offsets")), _index(part.get("sizes"))
        if (
            len(origin) != len(shape)
            or len(lengths) != len(shape)
            or any(
                begin + length > whole
                for begin, length, whole in zip(origin, lengths, shape, strict=True)
            )
        ):
            raise ValueError(f"{shown(name)} has a shard beyond its shape {list(shape)}")
        if math.prod(lengths) and (origin, lengths) not in by_box:
            by_box[origin, lengths] = Shard(origin, lengths, _place(places, name, origin))
    shards = tuple(by_box.values())
    _check_filled(name, shape, shards)
    return TensorEntry(dtype, shape, shards)


def _check_filled(name: str, shape: Index, shards: tuple[Shard, ...]) -> None:
    """Refuse shards that overlap or leave out a part of a tensor.

    Boxes fill a box, each point of it once, exactly if their corners, counted with alternating
    signs, add up to its own.
    """
    axes = [
        axis
        for axis, whole in enumerate(shape)
        if any(shard.lengths[axis] != whole for shard in shards)
    ]
    if len(axes) > SPLIT_AXES_MAX:
        raise ValueError(f"the shards of {shown(name)} cut it in {len(axes)} dimensions")
    corners: Counter[Index] = Counter()
    for shard in shards:
        for ends in product((0, 1), repeat=len(axes)):
            bounds = zip(axes, ends, strict=True)
            corner = tuple(shard.origin[axis] + end * shard.lengths[axis] for axis, end in bounds)
            corners[corner] += (-1) ** sum(ends)
    if math.prod(shape):
        for ends in product((0, 1), repeat=len(axes)):
            corner = tuple(end * shape[axis] for axis, end in zip(axes, ends, strict=True))
            corners[corner] -= (-1) ** sum(ends)
    if any(corners.values()):
        raise ValueError(
            f"the shards of {shown(name)} do not fill its shape {list(shape)}, or overlap"
        )


def _place(places: dict[tuple[str, Index | None], Place], name: str, origin: Index | None) -> Place:
    try:
        return places[name, origin]
    except KeyError:
        where = "" if origin is None else f" at {list(origin)}"
        raise ValueError(f"it has no place for {shown(name)}{where}") from None


def _places(state: dict[str, Any]) -> Iterator[tuple[tuple[str, Index | None], Place]]:
    """The place of each shard and each value."""
    for index, info in _of(state.get("storage_data"), dict).items():
        key, place = _state(index, "MetadataIndex"), _state(info, "_StorageInfo")
        if place.get("transform_descriptors"):
            raise ValueError(
                f"its files went through {shown(place['transform_descriptors'])}, which is not "
                "read; write it without"
            )
        origin = key.get("offset")
        yield (
            (_of(key.get("fqn"), str), None if origin is None else _index(origin)),
            Place(
                _of(place.get("relative_path"), str),
                *(_of(place.get(field), int) for field in ("offset", "length")),
            ),
        )


def _paths(state: dict[str, Any]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """The keys that lead to each entry that has some."""
    for name, path in _of(state.get("planner_data") or {}, dict).items():
        keys = _of(path, tuple)
        if not 0 < len(keys) <= DEPTH_MAX or not all(type(key) in (str, int) for key in keys):
            raise ValueError(f"{shown(name)} has the path {shown(path)}")
        yield _of(name, str), keys


def _index(value: object) -> Index:
    """A torch.Size."""
    lengths = tuple(_of(_of(value, Record).arguments[0], tuple))
    if not all(type(length) is int and 0 <= length < 2**62 for length in lengths):
        raise ValueError(f"it has the lengths {shown(lengths)}")
    return lengths


def _state(value: object, name: str) -> Any:
    """The state of a record of this class."""
    if not isinstance(value, Record) or type(value).__name__ != name:
        raise ValueError(f"it has a {type(value).__name__} where a {name} is expected")
    return value.state if value.state is not None else {}


def _of(value: object, kind: type[ValueT]) -> ValueT:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"it has a {type(value).__name__} where a {kind.__name__} is expected")
    return value
