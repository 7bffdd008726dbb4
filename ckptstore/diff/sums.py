"""Sums over the elements of two arrays, from which the numbers of a diff follow.

Blocks that fit into a processor's cache are summed row by row in float32 if that holds the
elements, and the rows in double precision. A block that float32 cannot sum (too large, too small,
not finite) is summed again in wider floats. This knows neither chunks nor storage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from ckptstore.diff.changes import Numbers
from ckptstore.documents.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, np.dtype[Any]]

BLOCK_ITEMS = 1 << 16  # in float32 three blocks (before, after, difference) take 768 KiB of cache
ROW_ITEMS = 1 << 10  # summed in float32, which loses 1e-6 at the very most
NORMS_RATIO_MAX = 4.0  # if norms are further apart, their product would drown in rounding
INTEGER_MAX = 2.0**53  # doubles hold every integer up to here
_SQUARES_MIN = {"float32": 1e-27, "float64": 1e-290}  # smaller sums lose digits to underflow


@dataclass(slots=True)
class Sums:
    """Sums over a part of two arrays. longdouble holds the square of any double.

    Attributes:
        before: Sum of the squares of the first array.
        after: Sum of the squares of the second array.
        difference: Sum of the squares of the differences.
        product: Sum of the products.
        max_abs: Largest difference.
        changed: Number of elements whose bits differ.
        new_nan: Number of elements that are NaN only in the second array.
        new_inf: Number of elements that are infinite only in the second array.
    """

    before: Any = 0.0
    after: Any = 0.0
    difference: Any = 0.0
    product: Any = 0.0
    max_abs: float = 0.0
    changed: int = 0
    new_nan: int = 0
    new_inf: int = 0

    def add(self, other: Sums) -> None:
        """Add the sums of another part."""
        self.before += other.before
        self.after += other.after
        self.difference += other.difference
        self.product += other.product
        self.max_abs = max(self.max_abs, other.max_abs)
        self.changed += other.changed
        self.new_nan += other.new_nan
        self.new_inf += other.new_inf

    def numbers(self, count: int) -> Numbers:
        """Return the numbers of a whole array of `count` elements."""
        norm_before, norm_after = np.sqrt(self.before), np.sqrt(self.after)
        distance = np.sqrt(self.difference)
        relative = distance / norm_before if norm_before else (math.inf if distance else 0.0)
        both = norm_before * norm_after
        cosine = max(-1.0, min(1.0, float(self.product / both))) if both else math.nan
        return Numbers(
            relative_l2=float(relative),
            max_abs=self.max_abs,
            cosine=cosine,
            changed_share=self.changed / count if count else 0.0,
            new_nan=self.new_nan,
            new_inf=self.new_inf,
            norm_before=float(norm_before),
            norm_after=float(norm_after),
        )


def sums_of(dtype: str, before: memoryview, after: memoryview) -> Sums:
    """Return the sums of two parts of the same size.

    Args:
        dtype: Name of the dtype of both.
        before: Bytes of the first part, whole elements in C order.
        after: Bytes of the second part.
    """
    form = _form(dtype)
    total = Sums()
    scratch = np.empty(BLOCK_ITEMS, np.float32)
    is_other = np.empty(BLOCK_ITEMS, np.bool_)
    raw, other = (np.frombuffer(data, form.bits) for data in (before, after))
    with np.errstate(all="ignore"):
        for start in range(0, len(raw), BLOCK_ITEMS):
            one, two = (array[start : start + BLOCK_ITEMS] for array in (raw, other))
            differs = np.not_equal(one, two, out=is_other[: len(one)])
            if form.words > 1:
                differs = differs.reshape(-1, form.words).any(axis=1)
            changed = int(np.count_nonzero(differs))
            if changed:
                sums = _block(form, form.floats(one), form.floats(two), scratch)
                sums.changed = changed
            else:
                sums = _equal_block(form, form.floats(one))
            total.add(sums)
    return total


def sums_of_equal(dtype: str, data: memoryview) -> Sums:
    """Return the sums of a part that both arrays have: the same as of two equal parts."""
    form = _form(dtype)
    total = Sums()
    raw = np.frombuffer(data, form.bits)
    with np.errstate(all="ignore"):
        for start in range(0, len(raw), BLOCK_ITEMS):
            total.add(_equal_block(form, form.floats(raw[start : start + BLOCK_ITEMS])))
    return total


def _block(form: _Form, before: Array, after: Array, scratch: Array) -> Sums:
    fits = before.dtype == after.dtype == scratch.dtype and len(before) <= len(scratch)
    sums = _sums(form, before, after, scratch[: len(before)] if fits else None)
    return sums or _wide_block(form, before, after)


def _equal_block(form: _Form, floats: Array) -> Sums:
    squares = _dot(floats, floats)
    if not _is_sound(squares, floats):
        return _wide_block(form, floats, floats)
    exact = np.longdouble(squares)
    return Sums(before=exact, after=exact, product=exact)


def _sums(form: _Form, before: Array, after: Array, out: Array | None = None) -> Sums | None:
    """The sums of a block in its own floats; None if these cannot hold them."""
    difference = np.subtract(after, before, out=out)
    squares = [_dot(array, array) for array in (before, after, difference)]
    for value, array in zip(squares, (before, after, difference), strict=True):
        if not _is_sound(value, array):
            return None
    if form.is_complex:
        largest = float(np.hypot(difference[::2], difference[1::2]).max())
    else:
        largest = max(float(difference.max()), -float(difference.min()))
    one, other, distance = map(np.longdouble, squares)
    if max(one, other) <= NORMS_RATIO_MAX**2 * min(one, other):
        product = (one + other - distance) / 2  # saves one pass over the block
    else:
        product = np.longdouble(_dot(before, after))
    return Sums(one, other, distance, product, max_abs=largest)


def _wide_block(form: _Form, before: Array, after: Array) -> Sums:
    """The sums of a block of any floats. Those that are not finite are counted and left out."""
    parts = (-1, form.parts)
    nan, other_nan = (np.isnan(array).reshape(parts).any(axis=1) for array in (before, after))
    inf, other_inf = (np.isinf(array).reshape(parts).any(axis=1) for array in (before, after))
    left_out = (nan | other_nan | inf | other_inf).repeat(form.parts)
    before, after = (np.where(left_out, 0, array) for array in (before, after))
    sums = None
    for wide in (np.float64, np.longdouble):
        if sums is None and np.can_cast(before.dtype, wide) and np.can_cast(after.dtype, wide):
            sums = _sums(form, before.astype(wide), after.astype(wide))
    sums = sums or Sums()
    sums.new_nan = int(np.count_nonzero(other_nan & ~nan))
    sums.new_inf = int(np.count_nonzero(other_inf & ~inf))
    return sums


def _dot(one: Array, other: Array) -> Any:
    """The sum of products: of short rows in their own floats, of the rows in doubles.

    Not np.dot: BLAS starts threads for it, which compete with those that read.
    """
    end = len(one) - len(one) % ROW_ITEMS
    rows, other_rows = (array[:end].reshape(-1, ROW_ITEMS) for array in (one, other))
    sums = np.vecdot(rows, other_rows)
    rest = np.vecdot(one[end:], other[end:])
    return sums.sum(dtype=np.longdouble if sums.dtype == np.longdouble else np.float64) + rest


def _is_sound(squares: Any, array: Array) -> bool:
    """Whether a sum of squares neither overflowed nor lost digits to underflow."""
    if squares >= _SQUARES_MIN.get(array.dtype.name, 0.0):
        return bool(np.isfinite(squares)) or array.dtype == np.longdouble
    return array.dtype == np.longdouble or (squares == 0 and not array.any())


@dataclass(frozen=True, slots=True)
class _Form:
    """How the elements of a dtype become floats.

    Attributes:
        bits: numpy dtype of words that are equal if their bits are.
        floats: Makes floats of words without losing a digit.
        words: Number of words of an element.
        parts: Number of floats of an element.
        is_complex: Whether the two floats of an element are one complex number.
    """

    bits: str
    floats: Callable[[Array], Array]
    words: int = 1
    parts: int = 1
    is_complex: bool = False


@cache
def _form(dtype: str) -> _Form:
    if dtype.startswith("float8"):
        table = _values(dtype, np.arange(256))
        return _Form("u1", table.__getitem__)
    if dtype == "float4_e2m1fn_x2":
        pairs = _pairs()
        return _Form("u1", lambda words: pairs[words].reshape(-1), parts=2)
    if dtype.startswith("complex"):
        item = ITEM_BYTES[dtype]
        part = np.dtype(f"f{item // 2}")
        word = min(item, 8)
        return _Form(
            f"u{word}",
            lambda words: _at_least_single(words.view(part)),
            words=item // word,
            parts=2,
            is_complex=True,
        )
    bits = f"u{ITEM_BYTES[dtype]}"
    if dtype == "bfloat16":
        return _Form(bits, lambda words: (words.astype(np.uint32) << 16).view(np.float32))
    if dtype in ("int64", "uint64"):
        return _Form(bits, lambda words: _from_integers(words.view(dtype)))
    return _Form(bits, lambda words: _at_least_single(words.view(_STORED.get(dtype, dtype))))


def _at_least_single(array: Array) -> Array:
    """Numbers as float32 if it holds all of them, otherwise as float64."""
    wide = np.float32 if array.dtype.itemsize <= 2 or array.dtype == np.float32 else np.float64
    return array.astype(wide, copy=False)


def _from_integers(array: Array) -> Array:
    """Integers as doubles if these hold all of them, otherwise as longdouble."""
    floats = array.astype(np.float64)
    if max(float(floats.max()), -float(floats.min())) <= INTEGER_MAX:
        return floats
    return array.astype(np.longdouble)


def _values(dtype: str, codes: Array) -> Array:
    """The value of each code of a float of 8 bits or fewer; float32 holds all of them."""
    values: Array = codes.astype(np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    return values


def _pairs() -> Array:
    """The two values of each byte of 4-bit floats, the lower half first."""
    codes = np.arange(256)
    return np.stack([_values("float4_e2m1fn", half) for half in (codes & 15, codes >> 4)], axis=1)


_STORED = {"bool": "uint8"}
