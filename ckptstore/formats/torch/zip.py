"""The zip archives of torch.save: uncompressed records by name, in a file or a part of one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import zip_directory
from ckptstore.formats.zip_directory import HEADER_BYTES

if TYPE_CHECKING:
    from ckptstore.formats.window import Window

PICKLE_BYTES_MAX = 64 << 20


class Archive:
    """The records of an archive.

    Raises:
        InvalidInputError: It is not an archive, or it holds code or compressed records.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        try:
            records = zip_directory.records(self._read, window.size)
        except zip_directory.TooManyRecordsError as error:
            raise InvalidInputError(
                f"{window.file.path} has too many records: {error}. Save its state in several "
                "files."
            ) from error
        except zip_directory.CutShortError as error:
            raise zip_directory.cut_short(window.file.path) from error
        except ValueError as error:
            raise self.invalid(f"{error}.") from error
        folder = next(iter(records), b"").partition(b"/")[0] + b"/"
        self._records = {
            name.removeprefix(folder): record
            for name, record in records.items()
            if name.startswith(folder)
        }
        if "constants.pkl" in self:
            raise InvalidInputError(
                f"{window.file.path} is a TorchScript archive, which holds code. If you trust it, "
                "load it yourself and commit its state_dict."
            )
        if not all(record.is_plain for record in records.values()):
            raise self.invalid("it is compressed or encrypted. Unpack it yourself if you trust it.")

    def invalid(self, why: str) -> InvalidInputError:
        """Return an error that explains why this is not such an archive."""
        return InvalidInputError(
            f"{self._window.file.path} is not a file that torch.save wrote: {why}"
        )

    def __contains__(self, name: str) -> bool:
        return os.fsencode(name) in self._records

    def place(self, name: str) -> tuple[int, int]:
        """Return where a record's bytes begin in the file, and how many there are."""
        if name not in self:
            raise self.invalid(f"it has no record {shown(name)}.")
        at, size, *_ = self._records[os.fsencode(name)]
        room = self._window.size - at - HEADER_BYTES
        if room < 0:
            raise self.invalid(f"its record {shown(name)} is outside of it.")
        behind = zip_directory.behind_header(self._read(at, HEADER_BYTES))
        if behind is None or behind - HEADER_BYTES + size > room:
            raise self.invalid(f"its record {shown(name)} is beyond its end, or has no header.")
        return self._window.start + at + behind, size

    def crc(self, name: str) -> int:
        """Return the CRC-32 that a record states; 0 where torch was told to compute none."""
        return self._records[os.fsencode(name)].crc

    def read(self, name: str, *, bytes_max: int = PICKLE_BYTES_MAX) -> bytes:
        """Return the bytes of a small record."""
        start, size = self.place(name)
        if size > bytes_max:
            raise self.invalid(
                f"its record {shown(name)} has {size} bytes; at most {bytes_max} are read."
            )
        return self._window.file.read(start, size)

    def _read(self, start: int, size: int) -> bytes:
        return self._window.file.read(self._window.start + start, size)
