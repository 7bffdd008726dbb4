"""The option --part: take the value of a key of the outermost dict as the whole state."""

from __future__ import annotations

from glob import escape
from typing import TYPE_CHECKING
from urllib.parse import unquote

import click

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Command = Callable[..., None]


def part_option(help: str) -> Callable[[Command], Command]:
    """The option --part, with the help text of a command."""
    return click.option("--part", metavar="KEY", help=help)


def below(path: str, part: str | None) -> str | None:
    """The path relative to a part, or None if it is outside of it."""
    if part is None:
        return path
    first, _, rest = path.partition("/")
    return (rest or first) if part in (first, unquote(first)) else None


def glob_of(part: str) -> str:
    """The glob that --include takes for everything in a part."""
    return escape(part.replace("%", "%25").replace("/", "%2F"))


def check_part(part: str | None, paths: Iterable[str]) -> None:
    """Raise InvalidInputError if no path of a checkpoint is in a part."""
    listed = list(paths)
    if part is None or any(below(path, part) is not None for path in listed):
        return
    there = sorted({unquote(path.partition("/")[0]) for path in listed})
    raise InvalidInputError(
        f"The checkpoint has no part {shown(part)}. It has {', '.join(there[:12]) or 'nothing'}."
    )
