"""The dtypes an array may have, by the names of Zarr v3 and its extensions.

Elements are little-endian. `float4_e2m1fn_x2` is torch's: two 4-bit floats in a byte, counted as
one element. Described in docs/reference/format.md, section 11.

`TextDtype` reads numpy's own names of dtypes, such as "<f8". numpy.dtype must never see such text
from a file: it evaluates parts of it as Python, and some of it ends the process.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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

# Of one element with a fixed size; strings and records are the only large ones.
ELEMENT_BYTES_MAX = 1 << 20
DATE_UNITS = frozenset({"generic", "Y", "M", "W", "D", "h", "m", "s", "ms", "us", "μs", "ns", "ps"})
DATE_UNITS |= {"fs", "as"}
DATE_STEP_MAX = (1 << 31) - 1  # of units in a step; numpy keeps it as a C int
_TEXT = re.compile(
    r"(?P<order>[<>|=]?)(?:(?P<kind>[biufcSUVO])(?P<size>[0-9]{0,10})"
    r"|(?P<date>[mM])8(?:\[(?P<step>[0-9]{0,10})(?P<unit>[a-zμA-Z]{1,7})\])?)"
)
_KINDS = {"b": "bool", "i": "int", "u": "uint", "f": "float", "c": "complex"}
_LETTER_BYTES = {"S": 1, "V": 1, "U": 4}

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


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDtype:
    """A dtype by the name that numpy gives it, such as "<f8" or "|S12".

    Attributes:
        order: "<", ">", "|", "=" or "".
        kind: One letter: b, i, u, f, c, S, U, V, m, M or O.
        element_bytes: Bytes of an element; 0 for objects, which have no fixed size.
        name: The name in `ITEM_BYTES`, or "" for one that no state can hold.
    """

    order: str
    kind: str
    element_bytes: int
    name: str = ""

    @property
    def is_big_endian(self) -> bool:
        """True for the byte order of another machine."""
        return self.order == ">" and self.element_bytes > 1

    @classmethod
    def parse(cls, text: object) -> TextDtype | None:
        """Return the dtype, or None for any text that is not exactly one of the known forms."""
        match = _TEXT.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            return None
        order, kind = match["order"], match["kind"]
        if kind is None:
            step = int(match["step"] or 1)
            is_date = (match["unit"] or "D") in DATE_UNITS and 1 <= step <= DATE_STEP_MAX
            return cls(order=order, kind=match["date"], element_bytes=8) if is_date else None
        if kind == "O":
            return None if match["size"] else cls(order=order, kind=kind, element_bytes=0)
        size = int(match["size"] or 0) * _LETTER_BYTES.get(kind, 1)
        if kind in _LETTER_BYTES:
            is_known = size <= ELEMENT_BYTES_MAX
            return cls(order=order, kind=kind, element_bytes=size) if is_known else None
        name = "bool" if (kind, size) == ("b", 1) else f"{_KINDS[kind]}{8 * size}"
        if name not in NUMPY_DTYPES:
            return None
        return cls(order=order, kind=kind, element_bytes=size, name=name)
