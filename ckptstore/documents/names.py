"""Which names are legal: branches, tags, metrics and array paths.

An array's path joins the keys that lead to it with "/". A key's own "/", "%" and control characters
are escaped as %XX (of its UTF-8 bytes), so a path is always unambiguous, printable, and never a
path of any file system (docs/reference/format.md, sections 8, 9 and 12.2; ADR 0006).
"""

from __future__ import annotations

import re
from itertools import islice

from ckptstore.errors import InvalidInputError, shown

REF_NAME_LENGTH_MAX = 200
PATH_LENGTH_MAX = 4096
METRIC_NAME_LENGTH_MAX = 200
STRINGS_MAX = 250_000  # in a list that a user passes; a structure names no more arrays

_REF_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_METRIC_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]+")
_PART = r"[^/\x00-\x1f\x7f\ud800-\udfff]+"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*")
_ESCAPED = re.compile(r"[%/\x00-\x1f\x7f]|[\ud800-\udfff]")
_ESCAPES = re.compile(r"(?:%[0-9A-F]{2})+")
_RESERVED = frozenset({"latest", "best", "HEAD"})


def check_ref_name(name: object, *, kind: str) -> str:
    """Return a legal branch or tag name, or raise InvalidInputError."""
    if (
        not isinstance(name, str)
        or len(name) > REF_NAME_LENGTH_MAX
        or not _REF_NAME.fullmatch(name)
    ):
        raise InvalidInputError(
            f"{shown(name)} cannot name a {kind}: use up to {REF_NAME_LENGTH_MAX} letters, digits "
            "and ._+- in parts joined by /, each beginning with a letter, digit or _."
        )
    if (
        name in _RESERVED
        or name.startswith("best:")
        or ".." in name
        or name.endswith((".lock", "."))
    ):
        raise InvalidInputError(
            f"{name!r} cannot name a {kind}: it has another meaning in a revision. "
            "Choose another name."
        )
    return name


def check_strings(values: object, *, what: str) -> tuple[str, ...]:
    """Return one string, or a list of some, as a tuple, or raise InvalidInputError."""
    try:
        listed = tuple(islice([values] if isinstance(values, str) else values, STRINGS_MAX + 1))  # type: ignore[call-overload]
    except TypeError:
        listed = (values,)
    wrong = [value for value in listed if not isinstance(value, str)]
    if wrong or len(listed) > STRINGS_MAX:
        raise InvalidInputError(
            f"{shown(wrong[0] if wrong else values)} was given for the {what}; a string is "
            f"expected, or a list of at most {STRINGS_MAX}."
        )
    return listed


def check_metric_name(name: object) -> str:
    """Return a legal metric name, or raise InvalidInputError.

    A training run must not end because of a name, so nearly all are legal. Revisions can contain
    only those without ":", "@" and "~".
    """
    if (
        not isinstance(name, str)
        or len(name) > METRIC_NAME_LENGTH_MAX
        or not _METRIC_NAME.fullmatch(name)
    ):
        raise InvalidInputError(
            f"{shown(name)} cannot name a metric: use up to {METRIC_NAME_LENGTH_MAX} characters, "
            "none of them a control character."
        )
    return name


def check_path(path: str, *, kind: str = "path of an array") -> str:
    """Return a path of an array that a writer could have made, or raise InvalidInputError."""
    if len(path) > PATH_LENGTH_MAX or not _PATH.fullmatch(path):
        raise InvalidInputError(
            f"{shown(path)} is not a {kind}: up to {PATH_LENGTH_MAX} characters are "
            "expected, in parts joined by /, none of them empty or with a control character."
        )
    return path


def escape_key(key: str) -> str:
    """Return the form of a dict key inside a path."""
    return _ESCAPED.sub(_percent, key) if key else "%"


def unescape_key(segment: str) -> str:
    """Return the dict key for a part of a path; ValueError for bytes that are not UTF-8.

    Several texts give the same key, but `escape_key` makes only one of them: compare with that.
    """
    return "" if segment == "%" else _ESCAPES.sub(_characters, segment)


def escape_first(segment: str) -> str:
    """Return another form of a segment, for a str key that reads like an int key beside it."""
    return "".join(f"%{byte:02X}" for byte in segment[0].encode()) + segment[1:]


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _characters(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogatepass")
