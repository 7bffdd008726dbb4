"""Layout: which arrays of the head a session's commit keeps, and which keys become Zarr nodes.

A pure decision; `publish` executes it. A key belongs to the nearest node above it that has a
document, or else to the root. See section 10.5 of docs/reference/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

from ckptstore.documents.zarr_document import NODE_DOCUMENTS, above
from ckptstore.zarr.contents import Made

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ckptstore.zarr.contents import Content


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of the contents that a commit has to write.

    Attributes:
        kept: Paths in the state of the head's arrays that stay unchanged.
        converted: The head's arrays that become Zarr arrays: path in the state to path of the node.
        nodes: Every Zarr node's path and its contents by key, both in ascending order.
    """

    kept: frozenset[str]
    converted: dict[str, str]
    nodes: tuple[tuple[str, tuple[tuple[str, Content], ...]], ...]


def lay_out(staged: Mapping[str, Content], *, written: Collection[str]) -> Layout:
    """Decide the layout. `written`: paths in the state of the head's arrays that were changed."""
    documents = {
        key.rpartition("/")[0] for key in staged if key.rpartition("/")[2] in NODE_DOCUMENTS
    }

    @cache
    def home(folder: str) -> str:
        """The path of the node that the keys in a folder belong to."""
        paths = (folder, *above(folder)) if folder else ("",)
        return next((path for path in paths if path in documents), "")

    def home_of(key: str) -> str:
        return home(key.rpartition("/")[0])

    own = {key: array for key, content in staged.items() if (array := array_of(content))}
    node_of = {array: home_of(key) for key, array in own.items()}
    foreign = [key for key, content in staged.items() if not _is_made(content)]
    # A key below an array of the head that is not one of its own makes that array a Zarr array too.
    below = set(map(home_of, foreign))
    converted = {
        array: path for array, path in node_of.items() if array in written or path in below
    }
    kept = frozenset(node_of.keys() - converted.keys())
    nodes: dict[str, dict[str, Content]] = {}
    of_converted = (key for key, array in own.items() if array in converted)
    for key in chain(foreign, of_converted, _lost_groups(staged, node_of, kept)):
        path = home_of(key)
        nodes.setdefault(path, {})[key[len(path) + 1 :] if path else key] = staged[key]
    return Layout(
        kept=kept,
        converted=converted,
        nodes=tuple((path, tuple(sorted(nodes[path].items()))) for path in sorted(nodes)),
    )


def array_of(content: Content) -> str | None:
    """The path in the state of the array that a value belongs to; None for one set by Zarr."""
    path: str | None = getattr(content, "array", None)
    return path


def _is_made(content: Content) -> bool:
    return isinstance(content, Made) or array_of(content) is not None


def _lost_groups(
    staged: Mapping[str, Content], node_of: Mapping[str, str], kept: Collection[str]
) -> list[str]:
    """The documents of implied groups whose last array of the head is no longer kept."""
    alive = {""} if kept else set()
    for array in kept:
        alive.update(above(node_of[array]))
    return [
        key
        for key, content in staged.items()
        if isinstance(content, Made) and content.array is None
        if key.rpartition("/")[0] not in alive
    ]
