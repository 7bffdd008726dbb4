"""The errors of ckptstore, one family, cut by what the caller can do about them.

    CkptStoreError
    ├── NotFoundError        no such repository, checkpoint, branch, tag or object: check the name
    ├── ConflictError        somebody else moved it first: look again, and retry
    ├── ExpiredError         the checkpoint is known, but its arrays were given up
    ├── CorruptError         what was read is not what was written: run verify
    ├── InvalidInputError    the call cannot work as given: mend the arguments (also a ValueError)
    │   ├── UnsupportedValueError   a value that no checkpoint can hold: its path and type are named
    │   └── CheckoutMismatchError   checkpoint and destination differ: every difference is listed
    └── StorageError         the disk or the network failed

Every message names the thing, says what was expected, and what to do next. All of them pickle.
"""

from __future__ import annotations

from dataclasses import dataclass

ALIKE_MAX = 20  # names that begin alike and are told one by one; all of them are in the error's `incompatible`


class CkptStoreError(Exception):
    """Base of everything that ckptstore raises on purpose."""


class NotFoundError(CkptStoreError):
    """The named thing is not there."""


class ConflictError(CkptStoreError):
    """Somebody else changed it first; look again and retry."""


class ExpiredError(CkptStoreError):
    """The checkpoint is known, but its arrays were given up by a retention policy."""


class CorruptError(CkptStoreError):
    """What was read is not what was written."""


class InvalidInputError(CkptStoreError, ValueError):
    """The call cannot work as given."""


class UnsupportedValueError(InvalidInputError):
    """The state holds a value that no checkpoint can represent."""


class StorageError(CkptStoreError):
    """The place where the repository lies could not be read or written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incompatible:
    """What differs between a checkpoint and the destination of a checkout.

    missing: names the destination has and the checkpoint lacks.
    unexpected: names the checkpoint has and the destination lacks.
    mismatched: one sentence for each name whose dtype, shape or kind differs.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [
            f"{len(names)} {label}: {', '.join(_gathered(names))}"
            for label, names in (
                ("mismatched", self.mismatched),
                ("missing from the checkpoint", self.missing),
                ("not expected by the destination", self.unexpected),
            )
            if names
        ]
        return "; ".join(parts) or "no differences"


def _gathered(names: tuple[str, ...]) -> list[str]:
    """Names as a message tells them: many that begin alike are one, with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split("/")[0], []).append(name)
    return [
        text
        for top, found in groups.items()
        for text in (found if len(found) <= ALIKE_MAX else [f"{top}/… ({len(found)} names)"])
    ]


class CheckoutMismatchError(InvalidInputError):
    """Checkpoint and destination differ; `incompatible` lists every difference."""

    def __init__(self, message: str, incompatible: Incompatible) -> None:
        super().__init__(message, incompatible)
        self.incompatible = incompatible

    def __str__(self) -> str:
        return str(self.args[0])


def shown(value: object, length_max: int = 60) -> str:
    """How any value reads in a message: cut short, and by its type when it refuses to say more."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  an integer too long to write out, or an object that raises
        return f"a {type(value).__name__}"
    return text if len(text) <= length_max else f"{text[:length_max]}…"


def first_line(error: Exception) -> str:
    """The first line of an error's message without its full stop, at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")
