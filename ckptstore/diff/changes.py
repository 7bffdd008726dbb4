"""Changes: the values that a diff consists of.

They hold what was found and compute nothing but counts. `ckptstore.diff.compare` finds the changes,
and `ckptstore.diff.numeric` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.documents.entry import StoredArray

ArrayKind = Literal["added", "removed", "moved", "retyped", "changed", "undecided"]
ValueKind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How far an array moved, over the elements that are finite on both sides.

    A complex element counts by its modulus.

    Attributes:
        relative_l2: The norm of the difference divided by the norm before; inf when that was 0.
        max_abs: The largest change of one element.
        cosine: The cosine similarity of both arrays as vectors, of complex ones its real part; NaN
            when a norm is 0.
        changed_share: The share of elements whose bits changed, from 0 to 1.
        new_nan: How many elements are NaN only afterwards.
        new_inf: How many elements are infinite only afterwards.
        norm_before: The norm before.
        norm_after: The norm afterwards.
    """

    relative_l2: float
    max_abs: float
    cosine: float
    changed_share: float
    new_nan: int
    new_inf: int
    norm_before: float
    norm_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayChange:
    """One array that differs.

    Attributes:
        kind: "added" or "removed"; "moved" for the same bytes, dtype and shape under another path;
            "retyped" for another dtype or shape; "changed" for other bytes; "undecided" for an
            array cut into other chunks, so that only its bytes could show whether it changed.
        before: The array in the first checkpoint, None when it was added.
        after: The array in the second checkpoint, None when it was removed.
        shared_bytes: How many bytes of `after` are in chunks that the first checkpoint has too.
        numbers: How far it moved, where that was measured.
    """

    kind: ArrayKind
    before: StoredArray | None
    after: StoredArray | None
    shared_bytes: int = 0
    numbers: Numbers | None = None

    @property
    def path(self) -> str:
        """Its path in the second checkpoint, or in the first if it was removed."""
        array = self.after or self.before
        assert array
        return array.path


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueChange:
    """One plain value, or empty container, that differs.

    Attributes:
        path: Its path.
        kind: "added", "removed" or "changed".
        before: The value in the first checkpoint, None when it was added.
        after: The value in the second checkpoint, None when it was removed.
    """

    path: str
    kind: ValueKind
    before: object = None
    after: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """The differences between two checkpoints, each kind in path order.

    Attributes:
        arrays: The arrays that differ.
        values: The plain values that differ.
        rearranged: The paths of dicts, lists and tuples that changed their type, their _metadata,
            or the order or type of keys that both have, and of arrays that changed between tensor
            and ndarray or are tied to others. "" is the state itself.
        unchanged: How many arrays are the same.
        bytes_before: The bytes of all compared arrays of the first checkpoint.
        bytes_after: The bytes of all compared arrays of the second checkpoint.
        shared_bytes: How many of `bytes_after` are known to be in chunks that the first checkpoint
            has too. Pages that both list are not loaded to find more.
    """

    arrays: tuple[ArrayChange, ...]
    values: tuple[ValueChange, ...]
    rearranged: tuple[str, ...]
    unchanged: int
    bytes_before: int
    bytes_after: int
    shared_bytes: int

    @property
    def is_empty(self) -> bool:
        """True when nothing differs."""
        return not (self.arrays or self.values or self.rearranged)

    @property
    def shared(self) -> float:
        """`shared_bytes` as a share of `bytes_after`; 1 when there are no arrays afterwards."""
        return self.shared_bytes / self.bytes_after if self.bytes_after else 1.0

    def of_kind(self, kind: ArrayKind) -> tuple[ArrayChange, ...]:
        """The arrays that differ in this way.

        Args:
            kind: "changed", "retyped", "moved", "added", "removed" or "undecided".
        """
        return tuple(change for change in self.arrays if change.kind == kind)

    @property
    def added(self) -> tuple[ArrayChange, ...]:
        """The arrays that only the second checkpoint has."""
        return self.of_kind("added")

    @property
    def removed(self) -> tuple[ArrayChange, ...]:
        """The arrays that only the first checkpoint has."""
        return self.of_kind("removed")

    @property
    def moved(self) -> tuple[ArrayChange, ...]:
        """The arrays that have another path and are the same otherwise."""
        return self.of_kind("moved")

    @property
    def retyped(self) -> tuple[ArrayChange, ...]:
        """The arrays that have another dtype or shape."""
        return self.of_kind("retyped")

    @property
    def changed(self) -> tuple[ArrayChange, ...]:
        """The arrays of the same dtype and shape that have other bytes."""
        return self.of_kind("changed")

    @property
    def undecided(self) -> tuple[ArrayChange, ...]:
        """The arrays that are cut into different chunks; a numeric diff decides them."""
        return self.of_kind("undecided")

    def with_numbers(self, numbers: Mapping[str, Numbers]) -> Diff:
        """The same diff after measuring arrays.

        Args:
            numbers: How far arrays moved, by path. An undecided array among them is now changed or
                unchanged.
        """
        arrays: list[ArrayChange] = []
        unchanged, shared_bytes = self.unchanged, self.shared_bytes
        for change in self.arrays:
            measured = numbers.get(change.path)
            if measured is None or change.kind not in ("changed", "undecided"):
                arrays.append(change)
            elif change.kind == "undecided" and not measured.changed_share:
                assert change.after
                unchanged += 1
                shared_bytes += change.after.nbytes - change.shared_bytes
            else:
                arrays.append(replace(change, kind="changed", numbers=measured))
        return replace(self, arrays=tuple(arrays), unchanged=unchanged, shared_bytes=shared_bytes)
