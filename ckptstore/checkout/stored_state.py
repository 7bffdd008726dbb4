"""StoredState: what a checkout reads of a checkpoint, and where its arrays are.

Only the pages that list arrays of the chosen part are read. Everything that reads a state, fresh,
lazily or into an existing destination, starts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ckptstore.arrays.source import is_module
from ckptstore.checkout.opener import ArrayOpener
from ckptstore.documents.structure import ZARR, array_path, tag_of
from ckptstore.errors import InvalidInputError
from ckptstore.python_gc import paused_collector
from ckptstore.state import tree as state
from ckptstore.state.tree import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import ArrayEntry, Page
    from ckptstore.documents.structure import Node
    from ckptstore.state.selection import Selection
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectReader


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A checkpoint or a part of one.

    path: of the root in the checkpoint, "" for the whole. is_whole: False when globs left
    something out, so that a destination may hold more. arrays: the array nodes of the root. pages:
    those that list these arrays.
    """

    root: Node
    path: str
    is_whole: bool
    arrays: list[Node]
    pages: list[Page]
    opener: ArrayOpener
    objects: ObjectReader

    @classmethod
    def load(
        cls,
        id: Digest,
        manifest: Manifest,
        catalog: Catalog,
        *,
        selection: Selection,
        part: str | None,
        model: object = None,
        objects: ObjectReader | None = None,
    ) -> Self:
        """Read the structure and the pages of what is chosen.

        model: a module that is filled without a `part` takes the one called "model" if there is one.
        objects: reads the arrays; the catalog's own when None.
        """
        with paused_collector():
            root, path = catalog.structure(manifest), ""
            if not selection.is_everything:
                root = state.select(root, selection)
                if root is state.NOTHING:
                    raise InvalidInputError(
                        f"Nothing in checkpoint {id.short} is chosen by {selection}."
                    )
            if part is None and is_module(model) and WEIGHTS in state.entries(root):
                part = WEIGHTS
            if part is not None:
                root, path = state.part(root, part), state.path_of(part)
            nodes = list(array_nodes(root))
            return cls(
                root=root,
                path=path,
                is_whole=selection.is_everything,
                arrays=nodes,
                pages=list(catalog.pages_of(manifest, _paths(nodes))),
                opener=ArrayOpener(id, manifest, catalog),
                objects=catalog.objects if objects is None else objects,
            )

    def entries(self) -> dict[str, ArrayEntry]:
        """Every array that the pages list, and every Zarr array, by path."""
        has_zarr = any(tag_of(node) in ZARR for node in self.arrays)
        entries: dict[str, ArrayEntry] = {**self.opener.encoded_entries()} if has_zarr else {}
        entries |= {entry.path: entry for page in self.pages for entry in page.entries}
        return entries


def array_nodes(root: Node) -> Iterator[Node]:
    """The array nodes of a structure, in the state's own order."""
    return (node for _, node in state.leaves(root) if array_path(node) is not None)


def _paths(nodes: Iterable[Node]) -> Iterator[str]:
    """The paths by which pages list arrays; a tied one is read by its first name."""
    for node in nodes:
        tag = tag_of(node)
        if tag not in ZARR:
            yield node[tag]
            if "tied" in node:
                yield node["tied"]
