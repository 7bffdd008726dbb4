"""numpy's .npz: a zip file of .npy files. Stored members are read where they lie, compressed ones are unpacked first.

No pickle is ever read, so arrays of Python objects are refused.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptstore.arrays.file import OpenFile, Scratch
from ckptstore.errors import InvalidInputError
from ckptstore.formats import npy, safetensors
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.names import nested

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.file import FileArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.tree import Flat

READ_BYTES_MAX = 8 << 20  # at once: the longest list of members, some 80,000
PIECE_BYTES = 1 << 20
DEFLATE_RATIO_MAX = 1032  # of what was compressed to that
_SUFFIX = ".npy"
_ERRORS = (EOFError, ValueError, OSError, NotImplementedError, RuntimeError)  # of zipfile, too
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays by name."""
    file, scratch = OpenFile(path), Scratch(path)
    try:
        with zipfile.ZipFile(_Reader(file)) as archive:
            members = _members(archive, file)
            arrays = {name: _array(archive, info, file, scratch) for name, info in members.items()}
    except InvalidInputError:
        raise
    except (zipfile.BadZipFile, zlib.error, struct.error, *_ERRORS) as error:
        raise _damaged(path, error) from error
    return nested(arrays), {}


class _Reader:
    """An open file as zipfile wants it, which refuses to read more at once than an honest file needs."""

    def __init__(self, file: OpenFile) -> None:
        self.file, self.position = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.file.nbytes}[whence]
        if base + offset < 0:
            raise OSError("it points before its beginning")
        self.position = base + offset
        return self.position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.file.nbytes - self.position)
        size = left if size < 0 else min(size, left)
        if size > READ_BYTES_MAX:
            raise ValueError(
                f"its list of members takes {size} bytes; at most {READ_BYTES_MAX} are read"
            )
        data = self.file.read(self.position, size)
        self.position += size
        return data


def _members(archive: zipfile.ZipFile, file: OpenFile) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays, once what is said of them can be so."""
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name, where = info.filename, f"The member {info.filename[:60]!r} of {file.path}"
        if not name.endswith(_SUFFIX):
            raise InvalidInputError(f"{where} is no array: its name does not end in {_SUFFIX}.")
        if name.removesuffix(_SUFFIX) in members:
            raise InvalidInputError(f"{where} is there twice.")
        if info.flag_bits & _ENCRYPTED:
            raise InvalidInputError(f"{where} is encrypted.")
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO_MAX}.get(
            info.compress_type, 0
        )
        if not ratio:
            raise InvalidInputError(f"{where} is compressed in a way that numpy does not read.")
        if info.file_size > ratio * info.compress_size or info.header_offset < end:
            raise InvalidInputError(
                f"{where} cannot unpack to the {info.file_size} bytes that it claims."
            )
        members[name.removesuffix(_SUFFIX)] = info
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if end > file.nbytes:
        raise InvalidInputError(f"{file.path} is cut short: its members end at byte {end}.")
    in_order = {info.filename.removesuffix(_SUFFIX): info for info in archive.infolist()}
    unpacked = sum(
        info.file_size for info in in_order.values() if info.compress_type != zipfile.ZIP_STORED
    )
    free = shutil.disk_usage(tempfile.gettempdir()).free if unpacked else 0
    if unpacked > free:
        raise InvalidInputError(
            f"{file.path} unpacks to {unpacked} bytes, and {tempfile.gettempdir()} has room for {free}. Set TMPDIR to a "
            "folder that has more."
        )
    return in_order


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: OpenFile, scratch: Scratch
) -> FileArray:
    """One array, once its bytes agree with their checksum."""
    name = f"The member {info.filename[:60]!r} of {file.path}"
    if info.compress_type != zipfile.ZIP_STORED:
        with archive.open(info) as member:
            is_brief = npy.has_to_be_turned(member.read(npy.HEAD_BYTES_MAX), name)
        unpacked = Scratch(file.path) if is_brief else scratch
        start = unpacked.add(lambda target: _copy(archive, info, target))
        size = unpacked.nbytes - start
        return npy.array_in(unpacked, start, size, scratch=scratch, name=name)
    _copy(archive, info, None)
    header = file.read(info.header_offset, _LOCAL_HEADER_BYTES)
    name_length, extra_length = struct.unpack("<HH", header[-4:])
    start = info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length
    return npy.array_in(file, start, info.file_size, scratch=scratch, name=name)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: BinaryIO | None) -> None:
    """Unpack a member, which checks it."""
    with archive.open(info) as member:
        left = info.file_size
        while data := member.read(PIECE_BYTES):
            left -= len(data)
            if target:
                target.write(data)
    if left:
        raise zipfile.BadZipFile(f"{info.filename[:60]!r} has not the length that it claims")


def _damaged(path: Path, error: Exception) -> InvalidInputError:
    reason = str(error).removesuffix(".")[:200] or "it ends early"
    return InvalidInputError(f"{path} is not a .npz file, or damaged: {reason}.")


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write every array under its path; numpy.load reads them by it."""
    form = "A .npz file"
    check_values(flat, form=form, drop_values=drop_values)
    check_dtypes(flat, npy.DTYPES, form=form, safetensors=safetensors.DTYPES)
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, source in flat.arrays.items():
            with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as member:
                npy.write_array(source, member)  # type: ignore[arg-type]
