"""Long texts in a pickle that torch.save wrote, left where they lie in the file.

Its protocol has no bytes, so a numpy array is a text in it, with a character for each byte. A long one is not read with the
pickle: a short name stands for it, which no file can know beforehand, until somebody wants what it stands for.
"""

from __future__ import annotations

import codecs
import io
import secrets
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ckptstore.arrays.file import FileArray, OpenFile, Scratch
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError
from ckptstore.formats.torch.numpy import NAME_LENGTH, LongArray
from ckptstore.formats.torch.turned import is_turned, turned
from ckptstore.formats.torch.zip import PICKLE_BYTES_MAX, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

LONG_BYTES = 1 << 10  # 65,000 arrays of less fit in what is read of a pickle
BUFFER_BYTES = 64 << 10
PIECE_BYTES = 4 << 20
LINE_BYTES_MAX = 4096  # of the name of a class


class PickleStream(io.BufferedReader):
    """A window of a file in which pickles lie."""

    def __init__(self, window: Window) -> None:
        super().__init__(_Pieces(window.file, start=window.start, size=window.size), BUFFER_BYTES)
        self.window = window

    def readline(self, size: int | None = -1) -> bytes:
        """A line, cut where no line of a pickle ends."""
        return super().readline(LINE_BYTES_MAX if size is None or size < 0 else size)


class _Pieces(Window):
    """A window that gives a buffer's worth at a time."""

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill a part of a buffer: the bytes that were read."""
        return super().readinto(memoryview(buffer)[:BUFFER_BYTES])


class LongTexts:
    """The long texts of one file's pickles."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._secret = secrets.token_hex(16)
        self._places: dict[str, tuple[int, int]] = {}
        self._scratch = Scratch(file.path)
        self._made: dict[tuple[str, str, bool], tuple[Scratch, int, int]] = {}
        self._left = PICKLE_BYTES_MAX

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def is_long(self, size: int) -> bool:
        """True for so many bytes that nothing but a text has."""
        return size >= LONG_BYTES

    def skip(self, stream: PickleStream, size: int) -> bytes:
        """Pass over a text of so many bytes: the name that stands for it."""
        position = stream.tell()
        if size > stream.window.size - position:
            raise ValueError("it ends in the middle of a text")
        stream.seek(position + size)
        name = f"{self._secret}{len(self._places):0{NAME_LENGTH - len(self._secret)}}"
        self._places[name] = stream.window.start + position, size
        return name.encode()

    def text(self, name: str) -> str:
        """The text that a name stands for. InvalidInputError for more than fits in memory."""
        start, size = self._places[name]
        self._left -= size
        if self._left < 0:
            raise InvalidInputError(
                f"{self._file.path} holds texts or bytes of more than {PICKLE_BYTES_MAX} bytes. Store them as tensors."
            )
        try:
            return str(self._file.read(start, size), "utf-8", "surrogatepass")
        except ValueError as error:
            raise InvalidInputError(
                f"{self._file.path} is not a file that torch.save wrote: {error}."
            ) from error

    def array(self, found: LongArray) -> Any:
        """An array whose bytes are a long text, by way of a file without a name."""
        if found.text not in self._places:
            if found.nbytes != len(found.text):
                raise self._misfit()
            return found.of(found.text.encode("latin-1"))
        name = found.dtype.newbyteorder("=").name
        if name not in ITEM_BYTES:
            raise InvalidInputError(
                f"{self._file.path} holds a numpy array of dtype {name}, which no checkpoint can hold."
            )
        has_to_turn = is_turned(is_fortran=found.is_fortran, shape=found.shape)
        key = found.text, "" if found.dtype.isnative else found.dtype.str, has_to_turn
        if key not in self._made:
            scratch = Scratch(self._file.path) if has_to_turn else self._scratch
            offset = scratch.add(lambda file: self._write(found.text, found.dtype, file))
            self._made[key] = scratch, offset, scratch.nbytes - offset
        scratch, offset, size = self._made[key]
        if size != found.nbytes:
            raise self._misfit()
        array = FileArray(
            scratch,
            kind="ndarray",
            dtype=name,
            shape=found.shape,
            offset=offset,
            identity=object(),
        )
        return turned(array, self._scratch) if has_to_turn else array

    def _misfit(self) -> InvalidInputError:
        return InvalidInputError(
            f"{self._file.path} holds a numpy array whose bytes do not fit its shape."
        )

    def _write(self, name: str, dtype: np.dtype[Any], file: BinaryIO) -> None:
        """Write the bytes that a text stands for, each element as this machine has it."""
        part = dtype.itemsize // (2 if dtype.kind == "c" else 1)
        rest = b""
        for piece in self._bytes(name):
            data = rest + piece
            whole = len(data) // part * part
            rest = data[whole:]
            if dtype.isnative:
                file.write(memoryview(data)[:whole])
            else:
                words = np.frombuffer(data, f"u{part}", count=whole // part)
                file.write(words.byteswap().tobytes())
        file.write(rest)

    def _bytes(self, name: str) -> Iterator[bytes]:
        start, size = self._places[name]
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for at in range(0, size, PIECE_BYTES):
                read = self._file.read(start + at, min(PIECE_BYTES, size - at))
                yield decoder.decode(read, at + PIECE_BYTES >= size).encode("latin-1")
        except ValueError as error:  # whatever has no byte for a character
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"{self._file.path} holds a numpy array whose bytes are none."
            ) from error
