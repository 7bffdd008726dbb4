"""Survey: where the room on the disk went, the leftovers of interrupted work included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ckptstore.gc.marks import marks_of

if TYPE_CHECKING:
    from ckptstore.gc.stores import Stores


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The objects of a repository, and those among them that no branch and no tag reaches."""

    objects: int
    bytes: int
    unreached_objects: int
    unreached_bytes: int


def survey(stores: Stores) -> Survey:
    """Look at all objects. What a damaged page lists counts as not reached."""
    newest = stores.oplog.newest()
    sizes: list[int] = []
    unreached: list[int] = []
    with stores.lock, stores.live.lock:
        stores.live.reconcile(newest, stores.catalog.live())
        stores.marks.follow(stores.live.manifests)
        named = {id for id, _ in stores.live.reached(newest.refs.values())}
        exclusive = stores.marks.exclusive(sorted(stores.live.manifests.keys() - named))
        for part in stores.stock(grace=0):
            digests = [item.digest for item in part]
            is_reached = stores.marks.are_reached(digests)
            is_reached &= exclusive.owners_of(marks_of(digests)) < 0
            part_sizes = np.array([item.size for item in part], np.int64)
            sizes += part_sizes.tolist()
            unreached += part_sizes[~is_reached].tolist()
    return Survey(
        objects=len(sizes),
        bytes=sum(sizes),
        unreached_objects=len(unreached),
        unreached_bytes=sum(unreached),
    )
