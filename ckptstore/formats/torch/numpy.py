"""What torch.save writes and weights_only=True refuses: numpy arrays and numbers, and empty bytes.

numpy's own functions would believe what a file claims about a dtype. In their place, the unpickler
calls the few lines here, which make arrays of numbers and nothing else.
"""

from __future__ import annotations

import math
import re
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch

from ckptstore.documents.dtypes import ML_DTYPES, TextDtype
from ckptstore.forks import free_in_child, renewed

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = re.compile(r"GLOBAL (numpy\.|ml_dtypes\.|bytes )")
# torch keeps one list of what is allowed for the whole process.
_lock = free_in_child(Lock())
_allowance = renewed(ExitStack(), ExitStack.close)


class MoreThanNumbersError(ValueError):
    """The file holds what the message names, as in "a numpy array of objects"."""


class PickledArray:
    """A numpy array that is being unpickled.

    Its bytes are not read yet: `data` may be the name of a long text (see `LongTexts`).
    """

    dtype: np.dtype[Any] = np.dtype(np.uint8)
    shape: tuple[int, ...] = ()
    is_fortran = False
    data = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        if type(dtype) is not _Dtype or type(data) is not bytes or type(shape) is not tuple:
            raise MoreThanNumbersError("a numpy array of objects")
        self.dtype = dtype.resolved()
        if not all(type(length) is int and length >= 0 for length in shape):
            raise MoreThanNumbersError("a numpy array of a negative shape")
        self.shape, self.is_fortran, self.data = shape, bool(is_fortran), data

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def filled(self, data: bytearray) -> Any:
        """Return the array of these bytes, in the byte order of this machine."""
        flat = np.frombuffer(data, dtype=self.dtype)
        if not self.dtype.isnative:
            flat = flat.byteswap(inplace=True).view(self.dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.is_fortran else "C")


class _Dtype:
    """A numpy dtype that is being unpickled."""

    code: object
    order: Any

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def resolved(self) -> np.dtype[Any]:
        """Return the dtype; MoreThanNumbersError for all but numbers."""
        if type(self.code) is not str or self.order not in ("<", ">", "=", "|"):
            raise MoreThanNumbersError("a numpy dtype other than of numbers")
        if self.code in ML_DTYPES:
            dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self.code))
            return dtype
        known = TextDtype.parse(self.code)
        if known is None or not known.name:
            raise MoreThanNumbersError("a numpy dtype other than of numbers")
        return np.dtype(known.name).newbyteorder(self.order)


def _reconstruct(*_: object) -> PickledArray:
    return PickledArray()


def _scalar(dtype: Any, data: Any) -> Any:
    if type(dtype) is not _Dtype or type(data) is not bytes:
        raise MoreThanNumbersError("a numpy number that is not one")
    (value,) = np.frombuffer(data, dtype=dtype.resolved())
    return value


def _bytes(*arguments: object) -> bytes:
    if arguments:
        raise MoreThanNumbersError("bytes that a call makes")
    return b""


_STAND_INS: list[Any] = [
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    (PickledArray, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    (_bytes, "builtins.bytes"),
    *((name, f"ml_dtypes.{name}") for name in ML_DTYPES),
]


def is_allowable(error: Exception) -> bool:
    """Whether a pickle was refused because of one of these."""
    return bool(_NAMES.search(str(error)))


@contextmanager
def allowed() -> Iterator[None]:
    """Let torch's unpickler make these, for a moment."""
    with _lock, _allowance:
        _allowance.enter_context(torch.serialization.safe_globals(_STAND_INS))
        yield
