"""The element types of deep learning for zarr-python: bfloat16 and the 8-bit floats of ml_dtypes.

The names are those of the registry of Zarr extensions and of TensorStore; see section 11 of
docs/reference/format.md. This module is for zarr-python alone; the library itself has
`documents.dtypes`.

zarr-python finds the types through the entry points of this package, in any program. zarr-python
3.1 collects entry points of data types but consults them only when a type is requested by name,
never when a document names one. It does load those of buffers when it opens a group, so this
package also registers zarr's own Buffer, only to get this module imported. A program that opens an
array outside any group, without having imported ckptstore.zarr, has to import this module first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.buffer.cpu import Buffer as Buffer
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.common import HasEndianness, HasItemSize
from zarr.dtype import ZDType

try:  # its place since zarr-python 3.2, which warns about the old one on every opened group
    from zarr.errors import DataTypeValidationError  # type: ignore[attr-defined, unused-ignore]
except ImportError:
    from zarr.dtype import DataTypeValidationError

if TYPE_CHECKING:
    from zarr.core.common import ZarrFormat
    from zarr.core.dtype.common import DTypeJSON

_HEX = re.compile(r"0x[0-9a-fA-F]+")
_NAMED = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}


@dataclass(frozen=True, kw_only=True)
class _Float(ZDType[Any, Any], HasItemSize):
    """A float of ml_dtypes, which has the same name in Zarr. `scalar` is its scalar type."""

    scalar: ClassVar[type]

    def __init_subclass__(cls, name: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._zarr_v3_name = name
        cls.scalar = getattr(ml_dtypes, name)
        cls.dtype_cls = type(np.dtype(cls.scalar))

    @property
    def item_size(self) -> int:
        """Bytes of an element."""
        return int(np.dtype(self.scalar).itemsize)

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(np.dtype(dtype) == np.dtype(cls.scalar))

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """From numpy's dtype; DataTypeValidationError for any other."""
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {cls._zarr_v3_name}.")

    def to_native_dtype(self) -> Any:
        """As numpy's dtype."""
        return np.dtype(self.scalar)

    @classmethod
    def _from_json_v2(cls, data: DTypeJSON) -> Self:
        raise DataTypeValidationError(f"Zarr v2 has no name for {cls._zarr_v3_name}, not {data!r}.")

    @classmethod
    def _from_json_v3(cls, data: DTypeJSON) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name}.")

    def to_json(self, zarr_format: ZarrFormat) -> Any:
        """The name in a document; Zarr v2 has none."""
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError(f"Zarr v2 has no name for {self._zarr_v3_name}. Write Zarr v3.")

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.generic)) and not isinstance(
            data, np.complexfloating
        )

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        return np.asarray(data).astype(self.scalar)[()]

    def cast_scalar(self, data: object) -> Any:
        """A number as an element; TypeError for any other value."""
        if isinstance(data, str) and (data in _NAMED or _HEX.fullmatch(data)):
            return self.from_json_scalar(data, zarr_format=3)
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number, so it cannot be a {self._zarr_v3_name}.")
        return self._cast_scalar_unchecked(data)

    def default_scalar(self) -> Any:
        """Zero; for float8_e8m0fnu, which has no zero, its smallest number."""
        return np.zeros((), self._bits).view(self.scalar)[()]

    def from_json_scalar(self, data: Any, *, zarr_format: ZarrFormat) -> Any:
        """A fill value: a number, "NaN", "Infinity", "-Infinity", or all bits such as "0x7fc0"."""
        del zarr_format
        if isinstance(data, str) and _HEX.fullmatch(data) and len(data) == 2 + 2 * self.item_size:
            return np.asarray(int(data, 16), self._bits).view(self.scalar)[()]
        if isinstance(data, str) and data in _NAMED:
            return self._cast_scalar_unchecked(_NAMED[data])
        if isinstance(data, (int, float)) and not isinstance(data, bool):
            return self._cast_scalar_unchecked(float(data))
        raise TypeError(f"{data!r} is not a fill value of {self._zarr_v3_name}.")

    def to_json_scalar(self, data: object, *, zarr_format: ZarrFormat) -> Any:
        """The value as JSON: a number or a name where that restores every bit, else the bits."""
        scalar = np.asarray(self.cast_scalar(data))
        for form in (float(scalar), *_NAMED):
            if isinstance(form, float) and not np.isfinite(form):
                continue
            again = np.asarray(self.from_json_scalar(form, zarr_format=zarr_format))
            if again.tobytes() == scalar.tobytes():
                return form
        return f"0x{int(scalar.view(self._bits)):0{2 * self.item_size}x}"

    @property
    def _bits(self) -> Any:
        return np.dtype(f"u{self.item_size}")


@dataclass(frozen=True, kw_only=True)
class BFloat16(_Float, HasEndianness, name="bfloat16"):
    """bfloat16: the upper half of a float32."""


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FN(_Float, name="float8_e4m3fn"):
    """float8_e4m3fn: finite values and NaN."""


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(_Float, name="float8_e5m2"):
    """float8_e5m2: with infinities."""


@dataclass(frozen=True, kw_only=True)
class Float8E4M3FNUZ(_Float, name="float8_e4m3fnuz"):
    """float8_e4m3fnuz: neither infinities nor negative zero."""


@dataclass(frozen=True, kw_only=True)
class Float8E5M2FNUZ(_Float, name="float8_e5m2fnuz"):
    """float8_e5m2fnuz: neither infinities nor negative zero."""


@dataclass(frozen=True, kw_only=True)
class Float8E8M0FNU(_Float, name="float8_e8m0fnu"):
    """float8_e8m0fnu: an exponent only."""


ALL = (BFloat16, Float8E4M3FN, Float8E5M2, Float8E4M3FNUZ, Float8E5M2FNUZ, Float8E8M0FNU)
for _dtype in ALL:
    data_type_registry.register(_dtype._zarr_v3_name, _dtype)  # noqa: SLF001 - its own module
