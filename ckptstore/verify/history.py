"""History: the checkpoints that the refs of one operation reach, as far as they can be read."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError
from ckptstore.history import ancestors
from ckptstore.store.ahead import Ahead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.store.catalog import Catalog


class History:
    """The checkpoints that the refs of an operation reach, each once, as they are iterated over.

    Attributes:
        newest: The operation.
        reached: Their ids, as far as iterated.
        named: Why a checkpoint must be there, by id.
        is_cut: A part cannot be read, so that what is reached from there is unknown.
    """

    def __init__(self, catalog: Catalog, newest: Operation, is_newest: bool) -> None:
        self.newest, self.is_cut = newest, not is_newest
        self.reached: set[Digest] = set()
        self.named = {id: f"{name!r} names it" for name, id in newest.refs.items()}
        self._catalog, self._ahead = catalog, Ahead(catalog, count=sys.maxsize)

    def __iter__(self) -> Iterator[tuple[Digest, Manifest]]:
        for id, manifest in ancestors(self.newest.refs.values(), self._lookup):
            self.add(id, manifest)
            yield id, manifest

    def add(self, id: Digest, manifest: Manifest) -> None:
        """Add a checkpoint that may be reached through what cannot be read."""
        self.reached.add(id)
        for parent in manifest.parents:
            self.named.setdefault(parent, f"checkpoint {id.short} was made from it")

    def _lookup(self, id: Digest) -> Manifest | None:
        self._ahead.prepare(id)
        try:
            return self._catalog.manifest(id)
        except CkptStoreError:
            self.is_cut = True
            return None
