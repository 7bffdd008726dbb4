"""The changes of a commit, in one sentence. Pure."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from ckptstore_cli import text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ckptstore import Checkpoint, Diff

GROUPS_SHOWN = 3
_SEPARATOR = re.compile(r"[/.]")


def sentence(checkpoint: Checkpoint, difference: Diff, paths: Collection[str]) -> str:
    """Describe the changes of a checkpoint since its parent.

    Args:
        checkpoint: The new checkpoint.
        difference: Its differences from its parent.
        paths: The paths of all its arrays.
    """
    if difference.is_empty:
        return f"nothing changed since {checkpoint.parents[0].short}"
    changed = {change.path for change in difference.arrays if change.kind != "removed"}
    removed = len(difference.arrays) - len(changed)
    parts = [f"{len(changed):,} of {text.count(len(paths), 'array')} changed"]
    if removed:
        parts[0] += f", {removed:,} removed"
    if groups := unchanged_groups(paths, changed):
        parts.append(f"{', '.join(groups)} unchanged")
    if difference.values:
        parts.append(f"{text.count(len(difference.values), 'plain value')} changed")
    added = f"+{text.size(checkpoint.new_bytes)}"
    if checkpoint.new_bytes < checkpoint.array_bytes:  # else pages and bundles came on top
        added += f" of {text.size(checkpoint.array_bytes)}"
    return "; ".join([*parts, added])


def unchanged_groups(paths: Collection[str], changed: Collection[str]) -> list[str]:
    """Globs of the largest groups of unchanged arrays, the largest first, as --include takes them.

    A group consists of the arrays under a folder or a dotted name, if there are two or more.
    """
    sizes = Counter(prefix for path in paths for prefix in _prefixes(path))
    touched = {"", *(prefix for path in changed for prefix in _prefixes(path))}
    groups = [
        prefix
        for prefix, size in sizes.items()
        if size > 1 and prefix not in touched and _parent(prefix) in touched
    ]
    groups.sort(key=lambda prefix: -sizes[prefix])
    return [f"{prefix}{'**' if prefix.endswith('/') else '*'}" for prefix in groups[:GROUPS_SHOWN]]


def _prefixes(path: str) -> Iterable[str]:
    return (path[: found.end()] for found in _SEPARATOR.finditer(path))


def _parent(prefix: str) -> str:
    """The enclosing group of a group; "" for an outermost one."""
    return max(("", *_prefixes(prefix[:-1])), key=len)
