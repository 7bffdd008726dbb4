"""TensorFlow's checkpoints: NAME.index with NAME.data-00000-of-00001 beside it. Read only.

The index is a sorted table of LevelDB that has the dtype, shape and place of each tensor, as a
protocol buffer. Neither needs TensorFlow: the arrays are read in place, after a comparison with
their checksums. Names stay those of `tf.train.list_variables`, and texts are bytes.
"""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.strided import FileArray
from ckptstore.errors import InvalidInputError, NotFoundError, shown
from ckptstore.formats.names import nested

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIND = "ndarray"
INDEX = ".index"
NEWEST = "checkpoint"  # the file that names the newest checkpoint of a folder
INDEX_BYTES_MAX = 64 << 20
ENTRIES_MAX = 250_000
TEXT_BYTES_MAX = 16 << 20  # of the texts in one tensor
PIECE_BYTES = 1 << 20
_DATA = re.compile(r"(?P<name>.+)\.data-[0-9]{5}-of-[0-9]{5}")
_PATH = re.compile(r'^model_checkpoint_path: "(?P<path>(?:[^"\\]|\\.)*)"', re.MULTILINE)
_FOOTER_BYTES, _TRAILER_BYTES = 48, 5
_MAGIC = 0xDB4775248B80FB57
_MASK = 0xA282EAD8
_STRING = 7
_DTYPES = dict(  # by TensorFlow's DataType
    (
        *((1, "float32"), (2, "float64"), (3, "int32"), (4, "uint8"), (5, "int16"), (6, "int8")),
        *((8, "complex64"), (9, "int64"), (10, "bool"), (14, "bfloat16"), (17, "uint16")),
        *((18, "complex128"), (19, "float16"), (22, "uint32"), (23, "uint64")),
        *((24, "float8_e5m2"), (25, "float8_e4m3fn")),
    )
)
_ERRORS = (ValueError, IndexError, struct.error, UnicodeDecodeError)


class _Entry(NamedTuple):
    """A tensor in the index."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    is_sliced: bool


def prefix_of(path: Path) -> Path | None:
    """Return the path of a checkpoint without its suffix, given one of its files, or its folder.

    Args:
        path: NAME.index, NAME.data-00000-of-00001, the file `checkpoint`, a folder, or NAME.

    Returns:
        None if it is none of these.

    Raises:
        InvalidInputError: It is a folder with several checkpoints, none of which is the newest.
    """
    if path.is_dir():
        return _newest(path)
    if path.name == NEWEST and path.is_file():
        found = _newest(path.parent)
        return found if _PATH.search(_text(path)) else None
    match = _DATA.fullmatch(path.name)
    name = match["name"] if match else path.name.removesuffix(INDEX)
    prefix = path.with_name(name)
    return prefix if _index(prefix).is_file() and _has_magic(_index(prefix)) else None


def _newest(folder: Path) -> Path | None:
    """Return the prefix of the newest checkpoint in a folder, or of its only one."""
    listed = sorted(folder.glob(f"*{INDEX}"))
    prefixes = [path.with_name(path.name.removesuffix(INDEX)) for path in listed]
    state = folder / NEWEST
    if prefixes and state.is_file() and (match := _PATH.search(_text(state))):
        newest = folder / match["path"].rpartition("/")[2]  # the folder may have been moved
        if newest in prefixes:
            return newest
    if len(prefixes) > 1:
        raise InvalidInputError(
            f"{folder} has {len(prefixes)} checkpoints of TensorFlow. Commit one by its name, such "
            f"as {listed[-1]}, or import all of them."
        )
    return prefixes[0] if prefixes and _has_magic(listed[0]) else None


def _index(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + INDEX)


def _text(path: Path) -> str:
    file = OpenFile(path)
    return file.read(0, min(file.nbytes, PIECE_BYTES)).decode(errors="replace")


def _has_magic(path: Path) -> bool:
    file = OpenFile(path)
    if file.nbytes < _FOOTER_BYTES:
        return False
    return struct.unpack("<Q", file.read(file.nbytes - 8, 8)) == (_MAGIC,)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the tensors by name, nested where the names are paths, and the files of others.

    Args:
        path: As of `prefix_of`.
    """
    prefix = prefix_of(path)
    if prefix is None:
        raise InvalidInputError(f"{path} is not a checkpoint of TensorFlow.")
    index = OpenFile(_index(prefix), follow=not path.is_dir())
    try:
        shards, entries = _entries(index)
        tensors = _Tensors(prefix, shards)
        state = nested({name: tensors.tensor(name, entry) for name, entry in entries.items()})
    except InvalidInputError:
        raise
    except _ERRORS as error:
        raise InvalidInputError(
            f"{index.path} is not the index of a checkpoint, or damaged: {error}."
        ) from error
    own = {index.path.name, NEWEST, *(path.name for path in tensors.paths)}
    others = [item.name for item in path.iterdir() if item.name not in own] if path.is_dir() else []
    return state, {"tensorflow": prefix.name}, others


class _Tensors:
    """The tensors in the data files of a checkpoint."""

    def __init__(self, prefix: Path, shards: int) -> None:
        self.prefix, self.shards = prefix, shards
        self._files: dict[int, OpenFile] = {}

    @property
    def paths(self) -> list[Path]:
        """The data files that were opened."""
        return [file.path for file in self._files.values()]

    def tensor(self, name: str, entry: _Entry) -> Any:
        """The array of an entry; bytes, or lists of bytes, for texts."""
        where = f"{shown(name)} of {self.prefix}"
        if entry.is_sliced:
            raise InvalidInputError(
                f"{where} is in slices, as a partitioned variable. Save it whole with "
                "tf.train.Checkpoint, or commit the variables of the model."
            )
        if not 0 <= entry.shard < self.shards:
            raise ValueError(f"{where} is in file {entry.shard} of {self.shards}")
        file = self._file(entry.shard)
        if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > file.nbytes:
            raise InvalidInputError(f"{where} is beyond the end of {file.path}.")
        if entry.dtype == _STRING:
            return _texts(file, entry, where)
        dtype = _DTYPES.get(entry.dtype)
        if dtype is None:
            raise InvalidInputError(
                f"{where} has TensorFlow's dtype {entry.dtype}, which no checkpoint can hold."
            )
        array = FileArray(file, kind=KIND, dtype=dtype, shape=entry.shape, offset=entry.offset)
        if array.nbytes != entry.size:
            raise ValueError(f"{where} has {entry.size} bytes and the shape {entry.shape}")
        _check(file, entry, where)
        return array

    def _file(self, shard: int) -> OpenFile:
        if shard not in self._files:
            name = f"{self.prefix.name}.data-{shard:05}-of-{self.shards:05}"
            path = self.prefix.with_name(name)
            if not path.exists():
                raise NotFoundError(f"{path} is missing, a part of the checkpoint {self.prefix}.")
            self._files[shard] = OpenFile(path, follow=False)
        return self._files[shard]


def _check(file: OpenFile, entry: _Entry, where: str) -> None:
    """Compare the bytes of a tensor with their checksum."""
    crc = 0
    for start in range(0, entry.size, PIECE_BYTES):
        piece = file.read(entry.offset + start, min(PIECE_BYTES, entry.size - start))
        crc = google_crc32c.extend(crc, piece)
    if _masked(crc) != entry.checksum:
        raise InvalidInputError(f"{where} is damaged: its checksum in {file.path} is wrong.")


def _texts(file: OpenFile, entry: _Entry, where: str) -> Any:
    """The texts of a tensor, nested as its shape is."""
    count = math.prod(entry.shape)
    if entry.size > TEXT_BYTES_MAX or count > entry.size:
        raise InvalidInputError(f"{where} has more texts than any checkpoint needs.")
    data = file.read(entry.offset, entry.size)
    at, lengths = 0, []
    for _ in range(count):
        length, at = _varint(data, at)
        lengths.append(length)
    at += 4  # the checksum of the lengths
    if at + sum(lengths) != len(data):
        raise ValueError(f"{where} has texts of other lengths than it claims")
    texts: list[Any] = []
    for length in lengths:
        texts.append(data[at : at + length])
        at += length
    for size in reversed(entry.shape[1:]):
        texts = [texts[begin : begin + size] for begin in range(0, len(texts), size or 1)]
    return texts if entry.shape else texts[0]


def _entries(index: OpenFile) -> tuple[int, dict[str, _Entry]]:
    """Return the number of data files, and the entries of the tensors by name."""
    if index.nbytes > INDEX_BYTES_MAX:
        raise InvalidInputError(f"{index.path} has more than {INDEX_BYTES_MAX} bytes.")
    data = index.read(0, index.nbytes)
    footer = data[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack("<Q", footer[-8:]) != (_MAGIC,):
        raise ValueError("it does not end as an index does")
    at = _varint(footer, _varint(footer, 0)[1])[1]  # behind the place of the meta-index
    shards, found = 0, {}
    for _, place in _block(data, *_place(footer, at)):
        for key, value in _block(data, *_place(place, 0)):
            if not key:
                shards = _header(value)
            else:
                found[key.decode()] = _entry(value)
            if len(found) > ENTRIES_MAX:
                raise InvalidInputError(f"{index.path} has more than {ENTRIES_MAX} tensors.")
    if not shards:
        raise ValueError("it has no header")
    return shards, found


def _place(data: bytes, at: int) -> tuple[int, int]:
    """Return the position and the size of a block."""
    start, at = _varint(data, at)
    return start, _varint(data, at)[0]


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, after comparing its checksum."""
    block = data[start : start + size]
    trailer = data[start + size : start + size + _TRAILER_BYTES]
    if len(block) < size or len(trailer) < _TRAILER_BYTES or size < 4:
        raise ValueError("a block is beyond its end")
    if trailer[0]:
        raise ValueError("its blocks are compressed, which TensorFlow does not do")
    checksum = struct.unpack("<I", trailer[1:])[0]
    if _masked(google_crc32c.value(block + trailer[:1])) != checksum:
        raise ValueError("the checksum of a block is wrong")
    end = size - 4 * (1 + struct.unpack("<I", block[-4:])[0])
    if end < 0:
        raise ValueError("a block has no entries")
    at, key, count = 0, b"", 0
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        count += 1
        if shared > len(key) or at + own + length > end or count > ENTRIES_MAX:
            raise ValueError("an entry is beyond the end of its block")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _header(data: bytes) -> int:
    """Return the number of data files."""
    fields = dict(_fields(data))
    if fields.get(2, 0):
        raise InvalidInputError("A checkpoint of a big-endian machine is not read.")
    return int(fields.get(1, 0))


def _entry(data: bytes) -> _Entry:
    fields = dict(_fields(data))
    shape = tuple(
        int(dict(_fields(dim)).get(1, 0))
        for number, dim in _fields(fields.get(2, b""))
        if number == 2
    )
    shard, offset, size, checksum = (int(fields.get(number, 0)) for number in (3, 4, 5, 6))
    return _Entry(int(fields.get(1, 0)), shape, shard, offset, size, checksum, 7 in fields)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a protocol buffer: numbers, or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value: Any
            value, at = _varint(data, at)
        elif kind == 2:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            value, at = int.from_bytes(data[at : at + size], "little"), at + size
        else:
            raise ValueError(f"it has a field of kind {kind}")
        if at > len(data):
            raise ValueError("a field is beyond its end")
        yield tag >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and the position behind it."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")


def _masked(crc: int) -> int:
    """Return a CRC-32C as TensorFlow stores it."""
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF
