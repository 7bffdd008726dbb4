"""HDF5, in which Keras stores weights: .weights.h5 and .h5.

A group is a dict and a dataset an array. Attributes, such as the names of Keras' layers, are under
`ATTRIBUTES` in the outermost dict, by the path of what they belong to. A dataset that is one run of
bytes, as Keras writes them, is read in place; others are unpacked to a temporary file first.

The h5py package parses a file, through a reader that limits what is read at once. A link, and data
in another file, is refused, so that a file cannot make another one part of a checkpoint.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ckptstore.arrays.file import OpenFile, Scratch
from ckptstore.arrays.memory_limit import check_unpacked
from ckptstore.arrays.strided import ChangedArray, FileArray, byteswap
from ckptstore.documents.chunks import chunk_shape, chunks
from ckptstore.documents.dtypes import ITEM_BYTES, ML_DTYPES, NUMPY_DTYPES, TextDtype
from ckptstore.documents.names import escape_key, unescape_key
from ckptstore.documents.nodes import ArrayNode, DictNode, InnerNode, ListNode, TupleNode
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import safetensors
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.window import Window
from ckptstore.state.flatten import unflatten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from ckptstore.arrays.file import ByteSource
    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.nodes import Node
    from ckptstore.state.flatten import Flat

KIND = "ndarray"
ATTRIBUTES = "@attributes"
FORM = "An .h5 file"
READ_BYTES_MAX = 64 << 20  # at once; also of a chunk as it is unpacked
TEXT_BYTES_MAX = 256 << 20  # that the texts in one attribute may take
OBJECTS_MAX = 250_000  # groups, datasets and attributes
READS_MAX = 20 * OBJECTS_MAX
PIECE_BYTES = 8 << 20
_HEAP = b"GCOL\1\0\0\0"  # how a heap of texts begins
_HEAP_HEADER_BYTES = 16
_OBJECT = struct.Struct("<H6xQ")  # in a heap: its number, 0 for what is free, and its bytes
_DTYPE = "dtype"  # the attribute in which Keras names a dtype that HDF5 does not know
_ERRORS = (  # of h5py and the HDF5 library
    *(OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, OverflowError),
    *(NotImplementedError, MemoryError, SystemError, LookupError),
)


def read(path: Path, *, bytes_max: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the groups and datasets of a file as nested dicts of arrays, and no metadata.

    Args:
        path: The file.
        bytes_max: The most bytes that compressed arrays may unpack to; see `check_unpacked`.
    """
    file = OpenFile(path)
    return read_in(file, 0, file.nbytes, Scratch(path), name=str(path), bytes_max=bytes_max), {}


def read_in(
    file: ByteSource,
    start: int,
    size: int,
    scratch: Scratch,
    *,
    name: str,
    bytes_max: int | None = None,
) -> dict[str, Any]:
    """Return what is in an HDF5 file that is a part of another one.

    Args:
        file: What to read.
        start: Position of the first byte.
        size: Number of bytes.
        scratch: Where to unpack.
        name: Names it in errors.
        bytes_max: As of `read`.

    Raises:
        InvalidInputError: It is damaged, or holds what no checkpoint can hold.
    """
    window = _Guard(file, start=start, size=size, read_bytes_max=READ_BYTES_MAX)
    reading = _Reading(file, start, size, scratch, name, bytes_max)
    try:
        with h5py.File(window, "r") as root:
            reading.is_in_place = not root.userblock_size
            state = reading.group(root, "", 0)
    except InvalidInputError:
        raise
    except _ERRORS as error:
        reason = str(error).removesuffix(".")[:200]
        raise InvalidInputError(f"{name} is not an HDF5 file, or damaged: {reason}.") from error
    if reading.attributes:
        if ATTRIBUTES in state:
            raise InvalidInputError(f"{name} has a group called {ATTRIBUTES}, which has a meaning.")
        state[ATTRIBUTES] = reading.attributes
    return state


class _Guard(Window):
    """A window that checks the heaps of texts in what is read, and limits the number of reads.

    In a damaged heap the HDF5 library looks for ever for the end of an object without a size.
    """

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes; ValueError for a damaged heap in them."""
        place = self.tell()
        data = super().read(size)
        self.count += 1
        if self.count > READS_MAX:
            raise ValueError("reading it does not come to an end")
        at = data.find(_HEAP)
        while at >= 0:
            self.check_heap(place + at)
            at = data.find(_HEAP, at + 1)
        return data

    def check_heap(self, place: int) -> None:
        """Raise ValueError unless the objects of a heap follow one another up to its end."""
        (size,) = struct.unpack("<Q", self.file.read(self.start + place + 8, 8))
        if size > min(READ_BYTES_MAX, self.size - place):
            raise ValueError("a heap of texts is longer than the file, or than any is")
        heap = self.file.read(self.start + place, size)
        at = _HEAP_HEADER_BYTES
        while at + _OBJECT.size <= size:
            number, length = _OBJECT.unpack_from(heap, at)
            step = length if number == 0 else _OBJECT.size + (length + 7) // 8 * 8
            if step < _OBJECT.size or at + step > size:
                raise ValueError("a heap of texts is damaged")
            at += step


@dataclass(slots=True)
class _Reading:
    """A file as it is read.

    Attributes:
        file: What to read.
        start: Position of its first byte.
        size: Its bytes.
        scratch: Where to unpack.
        name: Names the file in errors.
        bytes_max: The most bytes to unpack; None for the default.
        is_in_place: Whether places in the file count from its first byte.
        attributes: The attributes so far, by path.
        groups: The addresses of the groups so far.
        count: The number of objects so far.
        unpacked: The bytes to unpack so far.
    """

    file: ByteSource
    start: int
    size: int
    scratch: Scratch
    name: str
    bytes_max: int | None
    is_in_place: bool = True
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: set[Any] = field(default_factory=set)
    count: int = 0
    unpacked: int = 0

    def refused(self, path: str, why: str) -> InvalidInputError:
        """An error that names an object."""
        return InvalidInputError(f"{shown(path or '/')} in {self.name} {why}.")

    def counted(self, count: int) -> None:
        """Count objects, up to the limit."""
        self.count += count
        if self.count > OBJECTS_MAX:
            raise InvalidInputError(f"{self.name} has more than {OBJECTS_MAX} objects.")

    def group(self, group: Any, path: str, depth: int) -> dict[str, Any]:
        """The contents of a group."""
        info = h5py.h5o.get_info(group.id)
        address = (info.fileno, info.addr)
        if address in self.groups:
            raise self.refused(path, "is a group that has several names, or is inside itself")
        if depth >= DEPTH_MAX:
            raise self.refused(path, f"is deeper than {DEPTH_MAX} groups")
        self.groups.add(address)
        self.counted(len(group))
        self.take_attributes(group, path)
        found: dict[str, Any] = {}
        for name in group:
            below = f"{path}/{name}" if path else name
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise self.refused(below, "is a link to another place or file. Copy it there")
            item = group.get(name)
            if isinstance(item, h5py.Group):
                found[_key(name)] = self.group(item, below, depth + 1)
            elif isinstance(item, h5py.Dataset):
                found[_key(name)] = self.array(item, below)
            else:
                raise self.refused(below, "is neither a group nor an array")
        return found

    def take_attributes(self, item: Any, path: str, *, known: str | None = None) -> None:
        """Note the attributes of an object. known: the name of one that is known already."""
        self.counted(len(item.attrs))
        found = {}
        for name in item.attrs:
            if name != known:
                found[name] = self.attribute(item, path, name)
        if found:
            self.attributes[path] = found

    def attribute(self, item: Any, path: str, name: str) -> Any:
        """The value of an attribute: a text, bytes, a number, None, or a list of these."""
        info = item.attrs.get_id(name)
        what = f"{path}@{name}"
        if info.get_space().get_simple_extent_type() == h5py.h5s.NULL:
            return None
        count, dtype = math.prod(info.shape), info.dtype
        if dtype.kind not in "OSbiuf" or (
            dtype.kind == "O" and h5py.check_string_dtype(dtype) is None
        ):
            raise self.refused(what, f"is an attribute of the type {dtype}, which is not read")
        item_bytes = min(self.size, READ_BYTES_MAX) if dtype.kind == "O" else dtype.itemsize
        if count > OBJECTS_MAX or (count > 1 and count * item_bytes > TEXT_BYTES_MAX):
            raise self.refused(what, "is an attribute that is too large")
        value = item.attrs[name]
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else value

    def array(self, dataset: Any, path: str) -> LazyArray:
        """The array of a dataset, read in place where it is one run of bytes."""
        created = dataset.id.get_create_plist()
        layout = created.get_layout()
        if created.get_external_count() or layout == h5py.h5d.VIRTUAL:
            raise self.refused(path, "has its data in other files. Copy it into one")
        if dataset.shape is None:
            raise self.refused(path, "is an array without a shape")
        dtype, is_swapped, named = self.dtype(dataset, path)
        self.take_attributes(dataset, path, known=_DTYPE if named else None)
        shape = tuple(map(int, dataset.shape))
        nbytes = math.prod(shape) * ITEM_BYTES[dtype]
        offset = dataset.id.get_offset() if layout == h5py.h5d.CONTIGUOUS else None
        native = h5py.h5t.py_create(dataset.dtype)
        if (
            self.is_in_place
            and offset is not None
            and 0 <= offset <= self.size - nbytes
            and dataset.id.get_storage_size() == nbytes
            and (named or dataset.id.get_type().equal(native))
        ):
            source: ByteSource = self.file
            place = self.start + offset
        else:
            source, place = self.scratch, self.unpack(dataset, path, shape, nbytes)
        array = FileArray(source, kind=KIND, dtype=dtype, shape=shape, offset=place)
        if not is_swapped:
            return array
        part_bytes = ITEM_BYTES[dtype] // (2 if dtype.startswith("complex") else 1)
        return ChangedArray(array, byteswap(part_bytes), identity=None)

    def dtype(self, dataset: Any, path: str) -> tuple[str, bool, bool]:
        """The name of a dtype, whether it is big-endian, and whether an attribute names it."""
        dtype = dataset.dtype
        if dtype.kind == "V" and not dtype.names and _DTYPE in dataset.attrs:
            name = self.attribute(dataset, path, _DTYPE)
            if name in ML_DTYPES and ITEM_BYTES[name] == dtype.itemsize:
                return name, False, True
        known = TextDtype.parse(dtype.str)
        if known is None or not known.name or dtype.kind == "O":
            raise self.refused(path, f"has the dtype {dtype}, which no checkpoint can hold")
        return known.name, known.is_big_endian, False

    def unpack(self, dataset: Any, path: str, shape: tuple[int, ...], nbytes: int) -> int:
        """Unpack an array, whose chunks may be compressed, and return where it begins."""
        self.unpacked += nbytes
        check_unpacked(self.name, self.unpacked, stored=self.size, bytes_max=self.bytes_max)
        item = dataset.dtype.itemsize
        if math.prod(dataset.chunks or ()) * item > max(READ_BYTES_MAX, nbytes):
            raise self.refused(path, "has chunks that are larger than it")
        piece = chunk_shape(shape, item_bytes=item, chunk_bytes=PIECE_BYTES)

        def write(target: Any) -> None:
            for part in chunks(shape, piece, item_bytes=item):
                try:
                    data = np.ascontiguousarray(dataset[part.index])
                except OSError as error:  # of the library, not of the temporary file
                    raise self.refused(path, f"cannot be unpacked: {error}") from error
                target.write(data.data.cast("B"))

        return self.scratch.add(write)


def _key(name: str) -> str:
    """Return the key that a name stands for, which may be escaped as in a path."""
    try:
        key = unescape_key(name)
    except ValueError:
        return name
    return key if name == _name(key) else name


def _name(key: object) -> str:
    """Return the name for a key: itself, unless HDF5 cannot have it."""
    name = str(key)
    if name == ".":
        return "%2E"
    return escape_key(name) if not name or any(map(name.__contains__, "/%\0")) else name


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write arrays as datasets in groups, and the attributes that a file had when it was read."""
    attributes: Any = {}
    if isinstance(flat.root, DictNode) and ATTRIBUTES in flat.root.items:
        attributes = unflatten(flat.root.items[ATTRIBUTES], array=_no_array, decode=_no_array)
        items = {key: node for key, node in flat.root.items.items() if key != ATTRIBUTES}
        flat = replace(flat, root=replace(flat.root, items=items))
    if not isinstance(flat.root, DictNode | ListNode | TupleNode):
        raise InvalidInputError(f"{FORM} holds arrays by name. Pass a dict of them.")
    check_values(flat, form=FORM, drop_values=drop_values)
    known = NUMPY_DTYPES | ML_DTYPES
    check_dtypes(flat, known, form=FORM, safetensors=safetensors.DTYPES)
    places: list[tuple[int, ArraySource]] = []
    try:
        with h5py.File(path, "x") as file:
            _write_group(file, flat.root, flat.arrays, places)
            _write_attributes(file, attributes)
    except _ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidInputError(f"{FORM} cannot hold this state: {error}.") from error
    with path.open("r+b") as target:
        for place, source in places:
            target.seek(place)
            target.writelines(source.pieces())


def _no_array(name: str, _: object) -> Any:
    raise InvalidInputError(f"{ATTRIBUTES} holds {shown(name)}, which is no text or number.")


def _write_group(
    group: Any,
    node: Node,
    arrays: Mapping[str, ArraySource],
    places: list[tuple[int, ArraySource]],
) -> None:
    """Make the groups and datasets of a node. places: receives where each array belongs."""
    for key, below in _children(node):
        if isinstance(below, ArrayNode):
            source = arrays[below.path]
            dataset = _dataset(group, _name(key), source)
            if source.nbytes:
                places.append((dataset.id.get_offset(), source))
        elif isinstance(below, InnerNode):
            _write_group(group.create_group(_name(key)), below, arrays, places)


def _children(node: Node) -> Iterator[tuple[object, Node]]:
    if isinstance(node, DictNode):
        yield from node.items.items()
    elif isinstance(node, ListNode | TupleNode):
        yield from enumerate(node.items)


def _dataset(group: Any, name: str, source: ArraySource) -> Any:
    """Make a dataset whose bytes have a place already, and are not filled in."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    is_named = source.dtype in ML_DTYPES
    dtype = np.dtype((np.void, ITEM_BYTES[source.dtype])) if is_named else np.dtype(source.dtype)
    made = h5py.h5d.create(
        group.id,
        name.encode(),
        h5py.h5t.py_create(dtype, logical=True),
        h5py.h5s.create_simple(source.shape) if source.shape else h5py.h5s.create(h5py.h5s.SCALAR),
        created,
    )
    dataset = h5py.Dataset(made)
    if is_named:
        dataset.attrs[_DTYPE] = source.dtype
    return dataset


def _write_attributes(file: Any, attributes: Any) -> None:
    """Write attributes to what they belong to, as far as it is there."""
    if not isinstance(attributes, dict):
        raise InvalidInputError(f"{ATTRIBUTES} is {shown(attributes)}; a dict is expected.")
    for path, values in attributes.items():
        if isinstance(values, dict) and (not path or path in file):
            item = file[path] if path else file
            for name, value in values.items():
                item.attrs[name] = _attribute(value)


def _attribute(value: Any) -> Any:
    """Return a value as h5py stores it."""
    if value is None:
        return h5py.Empty("f4")
    if isinstance(value, bytes):
        return np.bytes_(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return np.array(value, dtype=h5py.string_dtype())
    return np.array(value) if isinstance(value, list) else value
