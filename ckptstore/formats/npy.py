"""numpy's .npy: one array. No pickle is ever read."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptstore.arrays.file import FileArray, OpenFile, Scratch
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import safetensors
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.torch.turned import is_turned, turned

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.tree import Flat

KIND = "ndarray"
HEADER_BYTES_MAX = 10_000  # as numpy has it
HEAD_BYTES_MAX = HEADER_BYTES_MAX + 64  # with what comes before
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # by version; of the header's length
_NAMES = {"descr", "fortran_order", "shape"}
_TRUTHS = ("True", "False")
_FIELD = re.compile(
    r"""\s*(['"])(?P<name>\w+)\1\s*:\s*(?P<value>'[^']*'|"[^"]*"|\([^()]*\)|\w+)\s*,?\s*"""
)
_LENGTH = r"\s*[0-9]{1,20}L?\s*"  # Python 2 wrote the L
_SHAPE = re.compile(rf"\(\s*\)|\((?:{_LENGTH},)+(?:{_LENGTH})?\s*\)")
DTYPES = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    | {"float16", "float32", "float64", "complex64", "complex128"}
)


def read(path: Path) -> tuple[FileArray, dict[str, Any]]:
    """The array in the file."""
    file = OpenFile(path)
    return array_in(file, 0, file.nbytes, scratch=Scratch(path), name=str(path)), {}


def has_to_be_turned(head: bytes, name: str) -> bool:
    """Whether the array that begins so is written out by `array_in`, as its elements lie in another order."""
    shape, is_fortran, _ = _read_header(io.BytesIO(head), name)
    return is_turned(is_fortran=is_fortran, shape=shape)


def array_in(file: OpenFile, start: int, size: int, *, scratch: Scratch, name: str) -> FileArray:
    """The array that lies in so many bytes of a file, in numpy's format. name: for messages."""
    head = io.BytesIO(file.read(start, min(size, HEAD_BYTES_MAX)))
    shape, is_fortran, numpy_dtype = _read_header(head, name)
    dtype = _known(numpy_dtype, name)
    nbytes, found = math.prod(shape) * ITEM_BYTES[dtype], size - head.tell()
    if nbytes != found:
        raise InvalidInputError(
            f"{name} is damaged: its header says dtype {dtype} and shape {shape}, and {found} bytes follow."
        )
    offset = start + head.tell()
    array = FileArray(file, kind=KIND, dtype=dtype, shape=shape, offset=offset)
    return turned(array, scratch) if is_turned(is_fortran=is_fortran, shape=shape) else array


def _read_header(head: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, Any]:
    """The shape, whether the first index runs fastest, and the numpy dtype.

    The header is a literal of Python. numpy gives it to Python's own parser, to which no text of strangers should get, so
    the few forms that an array of numbers can have are matched here instead.
    """
    import numpy as np

    magic, version = head.read(len(_MAGIC)), head.read(2)
    length_bytes = _LENGTH_BYTES.get(version)
    if magic != _MAGIC or length_bytes is None:
        raise _not_read(name, "it does not begin as such a file does")
    length = int.from_bytes(head.read(length_bytes), "little")
    if length > HEADER_BYTES_MAX:
        raise _not_read(name, f"its header has {length} bytes")
    text = head.read(length).decode("latin-1").strip()
    fields, place = {}, 1
    while match := _FIELD.match(text, place):
        fields[match["name"]], place = match["value"], match.end()
    is_whole = text[:1] == "{" and text[place:] == "}" and fields.keys() == _NAMES
    if (
        not is_whole
        or fields["fortran_order"] not in _TRUTHS
        or not _SHAPE.fullmatch(fields["shape"])
    ):
        raise _not_read(name, f"its header is {shown(text)}")
    try:
        dtype = np.dtype(fields["descr"][1:-1])
    except (TypeError, ValueError) as error:
        raise _not_read(name, f"its dtype is {shown(fields['descr'])}") from error
    shape = tuple(map(int, re.findall("[0-9]+", fields["shape"])))
    return shape, fields["fortran_order"] == "True", dtype


def _not_read(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is not an array of numbers as numpy writes them: {reason}.")


def _known(dtype: Any, name: str) -> str:
    """Our name of a numpy dtype."""
    if dtype.hasobject:
        raise InvalidInputError(
            f"{name} holds Python objects, which only pickle can read, and pickle could run code. Store them as arrays of "
            "numbers."
        )
    if dtype.names is not None or dtype.name not in DTYPES:
        raise InvalidInputError(
            f"{name} has the dtype {str(dtype)[:100]}, which no checkpoint can hold. Store it as numbers, or leave it out."
        )
    if not dtype.isnative:
        raise InvalidInputError(
            f"{name} has the byte order of another machine ({dtype.str}). Save array.astype(array.dtype.newbyteorder('<'))."
        )
    return str(dtype.name)


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write the only array of a state."""
    form = "A .npy file"
    check_values(flat, form=form, drop_values=drop_values)
    if len(flat.arrays) != 1:
        raise InvalidInputError(
            f"{form} holds one array, and the state has {len(flat.arrays)}. Choose one of them, or write a .npz file."
        )
    check_dtypes(flat, DTYPES, form=form, safetensors=safetensors.DTYPES)
    with path.open("xb") as file:
        for source in flat.arrays.values():
            write_array(source, file)


def write_array(source: ArraySource, file: BinaryIO) -> None:
    """Write an array as numpy.save does."""
    import numpy as np
    from numpy.lib import format as numpy_format

    descr = numpy_format.dtype_to_descr(np.dtype(source.dtype))
    header = {"descr": descr, "fortran_order": False, "shape": source.shape}
    numpy_format.write_array_header_1_0(file, header)
    file.writelines(source.pieces())
