"""Members of a zip archive, checked before anything is unpacked, and placed where they can be read.

A stored member is read where it is, and a compressed one is unpacked to a temporary file. Either is
compared with its checksum.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

from ckptstore.arrays.memory_limit import check_unpacked
from ckptstore.errors import InvalidInputError
from ckptstore.formats import zip_directory

if TYPE_CHECKING:
    from ckptstore.arrays.file import ByteSource, OpenFile, Scratch

READ_BYTES_MAX = 8 << 20  # at once: a list of about 80,000 members
PIECE_BYTES = 1 << 20
DEFLATE_RATIO_MAX = 1032  # of unpacked to compressed bytes, at the very most
ERRORS = (  # of zipfile
    *(EOFError, ValueError, OSError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 1


def checked(
    archive: zipfile.ZipFile, file: OpenFile, bytes_max: int | None
) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their names, in order, after checking what the archive claims of them.

    Args:
        archive: The archive.
        file: Its file.
        bytes_max: The most bytes that compressed members may unpack to; see `check_unpacked`.

    Raises:
        InvalidInputError: Two members have one name, or one cannot be what is claimed of it.
    """
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        where = name_of(info, file)
        if info.flag_bits & _ENCRYPTED:
            raise InvalidInputError(f"{where} is encrypted.")
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO_MAX}.get(
            info.compress_type, 0
        )
        if not ratio:
            raise InvalidInputError(f"{where} is compressed in a way that is not read.")
        if info.file_size > ratio * info.compress_size or info.header_offset < end:
            raise InvalidInputError(
                f"{where} cannot unpack to the {info.file_size} bytes that it claims."
            )
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size
    if end > file.nbytes:
        raise InvalidInputError(f"{file.path} is cut short: its members end at byte {end}.")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if info.filename in members:
            raise InvalidInputError(f"{name_of(info, file)} occurs twice.")
        members[info.filename] = info
    unpacked = sum(
        info.file_size for info in members.values() if info.compress_type != zipfile.ZIP_STORED
    )
    check_unpacked(str(file.path), unpacked, stored=file.nbytes, bytes_max=bytes_max)
    free = shutil.disk_usage(tempfile.gettempdir()).free if unpacked else 0
    if unpacked > free:
        raise InvalidInputError(
            f"{file.path} unpacks to {unpacked} bytes, and {tempfile.gettempdir()} has room for "
            f"{free}. Set TMPDIR to a folder that has more."
        )
    return members


def unreadable(file: OpenFile, error: object, *, form: str) -> InvalidInputError:
    """Return the error for an archive that cannot be read.

    Args:
        file: The file.
        error: The reason.
        form: The format that was expected, such as ".npz".
    """
    if isinstance(error, zipfile.BadZipFile) and file.nbytes >= len(zip_directory.MAGIC):
        try:
            zip_directory.records(file.read, file.nbytes)
        except zip_directory.CutShortError:
            return zip_directory.cut_short(file.path)
        except ValueError:
            pass  # it is another kind of damage
    reason = str(error).removesuffix(".")[:200] or "it ends early"
    return InvalidInputError(f"{file.path} is not a {form} file, or damaged: {reason}.")


def name_of(info: zipfile.ZipInfo, file: OpenFile) -> str:
    """Return how a member is called in errors."""
    return f"The member {info.filename[:60]!r} of {file.path}"


def placed(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: OpenFile, scratch: Scratch
) -> tuple[ByteSource, int, int]:
    """Return where a member can be read, its position and size, after comparing its checksum."""
    if info.compress_type != zipfile.ZIP_STORED:
        start = scratch.add(lambda target: _copy(archive, info, target))
        return scratch, start, scratch.nbytes - start
    _copy(archive, info, None)
    header = file.read(info.header_offset, _LOCAL_HEADER_BYTES)
    name_length, extra_length = struct.unpack("<HH", header[-4:])
    start = info.header_offset + _LOCAL_HEADER_BYTES + name_length + extra_length
    return file, start, info.file_size


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
