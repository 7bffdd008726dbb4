"""The names that arrays have in a file, and the nesting that they tell of.

A format without nesting gets the arrays by path, so a name is read as a path again: "model/weight" is the key "weight" in the
dict "model". Where a name cannot be a path, or one array would lie within another, all names stay the keys that they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ckptstore.documents.names import escape_key
from ckptstore.documents.structure import DEPTH_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

_ESCAPES = re.compile(r"(?:%[0-9A-F]{2})+")


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays by name as nested dicts, whose paths are the names; or just as they are."""
    keys = {name: _keys(name) for name in arrays}
    state: dict[str, Any] = {}
    for name, array in arrays.items():
        path = keys[name]
        if path is None:
            return dict(arrays)
        part: Any = state
        for key in path[:-1]:
            part = part.setdefault(key, {})
            if type(part) is not dict:
                return dict(arrays)
        if path[-1] in part:
            return dict(arrays)
        part[path[-1]] = array
    return state


def _keys(name: str) -> list[str] | None:
    """The keys that a path leads through; None for what is no path."""
    segments = name.split("/")
    try:
        keys = [_unescape(segment) for segment in segments]
    except UnicodeDecodeError:
        return None
    is_path = len(keys) < DEPTH_MAX and all(map(_is_key, keys, segments))
    return keys if is_path else None


def _is_key(key: str, segment: str) -> bool:
    return escape_key(key) == segment


def _unescape(segment: str) -> str:
    return "" if segment == "%" else _ESCAPES.sub(_characters, segment)


def _characters(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode("utf-8", "surrogatepass")
