"""The errors of ckptstore: one family, divided by what the caller can do about them.

    CkptStoreError
    ├── NotFoundError        no such repository, checkpoint, branch, tag or object: check the name
    ├── ConflictError        another process changed it first: look again, and retry
    ├── ExpiredError         the checkpoint is known, but its arrays were deleted
    ├── CorruptError         what was read is not what was written: run verify
    ├── InvalidInputError    the call cannot work: correct the arguments (also a ValueError)
    │   ├── UnsupportedValueError   a value that no checkpoint can hold: its path and type are named
    │   └── CheckoutMismatchError   checkpoint and destination differ: every difference is listed
    ├── StorageError         the disk or the network failed
    └── RankError            a rank of a training failed or is gone: start the run again

Every message names the thing, what was expected, and what to do next. All errors can be pickled.

Messages may quote text of others: names in a repository or a file, answers of a server. `printable`
makes such text harmless to a terminal, here and wherever else the library or its program prints.
"""

from __future__ import annotations

import errno
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ALIKE_MAX = 20  # more names with the same first part are counted in the message, not listed
NAMES_MAX = 100  # more are counted; the attributes of the error hold all
NAME_LENGTH_MAX = 300  # characters of a name, or of a sentence about it, in a message
SIMILARITY_MIN = 0.5  # of a choice that a message proposes: "minimize" is min


_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # controls, invisible ones, line ends
_PRINTABLE_FORMAT = frozenset("\u200c\u200d")  # joiners that scripts and emoji need
_PLAIN = re.compile(r"[ -~]*")


def printable(text: str, *, keep: str = "") -> str:
    """Return text with escapes for control characters and invisible ones.

    Args:
        text: Any text.
        keep: Characters to leave as they are, such as line breaks.
    """
    if _PLAIN.fullmatch(text):
        return text
    return "".join(char if char in keep else _escaped(char) for char in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in _UNPRINTABLE or character in _PRINTABLE_FORMAT:
        return character
    return character.encode("unicode_escape").decode("ascii")


class CkptStoreError(Exception):
    """Base class of all errors that ckptstore raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__(), keep="\n\t")


class NotFoundError(CkptStoreError):
    """There is no such repository, checkpoint, branch, tag or object."""


class ConflictError(CkptStoreError):
    """Another process changed it first; look again and retry."""


class ExpiredError(CkptStoreError):
    """The checkpoint is known, but a gc deleted its arrays, as no policy kept them."""


class CorruptError(CkptStoreError):
    """The bytes read are not those that were written; `verify` finds out what is damaged."""


class InvalidInputError(CkptStoreError, ValueError):
    """The call cannot work as given; the message states what to pass instead."""


class UnsupportedValueError(InvalidInputError):
    """The state holds a value that no checkpoint can represent."""


class StorageError(CkptStoreError):
    """The storage of the repository could not be read or written."""

    @property
    def is_full(self) -> bool:
        """True when the disk or a quota had no room left."""
        cause = self.__cause__
        return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


class RankError(CkptStoreError):
    """Ranks of a training failed, died, hang or did not come; all others raise it too.

    Attributes:
        failures: The error of each such rank. That of one that does not answer is a TimeoutError.
            The first of them is the cause of this error.
    """

    def __init__(self, message: str, failures: Mapping[int, BaseException]) -> None:
        super().__init__(message, failures)
        self.failures = dict(sorted(failures.items()))
        self.__cause__ = next(iter(self.failures.values()), None)

    def __str__(self) -> str:
        return printable(str(self.args[0]), keep="\n\t")


@dataclass(frozen=True, slots=True, kw_only=True)
class Incompatible:
    """The differences between a checkpoint and a destination; false when there are none.

    Attributes:
        missing: Names that the destination has and the checkpoint lacks.
        unexpected: Names that the checkpoint has and the destination lacks.
        mismatched: One sentence for each name whose dtype, shape or kind differs, and for each
            object that refused what the checkpoint holds for it.
        restored: Paths of the checkpoint that were restored. It is not a difference, and not
            compared.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    restored: tuple[str, ...] = field(default=(), compare=False, repr=False)

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
    """Return names for a message: many with the same first part become one, with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split("/")[0], []).append(name)
    texts = [
        text
        for top, alike in groups.items()
        for text in (
            [shortened(name, NAME_LENGTH_MAX) for name in alike]
            if len(alike) <= ALIKE_MAX
            else [f"{shortened(top, NAME_LENGTH_MAX)}/… ({len(alike)} names)"]
        )
    ]
    more = len(texts) - NAMES_MAX
    return texts if more <= 0 else [*texts[:NAMES_MAX], f"… and {more} more"]


class CheckoutMismatchError(InvalidInputError):
    """Checkpoint and destination differ.

    Attributes:
        incompatible: Every difference.
        rename: The `rename` that the message proposes; empty if it proposes none.
    """

    def __init__(
        self, message: str, incompatible: Incompatible, rename: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, incompatible, rename)
        self.incompatible = incompatible
        self.rename = dict(rename or {})

    def __str__(self) -> str:
        return printable(str(self.args[0]), keep="\n\t")


def shown(value: object, length_max: int = 60) -> str:
    """Return any value for a message: cut short, or its type when its `repr` fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  an integer too long to write out, or an object that raises
        return f"a {type(value).__name__}"
    return text if len(text) <= length_max else f"{text[:length_max]}…"


def shortened(text: str, length_max: int) -> str:
    """Return a text cut to a number of characters, the last of which then stands for the rest."""
    return text if len(text) <= length_max else f"{text[: length_max - 1]}…"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, up to 300 characters, without full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def check_choice(value: object, choices: Sequence[str], *, name: str) -> None:
    """Raise InvalidInputError, listing the choices, when the value is none of them."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
        text = f"{name} is {shown(value)}; {listed} is expected."
        raise InvalidInputError(f"{text}{meant(value, choices)}")


def meant(value: object, choices: Iterable[str], similarity: float = SIMILARITY_MIN) -> str:
    """Return the question whether the choice most like a value was meant; empty if none is."""
    from difflib import get_close_matches

    text = value.lower() if isinstance(value, str) else ""
    close = get_close_matches(text, choices, n=1, cutoff=similarity)
    return f" Did you mean {close[0]}?" if close else ""
