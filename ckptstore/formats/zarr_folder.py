"""A Zarr v3 folder that any Zarr tool opens; and any Zarr folder, in.

What is written holds everything: the arrays in groups, uncompressed, and the structure of the state in an attribute of the root.
So it is read as the same state again. Another folder, or one that somebody changed since, is committed as it is, file by file.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

from ckptstore import codecs
from ckptstore.errors import CkptStoreError, InvalidInputError, StorageError, shown
from ckptstore.format import canonical, structure, zarr_document
from ckptstore.format.chunks import (
    DIMENSIONS_MAX,
    chunk_count,
    chunk_shape,
    chunks,
    is_contiguous_grid,
)
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.structure import array_path, tag_of
from ckptstore.lazy import LazyArray, ZarrFiles, ZarrValues
from ckptstore.parallel import Buffers, gather
from ckptstore.state import leaves, unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays import ArraySource
    from ckptstore.format.chunks import Chunk
    from ckptstore.format.structure import Node
    from ckptstore.state import Flat

CHUNK_BYTES = 8 << 20
WRITE_THREADS = 4  # each holds a chunk
DOCUMENT_BYTES_MAX = 256 << 20  # of a root with the documents of 250,000 arrays
MISSING_BYTES_MAX = (
    1 << 30
)  # of chunks that are not there: what they claim to hold costs whoever wrote them nothing
ARRAY_BYTES_MAX = (1 << 63) - 1  # numpy counts no further, also where a length is 0
FILES_MAX = 4_000_000
DEPTH_MAX = 200
NAME_BYTES_MAX = 255  # of a part of a path, as file systems have it
METADATA, ATTRIBUTE, VERSION = "zarr.json", "ckptstore", 1
_ROOTS = frozenset({METADATA, ".zgroup", ".zarray"})
_CHUNK_FILE = re.compile(r"(.+)/(c(?:/[0-9]+)*)")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write a folder with every array and value of a state."""
    del drop_values  # nothing has to be
    path.mkdir()
    buffers = Buffers()
    documents: dict[str, Any] = {}
    for name, source in flat.arrays.items():
        node = zarr_document.node_path(name)
        _check_names(name, node)
        for group in _above(node):
            documents.setdefault(group, zarr_document.group_document({}))
        documents[node] = _write_array(source, path / node, buffers)
    for node in sorted(documents.keys() - {""}):
        _write_document(path / node, documents[node])
    documents.pop("", None)
    told = {ATTRIBUTE: {"version": VERSION, "structure": flat.root}}
    root = zarr_document.group_document(told, dict(sorted(documents.items())))
    _write_document(path, root)


def write_values(values: ZarrValues, path: Path) -> None:
    """Write a hierarchy as it was set, each key a file. InvalidInputError for keys that can be no file's path."""
    path.mkdir()
    for key in values.keys():  # noqa: SIM118 - no mapping
        if any(
            not part.strip(".") or len(os.fsencode(part)) > NAME_BYTES_MAX
            for part in key.split("/")
        ):
            raise InvalidInputError(
                f"The key {key!r:.200} of the Zarr hierarchy cannot be the path of a file. Read it with "
                "ckptstore.zarr.CheckpointStore."
            )
        file = path / key
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as out:
                for piece in values.pieces(key):
                    out.write(piece)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise InvalidInputError(
                f"The Zarr hierarchy has the key {key!r:.200} and another below it, which files cannot. Read it with "
                "ckptstore.zarr.CheckpointStore."
            ) from error


def is_exported(path: Path) -> bool:
    """True for a folder that `write` has written, whatever happened to it since."""
    try:
        return _structure_of(_document(path / METADATA)) is not None
    except (CkptStoreError, OSError):
        return False


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The state of a folder that `write` has written; any other hierarchy as its files."""
    listed = dict(files(path))
    root = _document(path / METADATA) if METADATA in listed else {}
    told = _structure_of(root)
    if told is not None:
        state = _state(told, path, listed)
        if state is not None:
            return state[0], {}
    return ZarrFiles(tuple(listed.items())), {}


def files(path: Path) -> Iterator[tuple[str, Path]]:
    """Every file of a Zarr folder with its key in the store, in order; InvalidInputError for anything but files and folders."""
    if not any(path.joinpath(name).is_file() for name in _ROOTS):
        raise InvalidInputError(f"{path} is not a Zarr folder: it has no zarr.json.")
    for number, found in enumerate(_walk(path, "", 0)):
        if number >= FILES_MAX:
            raise InvalidInputError(f"{path} holds more than {FILES_MAX} files.")
        yield found


def _walk(folder: Path, prefix: str, depth: int) -> Iterator[tuple[str, Path]]:
    if depth > DEPTH_MAX:
        raise InvalidInputError(f"{folder} lies more than {DEPTH_MAX} folders deep.")
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        key = f"{prefix}{entry.name}"
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            raise InvalidInputError(
                f"{entry.path} is neither a regular file nor a folder. Copy what it stands for to its place."
            )
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{key}/", depth + 1)
        else:
            yield key, folder / entry.name


def _check_names(name: str, node: str) -> None:
    """Refuse an array that no folder can be named for."""
    if any(len(os.fsencode(part)) > NAME_BYTES_MAX for part in node.split("/")):
        raise InvalidInputError(
            f"The array {shown(name)} would lie in a folder whose name has more than {NAME_BYTES_MAX} bytes, which file "
            "systems do not have. Choose other arrays (--include), or write a .pt file."
        )


def _write_array(source: ArraySource, folder: Path, buffers: Buffers) -> dict[str, Any]:
    """Write the chunks of an array: its document."""
    item = ITEM_BYTES[source.dtype]
    shape = chunk_shape(source.shape, item_bytes=item, chunk_bytes=CHUNK_BYTES)
    size = zarr_document.padded_bytes(source.dtype, source.shape, shape)
    keys = zarr_document.chunk_keys(source.dtype, source.shape, shape)
    folder.mkdir(parents=True, exist_ok=True)

    def put(key: str, chunk: Chunk) -> None:
        file = folder / key
        file.parent.mkdir(parents=True, exist_ok=True)
        data = source.chunk(chunk, buffers.of)
        with file.open("xb") as out:
            out.write(data)
            out.write(bytes(size - len(data)))

    grid = chunks(source.shape, shape, item_bytes=item)
    gather(
        [partial(put, key, chunk) for key, chunk in zip(keys, grid, strict=True)],
        threads=WRITE_THREADS,
    )
    return zarr_document.array_document(
        dtype=source.dtype, shape=source.shape, chunk_shape=shape, name=folder.name
    )


def _write_document(folder: Path, document: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with folder.joinpath(METADATA).open("x", encoding="ascii") as out:
        json.dump(document, out, allow_nan=False)


def _above(node: str) -> Iterator[str]:
    """The paths of the groups that a node lies in."""
    while node:
        node = node.rpartition("/")[0]
        yield node


def _structure_of(document: Mapping[str, Any]) -> Node | None:
    """What the root of a folder that we wrote says of the state; [structure], or None."""
    attributes = document.get("attributes")
    told = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    is_ours = isinstance(told, dict) and told.get("version") == VERSION and "structure" in told
    return told if is_ours else None


def _state(told: Mapping[str, Any], path: Path, listed: Mapping[str, Path]) -> tuple[Any] | None:
    """The state of a folder whose arrays are those that its structure names, as we wrote them; else None."""
    name = f"The structure in {path / METADATA}"
    try:
        data = canonical.encode({"structure": told["structure"]}, name=name)
        root = structure.decode(data, name=name)
        named = {found: node for _, node in leaves(root) if (found := array_path(node))}
        arrays = {
            zarr_document.path_of_node(key.rpartition("/")[0]): key
            for key in listed
            if key.endswith(f"/{METADATA}")
            if _document(listed[key]).get("node_type") == "array"
        }
        kinds = {tag_of(node) for node in named.values()}
        if arrays.keys() != named.keys() or not kinds <= {"tensor", "ndarray"}:
            return None
        opened = {}
        for found, node in named.items():
            array = _FolderArray.of(listed[arrays[found]], tag_of(node))
            if array is None:
                return None
            opened[found] = array
        if _missing_bytes(opened, arrays, listed) > MISSING_BYTES_MAX:
            return None
        return (unflatten(root, array=lambda found, _: opened[found], decode=codecs.decode),)
    except InvalidInputError:
        raise
    except (CkptStoreError, KeyError) as error:
        raise InvalidInputError(f"{path} is not what ckptstore has written: {error}") from error


def _missing_bytes(
    opened: Mapping[str, _FolderArray], arrays: Mapping[str, str], listed: Mapping[str, Path]
) -> int:
    """The bytes of all chunks that are not there; InvalidInputError for one of another length than its array's."""
    by_node = {key.rpartition("/")[0]: opened[found] for found, key in arrays.items()}
    missing = sum(array.chunk_count * array.chunk_bytes for array in opened.values())
    for key, file in listed.items():
        match = _CHUNK_FILE.fullmatch(key)
        array = by_node.get(match[1]) if match else None
        if array is not None and match is not None and array.has_chunk(match[2]):
            array.check_size(file, file.lstat().st_size)
            missing -= array.chunk_bytes
    return missing


class _FolderArray(LazyArray):
    """An array whose chunks are files, each as long as the others; one that is not there is zeros.

    Where a chunk lies is computed, not listed: a document of a few bytes may claim any number of them.
    """

    def __init__(
        self, folder: Path, *, kind: str, dtype: str, shape: tuple[int, ...], steps: tuple[int, ...]
    ) -> None:
        self.kind, self.dtype, self.shape = kind, dtype, shape
        self.identity = object()
        self.chunk_count = chunk_count(shape, steps)
        self.chunk_bytes = zarr_document.padded_bytes(dtype, shape, steps)
        cut = next((axis for axis, step in enumerate(steps) if step != 1), len(shape))
        self._row_bytes = math.prod(shape[cut:]) * ITEM_BYTES[dtype]  # what the cut axis is cut of
        self._row_chunks = chunk_count(shape[cut:], steps[cut:])
        self._folder = folder
        self._steps = steps

    @classmethod
    def of(cls, file: Path, kind: str) -> _FolderArray | None:
        """The array of a document; None when it is not as we write them."""
        document = _document(file)
        try:
            dtype, shape = zarr_document.described(document, name=str(file))
            more = len(document["shape"]) - len(shape)
            told = document["chunk_grid"]["configuration"]["chunk_shape"]
            steps = tuple(told[: len(told) - more])
            if not _is_possible(kind, dtype, shape) or any(type(step) is not int for step in steps):
                return None
            if not is_contiguous_grid(shape, steps):
                return None
            ours = zarr_document.array_document(
                dtype=dtype, shape=shape, chunk_shape=steps, name=file.parent.name
            )
            for key in ours.keys() - {"attributes", "dimension_names"}:
                # As text: 0.0 and -0.0 are equal, and other bits.
                if _text(document.get(key)) != _text(ours[key]):
                    return None
        except (CkptStoreError, KeyError, TypeError, ValueError, RecursionError):
            return None
        if document.get("storage_transformers"):
            return None
        return cls(file.parent, kind=kind, dtype=dtype, shape=shape, steps=steps)

    def has_chunk(self, key: str) -> bool:
        """True for the key of a chunk of this array."""
        return zarr_document.chunk_number(key, self.dtype, self.shape, self._steps) is not None

    def check_size(self, file: Path, size: int) -> None:
        """Refuse a chunk's file of another length than the document makes it."""
        if size != self.chunk_bytes:
            raise InvalidInputError(
                f"{file} has {size} bytes; the array's document makes chunks of {self.chunk_bytes}. Write the folder again."
            )

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill a buffer with the array's bytes from position `start`."""
        while buffer:
            row, within = divmod(start, self._row_bytes)
            number, skip = divmod(within, self.chunk_bytes)
            stop = min(len(buffer), self.chunk_bytes - skip, self._row_bytes - within)
            key = zarr_document.chunk_key(
                row * self._row_chunks + number, self.dtype, self.shape, self._steps
            )
            self._read(self._folder / key, buffer[:stop], skip)
            buffer, start = buffer[stop:], start + stop

    def _read(self, file: Path, part: memoryview, start: int) -> None:
        """Fill a buffer from a chunk's file."""
        try:
            descriptor = os.open(file, _FLAGS)
        except FileNotFoundError:
            part[:] = bytes(len(part))
            return
        except OSError as error:
            raise StorageError(f"{file} could not be read: {error.strerror}.") from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidInputError(f"{file} is not a regular file.")
            self.check_size(file, status.st_size)
            while part:
                count = os.preadv(descriptor, [part], start)
                if not count:
                    raise InvalidInputError(f"{file} was changed while it was read.")
                part, start = part[count:], start + count
        except OSError as error:
            raise StorageError(f"{file} could not be read: {error.strerror}.") from error
        finally:
            os.close(descriptor)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _is_possible(kind: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """True for what can be the dtype and shape of an array in memory."""
    size = math.prod(max(1, length) for length in shape) * ITEM_BYTES[dtype]
    has_dtype = kind == "tensor" or zarr_document.has_name(dtype)  # numpy lacks the same as Zarr
    return len(shape) <= DIMENSIONS_MAX and size <= ARRAY_BYTES_MAX and has_dtype


def _document(file: Path) -> dict[str, Any]:
    """A JSON document; InvalidInputError when it is none."""
    with open(os.open(file, _FLAGS), "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInputError(f"{file} is not a regular file.")
        if status.st_size > DOCUMENT_BYTES_MAX:
            raise InvalidInputError(f"{file} has more than {DOCUMENT_BYTES_MAX} bytes.")
        data = opened.read(status.st_size)  # whose memory is asked for before anything is read
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{file} is not a JSON document: {error}.") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{file} is not a JSON object.")
    return document
