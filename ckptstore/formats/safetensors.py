"""Hugging Face's .safetensors: tensors by name, without nesting or plain values.

The safetensors library checks a file, and the tensors are then read at the places in its header. A
file that is written equals, byte for byte, what `safetensors.torch.save_file` writes of the same
tensors.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.arrays import json_document
from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.strided import FileArray
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.names import nested

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

HEADER_BYTES_MAX = 16 << 20  # about 100,000 tensors; a structure names at most 250,000
LIBRARY_HEADER_BYTES_MAX = 100_000_000
KIND = "tensor"
FORM = "A .safetensors file"
_LENGTH_BYTES = 8  # of the header's length, at the beginning of the file
_METADATA, _PLACES = "__metadata__", "DCP_SHARDING_INFO"
_PAIR = "float4_e2m1fn_x2"  # an element is a byte here, and 4 bits in the format
DTYPES = {  # in the order in which the library writes arrays
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    _PAIR: "F4",
    "bool": "BOOL",
}
_ORDER = {dtype: position for position, dtype in enumerate(DTYPES)}
_NAMES = {name: dtype for dtype, name in DTYPES.items()}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors by name, nested where the names are paths, and the file's metadata."""
    tensors, metadata = read_tensors(path)
    return nested(tensors), {"safetensors": metadata} if metadata else {}


def read_tensors(path: Path, *, follow: bool = True) -> tuple[dict[str, FileArray], dict[str, str]]:
    """Return the tensors of a file by name, in the order of its header, and its metadata.

    Args:
        path: Path of the file.
        follow: Whether it may be a link.

    Raises:
        InvalidInputError: It is damaged, or holds what no checkpoint can hold.
    """
    tensors, metadata, _ = read_all(path, follow=follow)
    return tensors, metadata


def read_all(
    path: Path, *, follow: bool = True
) -> tuple[dict[str, FileArray], dict[str, str], FileArray]:
    """Return what `read_tensors` does, and the bytes of the header, as one more array.

    Args:
        path: Path of the file.
        follow: Whether it may be a link.

    Raises:
        InvalidInputError: It is damaged, or holds what no checkpoint can hold.
    """
    file = OpenFile(path, follow=follow)
    length = _header_length(file)
    start = _LENGTH_BYTES + length
    try:
        data = json_document.read(file, _LENGTH_BYTES, length)
        _check(path)
        header = json_document.parse(data)
        metadata = header.pop(_METADATA, None) or {}
        _check_whole(path, metadata)
        tensors = {name: _array(file, start, entry) for name, entry in header.items()}
    except InvalidInputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _invalid(path, error) from error
    return tensors, metadata, FileArray(file, kind=KIND, dtype="uint8", shape=(start,), offset=0)


def _header_length(file: OpenFile) -> int:
    """The length of the header, after comparing it with the file and with the limit."""
    if file.nbytes < _LENGTH_BYTES:
        raise _invalid(file.path, "it is too short to have a header")
    length = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
    if length > file.nbytes - _LENGTH_BYTES:
        raise _invalid(file.path, f"it has {file.nbytes} bytes, and its header would have {length}")
    if length > HEADER_BYTES_MAX:
        raise InvalidInputError(
            f"{file.path} is not a safetensors file that can be committed: its header has {length} "
            f"bytes; at most {HEADER_BYTES_MAX} are read."
        )
    return length


def _check(path: Path) -> None:
    """Let the library check a file: overlaps and holes, sizes, dtypes, the length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise _invalid(path, error) from error


def _check_whole(path: Path, metadata: Mapping[str, str]) -> None:
    """Refuse parts of tensors, whose places torch.distributed.checkpoint puts in the metadata."""
    places = metadata.get(_PLACES, "{}").encode()
    json_document.check(places)
    if any(any(place["saved_offsets"]) for place in json_document.parse(places).values()):
        raise InvalidInputError(
            f"{path} holds parts of tensors, as one of several files of "
            "torch.distributed.checkpoint. Consolidate them (HuggingFaceStorageWriter with "
            "enable_consolidation=True), and commit the result."
        )


def _array(file: OpenFile, start: int, entry: Mapping[str, Any]) -> FileArray:
    begin, end = entry["data_offsets"]
    dtype, shape = _form(entry)
    if (
        not begin <= end <= file.nbytes - start
        or end - begin != math.prod(shape) * ITEM_BYTES[dtype]
    ):
        raise ValueError("it was changed while it was read")  # since the library looked
    return FileArray(file, kind=KIND, dtype=dtype, shape=shape, offset=start + begin)


def _form(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape of a tensor in a header, as a checkpoint has them."""
    if entry["dtype"] not in _NAMES:
        raise ValueError(f"it has a tensor of dtype {entry['dtype']}, which no checkpoint can hold")
    dtype = _NAMES[entry["dtype"]]
    shape = tuple(entry["shape"])
    if dtype == _PAIR:
        if not shape or shape[-1] % 2:
            raise ValueError(f"it has a tensor of dtype F4 whose rows end within a byte: {shape}")
        shape = (*shape[:-1], shape[-1] // 2)
    return dtype, shape


def _invalid(path: Path, why: object) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not a safetensors file: {str(why).removesuffix('.')[:500]}."
    )


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write every array under its path."""
    check(flat, drop_values=drop_values)
    write_tensors(flat.arrays, path)


def check(flat: Flat[ArraySource], *, drop_values: bool) -> None:
    """Refuse a state that the format cannot hold."""
    check_values(flat, form=FORM, drop_values=drop_values)
    check_dtypes(flat, DTYPES, form=FORM)
    for name, source in flat.arrays.items():
        if source.dtype == _PAIR and not source.shape:
            raise InvalidInputError(
                f"{FORM} counts 4-bit floats one by one, so {name}, two of them without a "
                "dimension, has no form in it. Reshape it to (1,), or write a .pt file."
            )


def write_tensors(
    tensors: Mapping[str, ArraySource], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name to a new file."""
    ordered = sorted(tensors.items(), key=_place)
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, source in ordered:
        begin, end = end, end + source.nbytes
        shape = list(source.shape)
        if source.dtype == _PAIR:
            shape[-1] *= 2
        header[name] = {
            "dtype": DTYPES[source.dtype],
            "shape": shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LIBRARY_HEADER_BYTES_MAX:
        raise InvalidInputError(
            f"The state has {len(ordered)} arrays, and their names and shapes take {len(text)} "
            f"bytes. {FORM} has room for {LIBRARY_HEADER_BYTES_MAX}. Choose arrays (include), or "
            "write shards (shard_bytes)."
        )
    with path.open("xb") as file:
        file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
        for _, source in ordered:
            file.writelines(source.pieces())


def _place(item: tuple[str, ArraySource]) -> tuple[int, str]:
    name, source = item
    return _ORDER[source.dtype], name


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header of a file, from which a file of other tensors of the same forms can be written.

    Attributes:
        data: Its bytes, and those of its length before them.
        metadata: The texts in it.
        forms: The dtype and shape of each tensor, in the order of their bytes.
    """

    data: bytes
    metadata: Mapping[str, str]
    forms: Mapping[str, tuple[str, tuple[int, ...]]]

    @classmethod
    def parse(cls, data: bytes) -> Header | None:
        """Return a header, which anybody may have made; None if it is not one of a whole file."""
        try:
            if int.from_bytes(data[:_LENGTH_BYTES], "little") != len(data) - _LENGTH_BYTES:
                return None
            json_document.check(data[_LENGTH_BYTES:])
            document = json_document.parse(data[_LENGTH_BYTES:])
            metadata = dict(document.pop(_METADATA, None) or {})
            forms, end = {}, 0
            for name, entry in sorted(document.items(), key=lambda item: item[1]["data_offsets"]):
                dtype, shape = forms[name] = _form(entry)
                begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
                if entry["data_offsets"] != [begin, end]:
                    return None
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        is_text = all(type(text) is str for text in (*metadata, *metadata.values()))
        return cls(data=data, metadata=metadata, forms=forms) if is_text else None

    def fits(self, tensors: Mapping[str, ArraySource]) -> bool:
        """Return whether tensors have the names, dtypes and shapes of this header."""
        return self.forms == {name: (one.dtype, one.shape) for name, one in tensors.items()}

    def write(self, tensors: Mapping[str, ArraySource], path: Path) -> None:
        """Write tensors that fit to a new file."""
        with path.open("xb") as file:
            file.write(self.data)
            for name in self.forms:
                file.writelines(tensors[name].pieces())
