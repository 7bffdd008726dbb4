"""The dtypes an array may have, by the names of Zarr v3 and its extensions.

Elements are little-endian. `float4_e2m1fn_x2` is torch's: two 4-bit floats in a byte, counted as
one element. Described in docs/reference/format.md, section 11.
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

# Those that numpy has only through ml_dtypes, and those that it has itself.
ML_DTYPES = frozenset(name for name in ITEM_BYTES if name.startswith(("bfloat", "float8")))
NUMPY_DTYPES = frozenset(ITEM_BYTES) - ML_DTYPES - {"float4_e2m1fn_x2", "complex32"}

_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}


def item_bytes(dtype: object, *, name: str) -> int:
    """Bytes of one element, or CorruptError for a dtype that is not in the table."""
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise CorruptError(
            f"{name} has the dtype {str(dtype)[:40]!r}, which this version does not know."
        )
    return ITEM_BYTES[dtype]


def word(dtype: str) -> str:
    """A numpy dtype of the same size, with which elements are moved bit for bit."""
    return _WORDS[ITEM_BYTES[dtype]]
