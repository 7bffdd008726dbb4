"""Layout: which arrays of a head stay as they are when a session is committed, and which keys become nodes.

A key belongs to the nearest node above it that has a document, or else to the root.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.documents.zarr_document import above
from ckptstore.zarr.contents import NODE_DOCUMENTS, Made

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from ckptstore.zarr.contents import Content


@dataclass(frozen=True, slots=True)
class Layout:
    """What a commit has to write.

    converted: the head's arrays that are Zarr arrays from now on, by path in the state, with their nodes' paths. kept: those
    that stay as they are. nodes: every Zarr node's path, and its contents by key, in order.
    """

    kept: frozenset[str]
    converted: dict[str, str]
    nodes: tuple[tuple[str, tuple[tuple[str, Content], ...]], ...]


def lay_out(staged: Mapping[str, Content], *, written: Collection[str]) -> Layout:
    """Decide. written: the head's arrays of whose keys one was set or deleted, by path in the state."""
    documents = {
        key.rpartition("/")[0] for key in staged if key.rpartition("/")[2] in NODE_DOCUMENTS
    }
    homes = _Homes(documents)
    own = {key: array for key, content in staged.items() if (array := array_of(content))}
    node_of = {array: homes.of(key) for key, array in own.items()}
    foreign = [key for key, content in staged.items() if not _is_made(content)]
    # What lies below an array of the head, and is none of its keys, makes that array a Zarr array too.
    below = {homes.of(key) for key in foreign}
    converted = {
        array: path for array, path in node_of.items() if array in written or path in below
    }
    kept = frozenset(node_of.keys() - converted.keys())
    nodes: dict[str, dict[str, Content]] = {}
    for key in _node_keys(foreign, own, converted, _lost_groups(staged, node_of, kept)):
        path = homes.of(key)
        nodes.setdefault(path, {})[key[len(path) + 1 :] if path else key] = staged[key]
    return Layout(
        kept=kept,
        converted=converted,
        nodes=tuple((path, tuple(sorted(nodes[path].items()))) for path in sorted(nodes)),
    )


def array_of(content: Content) -> str | None:
    """The path in the state of the array that a content was made of; None for what came in through Zarr."""
    found: str | None = getattr(content, "array", None)
    return found


def _node_keys(
    foreign: Iterable[str],
    own: Mapping[str, str],
    converted: Mapping[str, str],
    groups: Iterable[str],
) -> Iterator[str]:
    """The keys that become nodes."""
    yield from foreign
    yield from (key for key, array in own.items() if array in converted)
    yield from groups


def _is_made(content: Content) -> bool:
    return isinstance(content, Made) or array_of(content) is not None


def _lost_groups(
    staged: Mapping[str, Content], node_of: Mapping[str, str], kept: Collection[str]
) -> list[str]:
    """The documents of groups that were there only because of arrays, none of which is left."""
    alive = {""} if kept else set()
    for array in kept:
        alive.update(above(node_of[array]))
    return [
        key
        for key, content in staged.items()
        if isinstance(content, Made) and content.array is None
        if key.rpartition("/")[0] not in alive
    ]


class _Homes:
    """The node that each key belongs to."""

    def __init__(self, documents: set[str]) -> None:
        self._documents = documents
        self._known: dict[str, str] = {}

    def of(self, key: str) -> str:
        """The path of the node."""
        folder = key.rpartition("/")[0]
        if folder not in self._known:
            paths = (folder, *above(folder)) if folder else ("",)
            self._known[folder] = next((path for path in paths if path in self._documents), "")
        return self._known[folder]
