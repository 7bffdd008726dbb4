"""StoredState: what a checkout reads of a checkpoint, and where its arrays are.

Only the pages that list arrays of the chosen part are read. Everything that reads a state, fresh,
lazily or into an existing destination, starts from here. A rename changes paths here and nowhere
else: whatever comes after sees a checkpoint with the new ones.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays.frameworks import is_model
from ckptstore.checkout.opener import ArrayOpener
from ckptstore.python_gc import paused_collector
from ckptstore.state import tree
from ckptstore.state.paths import weights_part
from ckptstore.state.rename import Rename, move
from ckptstore.state.selection import Selection
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.nodes import ArrayNode, Node
    from ckptstore.documents.page import Page
    from ckptstore.state.rename import Names
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectReader
    from ckptstore.store.resolver import Resolver

PAGES_WITH_STRUCTURE_MAX = 64  # fewer than the catalog keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """A checkpoint or a part of one.

    id: of the checkpoint. whole: the checkpoint as it is stored. selection: the globs that chose
    something of it. rename: of what they chose. names: the new paths of that; None if nothing was
    renamed. path: of the root under its new name, "" for the whole. arrays: the array nodes of the
    root. pages: those that list these arrays.
    """

    id: Digest
    whole: Node
    root: Node
    path: str
    selection: Selection
    rename: Rename
    names: Names | None
    arrays: list[ArrayNode]
    pages: list[Page]
    opener: ArrayOpener
    objects: ObjectReader

    @classmethod
    @contextmanager
    def reading(
        cls,
        rev: str,
        resolver: Resolver,
        catalog: Catalog,
        *,
        selection: Selection | None = None,
        rename: Rename | None = None,
        part: str | None = None,
        bytes_max: int | None = None,
        view: Callable[[Node], Node] | None = None,
    ) -> Iterator[Self]:
        """Load a revision, whose arrays are read in this block; arguments as of `load`.

        Raises:
            ExpiredError: The arrays were deleted by a gc, also by one that runs meanwhile.
        """
        id, manifest = resolver.readable(rev)
        with catalog.reading(id):
            yield cls.load(
                id,
                manifest,
                catalog,
                selection=selection or Selection.of(None, None),
                rename=rename or Rename.of(None),
                part=part,
                bytes_max=bytes_max,
                view=view,
            )

    @classmethod
    def load(
        cls,
        id: Digest,
        manifest: Manifest,
        catalog: Catalog,
        *,
        selection: Selection,
        rename: Rename,
        part: str | None,
        model: object = None,
        objects: ObjectReader | None = None,
        bytes_max: int | None = None,
        view: Callable[[Node], Node] | None = None,
    ) -> Self:
        """Read the structure and the pages of what is chosen.

        rename: of the paths that the globs of `selection` choose; `part` is one of the new names.
        model: what is filled; without a `part`, a module takes its key among `WEIGHTS`.
        objects: reads the arrays; the catalog's own when None. bytes_max: of the opener. view:
        changes what was chosen, before it is renamed.
        """
        is_whole = part is None and selection.is_everything and not rename.patterns
        with paused_collector():
            whole, path = _structure(manifest, catalog, has_all_pages=is_whole), ""
            root = tree.select(whole, selection, name=f"checkpoint {id.short}")
            if view is not None:
                root = view(root)
            names = origins = None
            if rename.patterns:
                names = rename.names_in(root, source=whole)
                root = move(root, names, source=whole)
                origins = {new: old for old, new in names.arrays.items()}
            if part is None and is_model(model):
                part = weights_part(tree.keys(root))
            if part is not None:
                root, path = tree.part(root, part), tree.path_of(part)
            nodes = list(tree.arrays(root))
            paths = {path for node in nodes if not node.is_zarr for path in (node.path, node.first)}
            if names is None or origins is None:
                pages = list(catalog.pages_of(manifest, paths))
            else:
                stored = {origins[path] for path in paths}
                pages = _renamed(catalog.pages_of(manifest, stored), names.arrays)
            catalog.objects.meter.begin(
                "read",
                sum(
                    entry.nbytes for page in pages for entry in page.entries if entry.path in paths
                ),
            )
            return cls(
                id=id,
                whole=whole,
                root=root,
                path=path,
                selection=selection,
                rename=rename,
                names=names,
                arrays=nodes,
                pages=pages,
                opener=ArrayOpener(id, manifest, catalog, bytes_max=bytes_max, origins=origins),
                objects=catalog.objects if objects is None else objects,
            )

    @property
    def is_whole(self) -> bool:
        """False when globs may have left something out, so that a destination may hold more."""
        return self.selection.is_everything

    def is_asked_for(self, path: str) -> bool:
        """True unless globs may have left out what the checkpoint has at a path."""
        return self.selection.include is None and self.selection(path)

    def again(self, *, rename: Rename, selection: Selection, part: str | None) -> Self:
        """The same checkpoint under other names, as far as its pages were read.

        Args:
            rename: In place of the one that there is.
            selection: In place of the one that there is, which chose no less.
            part: As in `load`.

        Raises:
            InvalidInputError: The rename cannot be, or there is no such part.
        """
        chosen = tree.select(self.whole, selection, name="the checkpoint")
        names = rename.names_in(chosen, source=self.whole)
        root, path = move(chosen, names, source=self.whole), ""
        if part is not None:
            root, path = tree.part(root, part), tree.path_of(part)
        old = {} if self.names is None else {new: old for old, new in self.names.arrays.items()}
        listed = {entry.path for page in self.pages for entry in page.entries}
        moves = {
            path: names.arrays[stored]
            for path in listed
            if (stored := old.get(path, path)) in names.arrays
        }
        origins = {new: stored for stored, new in names.arrays.items()}
        return replace(
            self,
            root=root,
            path=path,
            selection=selection,
            rename=rename,
            names=names,
            arrays=list(tree.arrays(root)),
            pages=_renamed(self.pages, moves),
            opener=self.opener.again(origins),
        )

    def entries(self) -> dict[str, Entry]:
        """Every array that the pages list, and every Zarr array, by path."""
        has_zarr = any(node.is_zarr for node in self.arrays)
        entries: dict[str, Entry] = {**self.opener.encoded_entries()} if has_zarr else {}
        entries |= {entry.path: entry for page in self.pages for entry in page.entries}
        return entries


def _structure(manifest: Manifest, catalog: Catalog, *, has_all_pages: bool) -> Node:
    """Read the structure of a checkpoint; of a far one with the pages that are read next."""
    if not (catalog.is_far and has_all_pages and len(manifest.pages) <= PAGES_WITH_STRUCTURE_MAX):
        root: Node = catalog.structure(manifest)
        return root
    reads: list[Callable[[], Any]] = [
        partial(catalog.structure, manifest),
        partial(list, catalog.pages(manifest)),
    ]
    root, _ = gather(reads, threads=min(len(reads), catalog.threads))
    return root


def _renamed(pages: Iterable[Page], names: Mapping[str, str]) -> list[Page]:
    """Pages with the arrays that have a new path, under that path."""
    return [
        replace(
            page,
            entries=tuple(
                replace(entry, path=names[entry.path])
                for entry in page.entries
                if entry.path in names
            ),
        )
        for page in pages
    ]
