"""IndexedArray: an array of a repository of which indexing reads the chunks it needs."""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.lazy import LazyArray
from ckptstore.arrays.source import KINDS, NDARRAY, TENSOR
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable

_DLPACK_CPU = 1


class IndexedArray(LazyArray):
    """An array of a checkpoint that is not read before it is indexed.

    `array[1000:1010]` reads the chunks with these rows and checks every byte. The result is a torch
    tensor or a numpy array in memory of its own. Integers, slices, `...` and None can index it;
    anything else is an IndexError. It pickles, so that each worker of a DataLoader can open it.

    Attributes:
        path: Its path in the state.
        dtype: The name of its dtype.
        shape: The lengths of its dimensions.
        origin: The function that opens it in another process, and its arguments.

    Example:
        >>> import ckptstore, numpy as np
        >>> repo = ckptstore.init("memory://")
        >>> checkpoint = repo.commit({"w": np.arange(6.0).reshape(3, 2)})
        >>> array = checkpoint.array("w")
        >>> array.shape, array[1:].tolist()
        ((3, 2), [[2.0, 3.0], [4.0, 5.0]])
    """

    path: str
    origin: tuple[Callable[..., IndexedArray], tuple[object, ...]] | None = None

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("An array without dimensions has no length.")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {self.dtype}, shape={self.shape})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """Read all of it for numpy, which would otherwise read row by row."""
        import numpy as np

        if copy is False:
            raise ValueError("An array that is read from a repository is always a copy.")
        return np.asarray(self._all(NDARRAY), dtype=dtype)

    def __dlpack__(self, *, copy: bool | None = None, **options: Any) -> Any:
        """Read all of it for torch and other libraries that take tensors by DLPack."""
        if copy is False:
            raise BufferError("An array that is read from a repository is always a copy.")
        has_tensor = self.dtype and sys.modules.get("torch") is not None
        return self._all(TENSOR if has_tensor else NDARRAY).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """The memory of the processor."""
        return _DLPACK_CPU, 0

    def __reduce__(self) -> Any:
        if self.origin is None:
            raise TypeError(f"{self!r} does not pickle.")
        return self.origin

    @abstractmethod
    def __getitem__(self, index: object) -> Any:
        """Read a part; IndexError for an index that is not basic or beyond the array."""

    def check_whole(self) -> None:
        """Raise InvalidInputError if it claims far more than is stored of it."""

    def _all(self, kind: str) -> Any:
        """Read all of it as an array of a kind."""
        whole = object.__new__(type(self))
        whole.__dict__.update(self.__dict__, kind=kind)
        return whole[...]


def kind_of(framework: str | None, default: str) -> str:
    """The kind of the arrays of a framework; `default` for None."""
    if framework is None:
        return default
    if not isinstance(framework, str) or framework not in KINDS:
        raise InvalidInputError(
            f"{shown(framework)} is an unknown framework; torch, numpy or None is expected."
        )
    return KINDS[framework]
