"""StoredState: what a checkout reads of a checkpoint, and where its arrays are.

Only the pages that list arrays of the chosen part are read. Everything that reads a state, fresh,
lazily or into an existing destination, starts from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ckptstore.arrays.frameworks import is_module
from ckptstore.checkout.opener import ArrayOpener
from ckptstore.python_gc import paused_collector
from ckptstore.state import tree
from ckptstore.state.paths import WEIGHTS

if TYPE_CHECKING:
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.nodes import ArrayNode, Node
    from ckptstore.documents.page import Page
    from ckptstore.state.selection import Selection
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectReader


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A checkpoint or a part of one.

    path: of the root in the checkpoint, "" for the whole. selection: the globs that chose it.
    arrays: the array nodes of the root. pages: those that list these arrays.
    """

    root: Node
    path: str
    selection: Selection
    arrays: list[ArrayNode]
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
        bytes_max: int | None = None,
    ) -> Self:
        """Read the structure and the pages of what is chosen.

        model: what is filled; without a `part`, a module takes "model" if there is such a key.
        objects: reads the arrays; the catalog's own when None. bytes_max: of the opener.
        """
        with paused_collector():
            whole, path = catalog.structure(manifest), ""
            root = tree.select(whole, selection, name=f"checkpoint {id.short}")
            if part is None and is_module(model) and WEIGHTS in tree.keys(root):
                part = WEIGHTS
            if part is not None:
                root, path = tree.part(root, part), tree.path_of(part)
            nodes = list(tree.arrays(root))
            paths = {path for node in nodes if not node.is_zarr for path in (node.path, node.first)}
            pages = list(catalog.pages_of(manifest, paths))
            catalog.objects.meter.begin(
                "read",
                sum(
                    entry.nbytes for page in pages for entry in page.entries if entry.path in paths
                ),
            )
            return cls(
                root=root,
                path=path,
                selection=selection,
                arrays=nodes,
                pages=pages,
                opener=ArrayOpener(id, manifest, catalog, bytes_max=bytes_max),
                objects=catalog.objects if objects is None else objects,
            )

    @property
    def is_whole(self) -> bool:
        """False when globs may have left something out, so that a destination may hold more."""
        return self.selection.is_everything

    def is_asked_for(self, path: str) -> bool:
        """True unless globs may have left out what the checkpoint has at a path."""
        return self.selection.include is None and self.selection(path)

    def entries(self) -> dict[str, Entry]:
        """Every array that the pages list, and every Zarr array, by path."""
        has_zarr = any(node.is_zarr for node in self.arrays)
        entries: dict[str, Entry] = {**self.opener.encoded_entries()} if has_zarr else {}
        entries |= {entry.path: entry for page in self.pages for entry in page.entries}
        return entries
