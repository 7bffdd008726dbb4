"""numpy's .npy: a file with one array.

Pickles are never read, so arrays of Python objects are refused. The format is described in
numpy.lib.format. An array in Fortran order needs hardly more memory than one in C order
(docs/adr/0025).
"""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.strided import ChangedArray, FileArray, FortranArray, byteswap
from ckptstore.documents.dtypes import ITEM_BYTES, NUMPY_DTYPES, TextDtype
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import safetensors
from ckptstore.formats.arrays_only import check_dtypes, check_values

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.file import ByteSource
    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

KIND = "ndarray"
HEADER_BYTES_MAX = 10_000  # the same limit as numpy's
HEAD_BYTES_MAX = HEADER_BYTES_MAX + 64  # with what precedes the header
_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}  # by version; of the header's length
_NAMES = {"descr", "fortran_order", "shape"}
_TRUTHS = ("True", "False")
_FIELD = re.compile(
    r"""\s*(['"])(?P<name>\w+)\1\s*:\s*(?P<value>'[^']*'|"[^"]*"|\([^()]*\)|\w+)\s*,?\s*"""
)
_LENGTH = r"\s*[0-9]{1,20}L?\s*"  # Python 2 wrote the L
_SHAPE = re.compile(rf"\(\s*\)|\((?:{_LENGTH},)+(?:{_LENGTH})?\s*\)")


def read(path: Path) -> tuple[LazyArray, dict[str, Any]]:
    """Return the array in a file, which is read as it is needed, and no metadata."""
    file = OpenFile(path)
    return array_in(file, 0, file.nbytes, name=str(path)), {}


def array_in(file: ByteSource, start: int, size: int, *, name: str) -> LazyArray:
    """Return the array in `size` bytes of a file that have numpy's format.

    Args:
        file: What to read.
        start: Position of the first byte.
        size: Number of bytes.
        name: Names the array in errors.

    Raises:
        InvalidInputError: They are not an array of numbers of a known dtype.
    """
    head = io.BytesIO(file.read(start, min(size, HEAD_BYTES_MAX)))
    shape, is_fortran, text = _read_header(head, name)
    dtype, is_swapped = _known(text, name)
    nbytes, left = math.prod(shape) * ITEM_BYTES[dtype], size - head.tell()
    if nbytes != left:
        raise InvalidInputError(
            f"{name} is damaged: its header states dtype {dtype} and shape {shape}, and {left} "
            "bytes follow."
        )
    offset = start + head.tell()
    form = FortranArray if is_fortran and nbytes and len(shape) > 1 else FileArray
    array = form(file, kind=KIND, dtype=dtype, shape=shape, offset=offset)
    if not is_swapped:
        return array
    part_bytes = ITEM_BYTES[dtype] // (2 if dtype.startswith("complex") else 1)
    return ChangedArray(array, byteswap(part_bytes), identity=None)


def _read_header(head: io.BytesIO, name: str) -> tuple[tuple[int, ...], bool, str]:
    """Return the shape, whether the array is in Fortran order, and numpy's name of the dtype.

    The header is a Python literal. numpy passes it to Python's parser, which should not see
    untrusted text, so this matches only the few forms that an array of numbers can have.
    """
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
    shape = tuple(map(int, re.findall("[0-9]+", fields["shape"])))
    return shape, fields["fortran_order"] == "True", fields["descr"][1:-1]


def _not_read(name: str, reason: str) -> InvalidInputError:
    return InvalidInputError(f"{name} is not an array of numbers as numpy writes them: {reason}.")


def _known(text: str, name: str) -> tuple[str, bool]:
    """The name in `ITEM_BYTES` of the dtype that numpy calls `text`, and whether it is swapped."""
    dtype = TextDtype.parse(text)
    if dtype is not None and dtype.kind == "O":
        raise InvalidInputError(
            f"{name} holds Python objects, which only pickle can read, and a pickle could run "
            "code. Store them as arrays of numbers."
        )
    if dtype is None or not dtype.name:
        raise InvalidInputError(
            f"{name} has the dtype {shown(text)}, which no checkpoint can hold. Store it as "
            "numbers, or leave it out."
        )
    return dtype.name, dtype.is_big_endian


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write the only array of a state."""
    form = "A .npy file"
    check_values(flat, form=form, drop_values=drop_values)
    if len(flat.arrays) != 1:
        raise InvalidInputError(
            f"{form} holds one array, and the state has {len(flat.arrays)}. Choose one of them, or "
            "write a .npz file."
        )
    check_dtypes(flat, NUMPY_DTYPES, form=form, safetensors=safetensors.DTYPES)
    with path.open("xb") as file:
        for source in flat.arrays.values():
            write_array(source, file)


def write_array(source: ArraySource, file: BinaryIO) -> None:
    """Write an array as numpy.save does."""
    from numpy.lib import format as numpy_format

    descr = numpy_format.dtype_to_descr(np.dtype(source.dtype))
    header = {"descr": descr, "fortran_order": False, "shape": source.shape}
    numpy_format.write_array_header_1_0(file, header)
    file.writelines(source.pieces())
