"""IndexedArray: an array of a repository that is read as it is indexed."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.source import NDARRAY, TENSOR
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMEWORKS = {"torch": TENSOR, "numpy": NDARRAY}
_DLPACK_CPU = 1


class IndexedArray(LazyArray):
    """An array of a checkpoint: `array[1000:1010]` reads only the chunks that hold these rows, and checks every byte.

    path: in the state. dtype, shape: of the whole. What is read comes as a torch tensor or a numpy array, in fresh memory,
    bit for bit. Integers, slices, `...` and None can index it; IndexError for the rest. It pickles, so that the workers of a
    DataLoader can have it: each opens it by itself. origin: what to call for that, and with what.
    """

    path: str
    origin: tuple[Callable[..., IndexedArray], tuple[object, ...]] | None = None

    @property
    def ndim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("An array without dimensions has no length.")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {self.dtype}, shape={self.shape})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """All of it, for numpy, which else would read it row by row."""
        import numpy as np

        if copy is False:
            raise ValueError("An array that is read from a repository is always a copy.")
        return np.asarray(self._all(NDARRAY), dtype=dtype)

    def __dlpack__(self, *, copy: bool | None = None, **options: Any) -> Any:
        """All of it, for torch and others that take tensors by DLPack. options: of that protocol."""
        if copy is False:
            raise BufferError("An array that is read from a repository is always a copy.")
        has_tensor = self.dtype and sys.modules.get("torch") is not None
        return self._all(TENSOR if has_tensor else NDARRAY).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """The processor's memory."""
        return _DLPACK_CPU, 0

    def __reduce__(self) -> Any:
        if self.origin is None:
            raise TypeError(f"{self!r} does not pickle.")
        return self.origin

    @abstractmethod
    def __getitem__(self, index: object) -> Any:
        """Read a part."""

    def _all(self, kind: str) -> Any:
        """Read all of it, as an array of this kind."""
        whole = object.__new__(type(self))
        whole.__dict__.update(self.__dict__, kind=kind)
        return whole[...]


def kind_of(framework: str | None, default: str) -> str:
    """The kind of array that a framework wants."""
    if framework is None:
        return default
    if framework not in FRAMEWORKS:
        raise InvalidInputError(
            f"{shown(framework)} is no framework of ours: torch, numpy or None are expected."
        )
    return FRAMEWORKS[framework]
