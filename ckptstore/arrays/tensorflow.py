"""TensorFlow: tensors and variables, which are read as numpy arrays and restored as such.

A variable is assigned in place. Strings, resources, and ragged and sparse tensors are refused: a
checkpoint stores plain elements bit for bit, or not at all. See docs/adr/0074.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from ckptstore.arrays.numpy import ReadAsNumpy
from ckptstore.documents.dtypes import ML_DTYPES, NUMPY_DTYPES
from ckptstore.errors import UnsupportedValueError

if TYPE_CHECKING:
    from ckptstore.arrays.source import Form

_COMPOSITE = {
    tf.RaggedTensor: "Store its .flat_values and its .nested_row_splits.",
    tf.SparseTensor: "Store its .indices, its .values and its .dense_shape.",
    tf.IndexedSlices: "Store its .indices and its .values.",
}


class TensorFlow(ReadAsNumpy):
    """Tensors and variables of TensorFlow."""

    array_type = (tf.Tensor, tf.Variable, *_COMPOSITE)

    def value_of(self, array: Any) -> Any:
        """The elements, in the memory that a tensor on the processor has."""
        kind = type(array)
        for composite, way_out in _COMPOSITE.items():
            if isinstance(array, composite):
                raise UnsupportedValueError(f"is a tf.{composite.__name__}. {way_out}")
        if array.dtype.name not in NUMPY_DTYPES and array.dtype.name not in ML_DTYPES:
            raise UnsupportedValueError(
                f"has the TensorFlow dtype {array.dtype.name}, which no checkpoint can hold"
            )
        tensor = array.read_value() if isinstance(array, tf.Variable) else array
        if not hasattr(tensor, "numpy"):
            raise UnsupportedValueError(
                f"is a symbolic {kind.__qualname__}, which has no elements. Store it outside of "
                "tf.function."
            )
        # numpy() would copy.
        read = tensor._numpy if hasattr(tensor, "_numpy") else tensor.numpy  # noqa: SLF001
        return np.asarray(read())

    def form_of(self, array: Any) -> Form:
        """The dtype and the shape, of which a variable may fix the number of dimensions only."""
        if isinstance(array, tf.Variable):
            array = array.read_value()
        return array.dtype.name, tuple(array.shape)

    def assign(self, array: Any, memory: Any) -> None:
        """Assign to a variable."""
        array.assign(memory)

    def unwritable(self, array: Any) -> str | None:
        """Why a tensor cannot be filled."""
        return None if isinstance(array, tf.Variable) else "is a tf.Tensor, not a tf.Variable"
