"""What torch.save writes into a pickle and weights_only=True refuses: numpy arrays and numbers, and bytes of length 0.

numpy's own functions would believe what a file says of a dtype. So their names stand for the few lines here, which make
arrays of numbers and nothing else.
"""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_NUMBERS = re.compile(r"[biufc][0-9]{1,2}")
_NAMES = re.compile(r"GLOBAL (numpy\.|ml_dtypes\.|bytes )")
_ML_DTYPES = [name for name in ITEM_BYTES if name.startswith(("bfloat", "float8"))]
NAME_LENGTH = 40  # of the name that stands for a long text
_lock = Lock()  # torch keeps the list of what is allowed for the whole process


class MoreThanNumbersError(ValueError):
    """What it says, as in: the file holds a numpy array of objects."""


class LongArray(NamedTuple):
    """A numpy array whose bytes may not have been read; `text` is the name that stands for them, or else its bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    text: str

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, data: bytes) -> Any:
        """The array of these bytes, each element as this machine has it."""
        if self.nbytes != len(data):
            raise MoreThanNumbersError("a numpy array whose bytes do not fit its shape")
        flat = np.frombuffer(bytearray(data), dtype=self.dtype)
        if not self.dtype.isnative:
            flat = flat.byteswap(inplace=True).view(self.dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class PickledArray:
    """A numpy array that is being unpickled, and then is its `array`."""

    array: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if type(dtype) is not _Dtype or type(data) is not bytes or type(shape) is not tuple:
            raise MoreThanNumbersError("a numpy array of objects")
        found = dtype.found()
        if not all(type(length) is int and length >= 0 for length in shape):
            raise MoreThanNumbersError("a numpy array of a negative shape")
        array = LongArray(found, shape, bool(is_fortran), data.decode("latin-1"))
        self.array = array if len(data) == NAME_LENGTH else array.of(data)


class _Dtype:
    """A numpy dtype that is being unpickled."""

    code: object
    order: Any

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def found(self) -> np.dtype[Any]:
        """The dtype. MoreThanNumbersError for all but numbers."""
        if type(self.code) is not str or self.order not in ("<", ">", "=", "|"):
            raise MoreThanNumbersError("a numpy dtype other than of numbers")
        if self.code in _ML_DTYPES:
            import ml_dtypes

            found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.code))
            return found
        if not _NUMBERS.fullmatch(self.code):
            raise MoreThanNumbersError("a numpy dtype other than of numbers")
        return np.dtype(self.code).newbyteorder(self.order)


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not _Dtype or type(data) is not bytes:
        raise MoreThanNumbersError("a numpy number that is none")
    (value,) = np.frombuffer(data, dtype=dtype.found())
    return value


def _bytes(*arguments: object) -> bytes:
    if arguments:
        raise MoreThanNumbersError("bytes made by a call")
    return b""


_STAND_INS: list[Any] = [
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (PickledArray, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_bytes, "builtins.bytes"),
    *((name, f"ml_dtypes.{name}") for name in _ML_DTYPES),
]


def is_allowable(error: Exception) -> bool:
    """True when a pickle was refused for one of those."""
    return bool(_NAMES.search(str(error)))


@contextmanager
def allowed() -> Iterator[None]:
    """Let torch's unpickler make those, for a moment."""
    with _lock, torch.serialization.safe_globals(_STAND_INS):
        yield
