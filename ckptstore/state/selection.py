"""Selection: which paths an include and an exclude list choose.

Patterns are matched component by component between the slashes: `*`, `?` and `[…]` match within one
component, `**` any number of them. A pattern also selects everything below what it matches: "model"
includes "model/**".
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ckptstore.documents.names import PATH_LENGTH_MAX, check_strings
from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Selection:
    """The paths that match an include pattern and no exclude pattern.

    Attributes:
        include: The patterns of what is chosen; None chooses everything.
        exclude: The patterns of what is left out.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, include: str | Sequence[str] | None, exclude: str | Sequence[str] | None
    ) -> Selection:
        """Check what a user passed: one pattern, several, or None.

        Raises:
            InvalidInputError: It is neither a string nor a list of them, or a pattern is empty or
                longer than a path.
        """
        nothing = exclude is None or (isinstance(exclude, str) and not exclude)
        return cls(
            None if include is None else _patterns(include), () if nothing else _patterns(exclude)
        )

    def __str__(self) -> str:
        parts = [] if self.include is None else [f"include {_some(self.include)}"]
        return " and ".join([*parts, *([f"exclude {_some(self.exclude)}"] if self.exclude else [])])

    @property
    def is_everything(self) -> bool:
        """True when no path can be left out."""
        return self.include is None and not self.exclude

    def __call__(self, path: str) -> bool:
        """True when this path is chosen."""
        if self.include is not None and not any(matches(pattern, path) for pattern in self.include):
            return False
        return not any(matches(pattern, path) for pattern in self.exclude)


def matches(pattern: str, path: str) -> bool:
    """True when a pattern matches a path, or a path above it."""
    parts = path.split("/")
    open_ends = {0}  # how many parts of the path the pattern so far may have used
    for segment in pattern.strip("/").split("/"):
        if segment == "**":
            open_ends = set(range(min(open_ends), len(parts) + 1)) if open_ends else set()
        else:
            fits = _segment(segment)
            open_ends = {
                end + 1 for end in open_ends if end < len(parts) and fits.match(parts[end])
            }
        if not open_ends:
            return False
    return True


@lru_cache(maxsize=4096)
def _segment(segment: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(segment))


def _some(patterns: tuple[str, ...]) -> str:
    """The first patterns, shortened for a message."""
    cut = [pattern if len(pattern) <= 100 else f"{pattern[:100]}…" for pattern in patterns[:5]]
    return ", ".join([*map(repr, cut), *(["…"] if len(patterns) > 5 else [])])


def _patterns(patterns: object) -> tuple[str, ...]:
    listed = check_strings(patterns, what="patterns of array paths")
    for pattern in listed:
        if not pattern.strip("/") or len(pattern) > PATH_LENGTH_MAX:
            raise InvalidInputError(f"{shown(pattern)} is not a pattern of array paths.")
    return listed
