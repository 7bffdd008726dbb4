"""A state as the folder that dcp.save would write of it in one process.

Nested dicts, and the lists that DCP looks into, become names joined with dots; the keys that lead
to each are in the metadata. Each value is an archive of torch.save, one after the other in one
file. Tied tensors share an archive, so that they are tied again when the folder is committed. As in
DCP, keys become texts, and empty dicts are left out: a folder with names that dcp.save would not
write is taken by dcp.load for one of torch 2.3, and read by other rules. ADR 0071.
"""

from __future__ import annotations

import io
import pickle
from typing import IO, TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from ckptstore.arrays.source import TENSOR
from ckptstore.documents.nodes import ArrayNode, DictNode, ListNode
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats.torch.save import write_archive
from ckptstore.state import tree
from ckptstore.state.flatten import Flat

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import TypeIs

    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.nodes import Node

    Keys = tuple[str | int, ...]

_VERSION = "1.0.0"  # of the metadata, as torch names it


def write(flat: Flat[ArraySource], *, data: Path, metadata: Path) -> None:
    """Write a state.

    Args:
        flat: The state.
        data: The new file of its values.
        metadata: The new file that lists them.

    Raises:
        InvalidInputError: It is no dict, two values have one name, or a value cannot be pickled.
    """
    folder = Metadata({}, planner_data={}, storage_data={}, storage_meta=StorageMeta())
    folder.version = _VERSION
    places: dict[str, _StorageInfo] = {}  # of tensors, by the path of their first name
    with data.open("xb") as file:
        for name, (keys, node) in _named(flat.root).items():
            folder.planner_data[name] = keys
            if not _is_tensor(node):
                folder.state_dict_metadata[name] = BytesStorageMetadata()
                folder.storage_data[MetadataIndex(name)] = _write(_part(flat, node), file, data)
                continue
            listed = _listed(flat.arrays[node.path])
            if node.first not in places:
                places[node.first] = _write(_part(flat, node), file, data)
            folder.state_dict_metadata[name] = listed
            index = MetadataIndex(name, listed.chunks[0].offsets)
            folder.storage_data[index] = places[node.first]
    with metadata.open("xb") as file:
        pickle.dump(folder, file)


def _named(root: Node) -> dict[str, tuple[Keys, Node]]:
    """The keys and node of each value, by its name."""
    if not isinstance(root, DictNode):
        raise InvalidInputError(
            "torch.distributed.checkpoint holds dicts alone, and the state is none. Choose a part "
            "that is a dict, or another format."
        )
    values: dict[str, tuple[Keys, Node]] = {}
    for keys, node in _values(root, ()):
        name = ".".join(map(str, keys))
        if name in values:
            raise InvalidInputError(
                f"Two values of the state have the name {shown(name)} in torch.distributed."
                "checkpoint, which joins keys with dots and makes texts of them. Rename one of "
                "them, or choose another format."
            )
        values[name] = keys, node
    return values


def _values(node: Node, keys: Keys) -> Iterator[tuple[Keys, Node]]:
    """The values of a state, where torch's traverse_state_dict finds them."""
    if isinstance(node, DictNode):
        for key, item in node.items.items():
            yield from _values(item, (*keys, str(key)))
    elif _is_opened(node):
        for number, item in enumerate(node.items):
            yield from _values(item, (*keys, number))
    else:
        yield keys, node


def _is_opened(node: Node) -> TypeIs[ListNode]:
    """True for a list that has dicts or tensors in it, at any depth of lists."""
    return isinstance(node, ListNode) and any(
        isinstance(item, DictNode) or _is_tensor(item) or _is_opened(item) for item in node.items
    )


def _is_tensor(node: Node) -> TypeIs[ArrayNode]:
    return isinstance(node, ArrayNode) and node.kind == TENSOR


def _part(flat: Flat[ArraySource], node: Node) -> Flat[ArraySource]:
    """The state that one node and the arrays in it are."""
    return Flat(
        root=node, arrays={array.first: flat.arrays[array.first] for array in tree.arrays(node)}
    )


def _listed(source: ArraySource) -> TensorStorageMetadata:
    """A tensor that is one chunk."""
    shape = torch.Size(source.shape)
    return TensorStorageMetadata(
        TensorProperties(getattr(torch, source.dtype)),
        shape,
        [ChunkStorageMetadata(torch.Size([0] * len(shape)), shape)],
    )


def _write(part: Flat[ArraySource], file: IO[bytes], path: Path) -> _StorageInfo:
    """Append an archive to the file of this path."""
    start = file.tell()
    rest: Any = _Rest(file)  # all that zipfile needs of a file
    write_archive(part, rest)
    return _StorageInfo(path.name, start, file.tell() - start)


class _Rest(io.RawIOBase):
    """The part of a file that begins where it is now, as zipfile takes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._start = file, file.tell()

    def write(self, data: Any) -> int:
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(place + (self._start if whence == io.SEEK_SET else 0), whence)

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._file.flush()
