"""Users: which checkpoints refer to some objects, found by their pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.digest import Digest, DigestMap
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from collections.abc import Collection

    from ckptstore.documents.manifest import Manifest
    from ckptstore.store.catalog import Catalog


class Users:
    """Finds those of some objects that checkpoints refer to. A page is searched once."""

    def __init__(self, catalog: Catalog, objects: Collection[Digest]) -> None:
        self._objects = frozenset(objects)
        self._reader = searched(catalog)
        self._groups: list[frozenset[Digest]] = []
        self._numbers: dict[frozenset[Digest], int] = {}
        self._pages = DigestMap()

    def of(self, manifest: Manifest) -> set[Digest]:
        """Return those of the objects that a checkpoint refers to.

        A page that cannot be read refers to none.
        """
        if not self._objects:
            return set()
        pages = walk(
            [manifest],
            self._reader,
            wanted=lambda page: page not in self._pages,
            failed=lambda page, error: self._remember(page, frozenset()),
        )
        for page, listed in pages:
            self._remember(page, frozenset(map(Digest, listed & self._objects)))
        documents = manifest.documents()
        numbers = {self._pages.get(ref.digest) for ref in manifest.refs}
        groups = (self._groups[number] for number in numbers if number is not None)
        return (documents & self._objects).union(*groups)

    def _remember(self, page: Digest, group: frozenset[Digest]) -> None:
        number = self._numbers.setdefault(group, len(self._groups))
        if number == len(self._groups):
            self._groups.append(group)
        self._pages[page] = number
