"""numpy's .npz: a zip archive of .npy files.

Stored members are read in place. Compressed ones are unpacked to a temporary file first, once the
archive's claims about them are plausible. Pickles are never read.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from ckptstore.arrays.file import OpenFile, Scratch
from ckptstore.arrays.memory_limit import check_unpacked
from ckptstore.documents.dtypes import NUMPY_DTYPES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import npy, safetensors
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.names import nested
from ckptstore.formats.window import ReadTooLargeError, Window

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.lazy import LazyArray
    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

READ_BYTES_MAX = 8 << 20  # at once: a list of about 80,000 members
PIECE_BYTES = 1 << 20
DEFLATE_RATIO_MAX = 1032  # of unpacked to compressed bytes, at the very most
_SUFFIX = ".npy"
_ERRORS = (EOFError, ValueError, OSError, NotImplementedError, RuntimeError)  # also of zipfile
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1


def read(path: Path, *, bytes_max: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays by name, as nested dicts where the names are paths, and no metadata.

    Args:
        path: The file.
        bytes_max: The most bytes that compressed arrays may unpack to; see `check_unpacked`.
    """
    file, scratch = OpenFile(path), Scratch(path)
    try:
        with zipfile.ZipFile(Window(file, read_bytes_max=READ_BYTES_MAX)) as archive:
            members = _members(archive, file, bytes_max)
            arrays = {name: _array(archive, info, file, scratch) for name, info in members.items()}
    except InvalidInputError:
        raise
    except ReadTooLargeError as error:
        raise _damaged(path, f"its list of members is too long: {error}") from error
    except (zipfile.BadZipFile, zlib.error, struct.error, *_ERRORS) as error:
        raise _damaged(path, error) from error
    return nested(arrays), {}


def _members(
    archive: zipfile.ZipFile, file: OpenFile, bytes_max: int | None
) -> dict[str, zipfile.ZipInfo]:
    """Return the members by the names of their arrays, after checking the archive's claims."""
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        name, where = info.filename, f"The member {info.filename[:60]!r} of {file.path}"
        if not name.endswith(_SUFFIX):
            raise InvalidInputError(f"{where} is not an array: its name does not end in {_SUFFIX}.")
        if name.removesuffix(_SUFFIX) in members:
            raise InvalidInputError(f"{where} occurs twice.")
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
    check_unpacked(str(file.path), unpacked, stored=file.nbytes, bytes_max=bytes_max)
    free = shutil.disk_usage(tempfile.gettempdir()).free if unpacked else 0
    if unpacked > free:
        raise InvalidInputError(
            f"{file.path} unpacks to {unpacked} bytes, and {tempfile.gettempdir()} has room for "
            f"{free}. Set TMPDIR to a folder that has more."
        )
    return in_order


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: OpenFile, scratch: Scratch
) -> LazyArray:
    """Return one array, after comparing its bytes with their checksum."""
    name = f"The member {info.filename[:60]!r} of {file.path}"
    if info.compress_type != zipfile.ZIP_STORED:
        start = scratch.add(lambda target: _copy(archive, info, target))
        return npy.array_in(scratch, start, scratch.nbytes - start, name=name)
    _copy(archive, info, None)
    header = file.read(info.header_offset, _LOCAL_HEADER_BYTES)
    name_length, extra_length = struct.unpack("<HH", header[-4:])
    start = info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length
    return npy.array_in(file, start, info.file_size, name=name)


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: BinaryIO | None) -> None:
    """Unpack a member, which compares it with its checksum."""
    with archive.open(info) as member:
        left = info.file_size
        while data := member.read(PIECE_BYTES):
            left -= len(data)
            if target:
                target.write(data)
    if left:
        raise zipfile.BadZipFile(f"{info.filename[:60]!r} does not have the length that it claims")


def _damaged(path: Path, error: object) -> InvalidInputError:
    reason = str(error).removesuffix(".")[:200] or "it ends early"
    return InvalidInputError(f"{path} is not a .npz file, or damaged: {reason}.")


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write every array under its path, which is its name in numpy.load."""
    form = "A .npz file"
    check_values(flat, form=form, drop_values=drop_values)
    check_dtypes(flat, NUMPY_DTYPES, form=form, safetensors=safetensors.DTYPES)
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, source in flat.arrays.items():
            with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as member:
                npy.write_array(source, member)  # type: ignore[arg-type]
