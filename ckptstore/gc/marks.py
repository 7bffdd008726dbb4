"""Marks: the objects that some checkpoints reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.errors import CorruptError
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import CkptStoreError
    from ckptstore.store.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReach:
    """The objects that the checkpoints of a plan reach: those it keeps, and only those that expire.

    unread: the pages among them that could not be read, so that what they list is unknown.
    """

    kept: set[Digest]
    given_up: set[Digest]
    unread: set[Digest]


class Marks:
    """The objects that some checkpoints reach. A page is read once, however many share it.

    unread: pages that could not be read. They are tried again for each checkpoint that lists them,
    as a commit may have put them back.
    """

    def __init__(self, catalog: Catalog, reach: PlanReach | None = None) -> None:
        self.digests = set(reach.kept) if reach else set()
        self.unread = set(reach.unread) if reach else set()
        self._reader = searched(catalog)

    def add(self, manifest: Manifest, *, must_be_whole: bool) -> set[Digest]:
        """Mark what a checkpoint reaches, and return the objects that were not marked before.

        must_be_whole: a page that cannot be read is an error that stops the gc, as what is needed
        is then unknown. Checkpoints that expire or that no ref reaches (left by a commit that died
        beside a gc) need not be whole.
        """
        added = manifest.documents() - self.digests

        def failed(page: Digest, error: CkptStoreError) -> None:
            if isinstance(error, CorruptError):
                self.unread.add(page)
            if must_be_whole or not isinstance(error, CorruptError):
                raise error

        pages = walk(
            manifest,
            self._reader,
            wanted=lambda page: page in added or page in self.unread,
            failed=failed,
        )
        for page, listed in pages:
            added.update(map(Digest, listed - self.digests))
            self.unread.discard(page)
        self.digests |= added
        return added
