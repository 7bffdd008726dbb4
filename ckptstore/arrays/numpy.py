"""numpy arrays, those of the dtypes of ml_dtypes included.

Object arrays, subclasses and arrays of another byte order are refused: a checkpoint stores elements
bit for bit, or not at all.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.arrays.source import NDARRAY, ArraySource, Framework, refuse_layout
from ckptstore.documents.chunks import order_of
from ckptstore.documents.dtypes import ML_DTYPES, NUMPY_DTYPES
from ckptstore.errors import UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Numpy(Framework):
    """The arrays of numpy."""

    array_type: type | tuple[type, ...] = np.ndarray

    def describe(self, array: Any) -> ArraySource:
        """How to read an array."""
        dtype = _checked_dtype(array)
        identity = order = None
        if array.nbytes:
            address = array.__array_interface__["data"][0]
            shape, strides = array.shape, array.strides
            identity = (NDARRAY, address, dtype, shape, strides)
            is_plain = array.flags.c_contiguous and 1 not in shape
            if not is_plain and not any(step % array.itemsize for step in strides):
                order = order_of(shape, [step // array.itemsize for step in strides])
        return ArraySource(
            kind=NDARRAY,
            dtype=dtype,
            shape=array.shape,
            nbytes=array.nbytes,
            identity=identity,
            array=array,
            framework=self,
            order=order,
        )

    def memory(self, array: Any) -> memoryview | None:
        """The bytes of a contiguous array."""
        return _bytes(array) if array.flags.c_contiguous else None

    def join(self, arrays: Sequence[Any], data: memoryview) -> None:
        """Copy the elements of arrays to a buffer, one behind the other."""
        for array in arrays:
            self.copy_out(array, data[: array.nbytes])
            data = data[array.nbytes :]

    def allocate(self, dtype: str, shape: tuple[int, ...]) -> tuple[Any, memoryview]:
        """A new, writable array, and its bytes."""
        array = np.empty(shape, dtype=numpy_dtype(dtype))
        return array, _bytes(array)

    def copy_in(self, array: Any, data: memoryview) -> None:
        """Fill an array with elements of its dtype."""
        array[...] = np.frombuffer(data, dtype=array.dtype).reshape(array.shape)

    def copy_out(self, array: Any, data: memoryview) -> None:
        """Copy the elements of an array to a buffer."""
        np.frombuffer(data, dtype=array.dtype).reshape(array.shape)[...] = array

    def in_order(self, array: Any, order: Sequence[int]) -> Any:
        """A view of an array with its dimensions in another order."""
        return array.transpose(order)

    def unwritable(self, array: Any) -> str | None:
        """Why an array cannot be filled in place."""
        return None if array.flags.writeable else "is read-only"

    def end_of(self, array: Any) -> Callable[[], bool]:
        """A function that is true once the array is gone."""
        reference = weakref.ref(array)
        return lambda: reference() is None

    def to_device(self, array: Any, device: Any) -> Any:
        """The array itself: numpy has no devices."""
        del device
        return array


class ReadAsNumpy(Numpy):
    """Arrays of another framework, which are read as numpy arrays and assigned as a whole."""

    def value_of(self, array: Any) -> Any:
        """The elements as a numpy array, without a copy where that is possible."""
        raise NotImplementedError

    def describe(self, array: Any) -> ArraySource:
        """How to read an array. Two names of one object are tied."""
        source = super().describe(self.value_of(array))
        return replace(source, identity=(NDARRAY, id(array)) if source.nbytes else None)

    def open(self, array: Any) -> Any:
        """A copy of its elements, to fill and then to assign."""
        return np.array(self.value_of(array), order="C")

    def in_order(self, array: Any, order: Sequence[int]) -> Any:
        """Its elements with the dimensions in another order."""
        return super().in_order(self.value_of(array), order)

    def unwritable(self, array: Any) -> str | None:
        """Why an array cannot be assigned."""
        return None if hasattr(array, "assign") else "cannot be changed"

    def to_device(self, array: Any, device: Any) -> Any:
        """The array itself: its framework decides where it is."""
        del device
        return array


def numpy_dtype(dtype: str) -> Any:
    """Return the numpy dtype for a stored dtype; UnsupportedValueError if numpy has none."""
    if dtype in ML_DTYPES:
        import ml_dtypes

        return getattr(ml_dtypes, dtype)
    if dtype not in NUMPY_DTYPES:
        raise UnsupportedValueError(f"numpy has no dtype {dtype}.")
    return dtype


def _checked_dtype(array: Any) -> str:
    """The stored name of the dtype of an array that can be stored bit for bit."""
    if type(array) not in (np.ndarray, np.memmap):
        is_masked = any(base.__name__ == "MaskedArray" for base in type(array).__mro__)
        way_out = "Store its .data and its .mask." if is_masked else "Use np.asarray(…)."
        raise UnsupportedValueError(
            f"is a {type(array).__qualname__}, not a plain numpy array. {way_out}"
        )
    dtype: str = array.dtype.name
    if dtype not in NUMPY_DTYPES and dtype not in ML_DTYPES:
        raise UnsupportedValueError(
            f"has the numpy dtype {array.dtype}, which no checkpoint can hold"
        )
    refuse_layout(array.shape, array.strides, array.itemsize)
    if not array.dtype.isnative:
        raise UnsupportedValueError(
            f"has the byte order of another machine ({array.dtype.str}). "
            "Use array.astype(array.dtype.newbyteorder('='))."
        )
    return dtype


def _bytes(array: Any) -> memoryview:
    """The bytes of a contiguous array."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)
