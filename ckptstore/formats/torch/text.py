"""Long texts in a pickle, left in the file until they are needed.

The protocol of torch.save has no bytes, so a numpy array is a text in its pickle, with a character
for each byte. Reading the pickle passes over a long text: a short name, which no file can know
beforehand, stands for it. A pickle may use one text any number of times, so this also bounds the
memory that a file can make a process take.
"""

from __future__ import annotations

import codecs
import io
import secrets
from typing import TYPE_CHECKING, Any

from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError
from ckptstore.formats.torch.zip import PICKLE_BYTES_MAX

if TYPE_CHECKING:
    from ckptstore.arrays.file import ByteSource
    from ckptstore.formats.torch.numpy import PickledArray
    from ckptstore.formats.window import Window

ARRAYS_BYTES_MAX = 1 << 30  # of the numpy arrays of a file, which are read and written whole
LONG_BYTES = 1 << 10
LINE_BYTES_MAX = 4096  # of the name of a class
BUFFER_BYTES = 64 << 10
PIECE_BYTES = 4 << 20
NAME_LENGTH = 40  # of the name that stands for a long text


class PickleStream(io.BufferedReader):
    """A window of a file that holds pickles."""

    def __init__(self, window: Window) -> None:
        super().__init__(window, BUFFER_BYTES)
        self.window = window

    def readline(self, size: int | None = -1) -> bytes:
        """Return a line, cut off at a length that no line of a pickle has."""
        return super().readline(LINE_BYTES_MAX if size is None or size < 0 else size)


class LongTexts:
    """The long texts of a file's pickles."""

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self._secret = secrets.token_hex(16)
        self._places: dict[str, tuple[int, int]] = {}
        self._text_bytes_left, self._array_bytes_left = PICKLE_BYTES_MAX, ARRAYS_BYTES_MAX

    def is_long(self, size: int) -> bool:
        """Whether only a text can have this many bytes."""
        return size >= LONG_BYTES

    def skip(self, stream: PickleStream, size: int) -> bytes:
        """Pass over a text of `size` bytes; return the name that stands for it."""
        position = stream.tell()
        if size > stream.window.size - position:
            raise ValueError("it ends in the middle of a text")
        stream.seek(position + size)
        name = f"{self._secret}{len(self._places):0{NAME_LENGTH - len(self._secret)}}"
        self._places[name] = stream.window.start + position, size
        return name.encode()

    def value(self, value: str | bytes | bytearray) -> str | bytes | bytearray:
        """Return the long text, or bytes, that a value stands for, otherwise the value.

        Raises:
            InvalidInputError: The file has more of them than fit in memory.
        """
        place = self._place(value)
        if place is None:
            return value
        start, size = place
        self._text_bytes_left -= size
        if self._text_bytes_left < 0:
            raise InvalidInputError(
                f"{self._file.path} holds texts or bytes of more than {PICKLE_BYTES_MAX} bytes. "
                "Store them as tensors."
            )
        try:
            text = str(self._file.read(start, size), "utf-8", "surrogatepass")
            return text if isinstance(value, str) else type(value)(text.encode("latin-1"))
        except UnicodeError as error:
            raise InvalidInputError(
                f"{self._file.path} is not a file that torch.save wrote: {error}."
            ) from error

    def array(self, pickled: PickledArray) -> Any:
        """Return a numpy array.

        Raises:
            InvalidInputError: Its bytes do not fit its dtype and shape, its dtype is unknown, or
                the file has more arrays than fit in memory.
        """
        dtype = pickled.dtype.newbyteorder("=").name
        if dtype not in ITEM_BYTES:
            raise self.refused(f"of dtype {dtype}, which no checkpoint can hold")
        self._array_bytes_left -= pickled.nbytes
        if self._array_bytes_left < 0:
            raise InvalidInputError(
                f"{self._file.path} holds numpy arrays of more than {ARRAYS_BYTES_MAX} bytes, "
                "which would be read at once. Store them as tensors, or in a .npz file."
            )
        place = self._place(pickled.data)
        data = bytearray(pickled.data) if place is None else self._bytes(*place, pickled.nbytes)
        if len(data) != pickled.nbytes:
            raise self.refused("whose bytes do not fit its shape")
        try:
            return pickled.filled(data)
        except ValueError as error:  # of empty arrays with lengths that numpy does not take
            raise self.refused(f"that numpy cannot make: {error}") from error

    def _place(self, value: str | bytes | bytearray) -> tuple[int, int] | None:
        """Where the text that a value stands for begins, and its bytes."""
        if len(value) != NAME_LENGTH:
            return None
        return self._places.get(value if isinstance(value, str) else value.decode("latin-1"))

    def _bytes(self, start: int, size: int, nbytes: int) -> bytearray:
        """The bytes of an array, a character for each; empty if there cannot be that many."""
        data = bytearray()
        if not nbytes <= size <= 2 * nbytes:
            return data
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for at in range(0, size, PIECE_BYTES):
                piece = self._file.read(start + at, min(PIECE_BYTES, size - at))
                data += decoder.decode(piece, at + PIECE_BYTES >= size).encode("latin-1")
        except UnicodeError as error:
            raise self.refused("whose text does not stand for bytes") from error
        return data

    def refused(self, why: str) -> InvalidInputError:
        """The error for a numpy array that cannot be read."""
        return InvalidInputError(f"{self._file.path} holds a numpy array {why}.")
