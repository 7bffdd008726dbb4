"""Variables of Keras, on any of its backends.

With torch they are filled in their own memory. Elsewhere they are read as numpy arrays and assigned
as a whole, because the arrays of JAX cannot be changed. See docs/adr/0074.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ckptstore.arrays import frameworks
from ckptstore.arrays.keras import tensor_of
from ckptstore.arrays.numpy import ReadAsNumpy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.arrays.source import ArraySource, Form


class KerasVariables(ReadAsNumpy):
    """The variables of Keras models and optimizers."""

    array_type = keras.Variable

    def value_of(self, array: Any) -> Any:
        """The elements."""
        if keras.backend.backend() == "tensorflow":
            from ckptstore.arrays.tensorflow import TensorFlow

            return TensorFlow().value_of(array.value)
        return np.asarray(array.value)

    def describe(self, array: Any) -> ArraySource:
        """How to read a variable."""
        tensor = tensor_of(array)
        source = super().describe(array) if tensor is None else frameworks.describe(tensor)
        assert source is not None
        return source

    def form_of(self, array: Any) -> Form:
        """The dtype and the shape."""
        return keras.backend.standardize_dtype(array.dtype), tuple(array.shape)

    def open(self, array: Any) -> Any:
        """Return the tensor of a variable, which can be filled, else memory for `assign`."""
        tensor = tensor_of(array)
        return super().open(array) if tensor is None else tensor

    def assign(self, array: Any, memory: Any) -> None:
        """Assign what was filled; a tensor was filled in place."""
        if tensor_of(array) is None:
            array.assign(memory)

    def end_of(self, array: Any) -> Callable[[], bool]:
        """A function that is true once the variable is gone."""
        tensor = tensor_of(array)
        if tensor is None:
            return super().end_of(array)
        framework = frameworks.framework_of(tensor)
        assert framework is not None
        return framework.end_of(tensor) or (lambda: True)
