"""Large numpy arrays in a pickle that torch.load reads, written a piece at a time: the counterpart of `torch_text`.

The state is pickled with short texts in place of the arrays' bytes, and each is then replaced by the text that pickle would
have made of the bytes: a character for each, in UTF-8.
"""

from __future__ import annotations

import _codecs
import pickle
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.arrays.source import numpy_dtype
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats.torch.text import LONG_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.arrays.source import ArraySource

PIECE_BYTES = 4 << 20
TEXT_BYTES_MAX = 0xFFFF_FFFF  # four bytes tell its length
_HIGH = 0x80  # characters from here on take two bytes


@dataclass(frozen=True, slots=True)
class Plain:
    """A part of a pickle."""

    data: bytes

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """All of it."""
        yield self.data


@dataclass(frozen=True, slots=True)
class Text:
    """The operation that makes a text of an array's bytes. length: of the text, in bytes of UTF-8."""

    source: ArraySource
    length: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(_opening(self.length)) + self.length

    def pieces(self) -> Iterator[bytes]:
        """The operation, a piece at a time."""
        yield _opening(self.length)
        for piece in self.source.pieces():
            for start in range(0, len(piece), PIECE_BYTES):
                yield str(piece[start : start + PIECE_BYTES], "latin-1").encode("utf-8")


class ArrayTexts:
    """The texts that stand for the arrays of one pickle."""

    def __init__(self) -> None:
        self._secret = secrets.token_hex(16)
        self._sources: list[ArraySource] = []
        self._lengths: list[int] = []

    def is_long(self, source: ArraySource) -> bool:
        """True for an array that is worth it."""
        return source.nbytes >= LONG_BYTES

    def stand_in(self, source: ArraySource, path: str) -> object:
        """What pickles as the array would. InvalidInputError for one that is too large for the protocol."""
        high = sum(int(np.count_nonzero(_words(piece) >= _HIGH)) for piece in source.pieces())
        if source.nbytes + high > TEXT_BYTES_MAX:
            raise InvalidInputError(
                f"A .pt file has no form for the numpy array {shown(path)}: it would be a text of {source.nbytes + high} bytes, "
                f"and one has at most {TEXT_BYTES_MAX}. Choose other arrays (include), or write a .zarr."
            )
        self._sources.append(source)
        self._lengths.append(source.nbytes + high)
        return _Array(source, self._name(len(self._sources) - 1))

    def filled(self, data: bytes) -> list[Plain | Text]:
        """The pickle with the arrays' texts in place of what stood for them."""
        parts: list[Plain | Text] = []
        position = 0
        opening = re.escape(_opening(len(self._name(0))))
        for found in re.finditer(opening + self._secret.encode() + rb"([0-9]{8})", data):
            number = int(found[1])
            text = Text(self._sources[number], self._lengths[number])
            parts += [Plain(data[position : found.start()]), text]
            position = found.end()
        return [*parts, Plain(data[position:])]

    def _name(self, number: int) -> str:
        return f"{self._secret}{number:08}"


class _Array:
    """Pickles as a numpy array whose bytes are the text of this name."""

    def __init__(self, source: ArraySource, name: str) -> None:
        self.source, self.name = source, name

    def __reduce__(self) -> tuple[Any, ...]:
        empty: Any = np.empty(0, numpy_dtype(self.source.dtype))
        rebuild, arguments, (version, _, dtype, _, _) = empty.__reduce__()
        return rebuild, arguments, (version, self.source.shape, dtype, False, _Bytes(self.name))


class _Bytes:
    """Pickles as bytes do."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _codecs.encode, (self.name, "latin1")


def _opening(length: int) -> bytes:
    return pickle.BINUNICODE + length.to_bytes(4, "little")


def _words(piece: bytes | memoryview) -> Any:
    return np.frombuffer(piece, np.uint8)
