"""Nested dicts from the names of arrays in a file.

A format without nesting stores arrays by path, so a name is read as a path again: "model/weight" is
the key "weight" in the dict "model". The names stay plain keys if one of them is not a path, or if
one array would be inside another (docs/adr/0006).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.documents.names import escape_key, unescape_key
from ckptstore.documents.structure import DEPTH_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays by name as nested dicts in which the names are paths, or by name as given."""
    state: dict[str, Any] = {}
    for name, array in arrays.items():
        keys = _keys(name)
        if keys is None:
            return dict(arrays)
        part: Any = state
        for key in keys[:-1]:
            part = part.setdefault(key, {})
            if type(part) is not dict:
                return dict(arrays)
        if keys[-1] in part:
            return dict(arrays)
        part[keys[-1]] = array
    return state


def _keys(name: str) -> list[str] | None:
    """The keys of a path; None for a name that is not a path."""
    segments = name.split("/")
    if len(segments) >= DEPTH_MAX:
        return None
    try:
        keys = [unescape_key(segment) for segment in segments]
    except ValueError:
        return None
    return keys if list(map(escape_key, keys)) == segments else None
