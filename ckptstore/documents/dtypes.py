"""The dtypes that an array may have, by the names that Zarr v3 and its extensions use.

Elements lie in little-endian order. `float4_e2m1fn_x2` is torch's: two 4-bit floats in a byte, counted as one element.
"""

from __future__ import annotations

from ckptstore.errors import CorruptError

ITEM_BYTES: dict[str, int] = {
    "bool": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}


def item_bytes(dtype: object, *, name: str) -> int:
    """Bytes of one element, or CorruptError for a dtype that is not in the table."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CorruptError(
            f"{name} has the dtype {str(dtype)[:40]!r}, which this version does not know."
        )
    return ITEM_BYTES[dtype]
