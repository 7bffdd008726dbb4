"""Ahead: manifests of a far storage are read before a walk through the history asks for them.

A walk learns the next id from the manifest before it, so by itself it would take a round trip for
each checkpoint. As most histories are in the order of their times, the manifests that were stored
before the one at hand are read with it, many at once. A wrong guess costs time and nothing else.
See docs/adr/0062.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.storage.protocol import UnlistedError
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.store.catalog import Catalog

ALONE = 4  # manifests that are read one by one first, as most walks are short
COUNT_MIN, COUNT_MAX = 16, 256  # manifests that are read at once


class Ahead:
    """The lookup of one walk from newer to older checkpoints.

    Args:
        catalog: The documents; of a near storage each is read when it is asked for.
        count: How many checkpoints the walk will visit, if that is known; the default is that it
            may end soon.
    """

    def __init__(self, catalog: Catalog, *, count: int | None = None) -> None:
        self._catalog = catalog
        self._alone = ALONE if count is None or count <= ALONE else 0
        self._count = COUNT_MIN if count is None else min(count, COUNT_MAX)
        self._has_expired: dict[Digest, bool] = {}  # all checkpoints, as of the first listing
        self._order: list[Digest] = []  # newest first
        self._places: dict[Digest, int] = {}

    def __call__(self, id: Digest) -> Manifest | None:
        """Return the manifest of a checkpoint, or None when there is none."""
        self.prepare(id)
        return self._catalog.lookup(id)

    def prepare(self, id: Digest) -> None:
        """Read the manifest of a checkpoint, which is asked for next, with those behind it."""
        if self._catalog.is_far and not self._catalog.knows(id):
            if self._alone:
                self._alone -= 1
            else:
                self._read_from(id)

    def with_expired(
        self, checkpoints: Iterable[tuple[Digest, Manifest]]
    ) -> Iterator[tuple[Digest, Manifest, bool]]:
        """Yield checkpoints of the walk, each with whether it has expired."""
        return ((id, manifest, self.is_expired(id)) for id, manifest in checkpoints)

    def is_expired(self, id: Digest) -> bool:
        """Return True for a checkpoint that had expired when all were listed, else by now."""
        if self._catalog.is_far and not self._alone:
            self._list()
        has_expired = self._has_expired.get(id)
        return self._catalog.is_expired(id) if has_expired is None else has_expired

    def _list(self) -> None:
        """List all checkpoints, unless that was done."""
        if not self._order:
            with suppress(UnlistedError):  # then each is read when it is asked for
                self._has_expired = self._catalog.stored()
            self._order = list(self._has_expired)
            self._places = {id: place for place, id in enumerate(self._order)}

    def _read_from(self, id: Digest) -> None:
        """Read the manifest of a checkpoint, and those that were stored before it."""
        self._list()
        place = self._places.get(id)
        if place is None:
            return
        unknown = (
            older for older in islice(self._order, place, None) if not self._catalog.knows(older)
        )
        reads = (
            partial(self._catalog.read_ahead, older, has_expired=self._has_expired[older])
            for older in islice(unknown, self._count)
        )
        gather(reads, threads=self._catalog.threads)
        self._count = min(2 * self._count, COUNT_MAX)
