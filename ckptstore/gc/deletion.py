"""Deletion: carries out what an operation condemns, and makes room for the operations of a gc."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.documents.expiry import EXPIRY_ANCESTORS_MAX, Expiry
from ckptstore.errors import StorageError
from ckptstore.gc.judge import REPEATED
from ckptstore.store.live import READS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container

    from ckptstore.digest import Digest
    from ckptstore.documents.author import Author
    from ckptstore.documents.operation import Condemned, Operation
    from ckptstore.gc.ownership import Ownership
    from ckptstore.gc.stores import Stores


def delete(
    stores: Stores, condemned: Condemned, *, ownership: Ownership, by: Author | None = None
) -> dict[Digest, Expiry]:
    """Carry out what an operation announces; it may already have been done in part.

    Nothing is written, so that a full disk has room before anything is (ADR 0035).

    Args:
        stores: The parts of the repository.
        condemned: The checkpoints and objects.
        ownership: The right to delete them.
        by: The process that condemned them, if known.

    Returns:
        The expiries that remain to be recorded.
    """
    if condemned.why == REPEATED.text:  # all that is known of them is known of the others
        ownership.look()
        stores.catalog.drop(condemned.checkpoints)
        _delete_objects(stores, condemned.digests, ownership)
        return {}
    now = stores.now()
    expiries = {
        id: Expiry(
            time=now,
            why=condemned.why,
            ancestors=_ancestors(stores, id, condemned.checkpoints),
            by=by,
        )
        for id in condemned.checkpoints
    }
    with_room(stores, lambda: stores.catalog.expire(condemned.checkpoints, look=ownership.look))
    stores.objects.meter.begin("deleted", len(condemned.digests))
    _delete_objects(stores, condemned.digests, ownership)
    return expiries


def _delete_objects(stores: Stores, digests: tuple[Digest, ...], ownership: Ownership) -> None:
    for bulk in ownership.bulks(digests):
        stores.objects.delete(bulk)


def record(stores: Stores, unrecorded: dict[Digest, Expiry]) -> None:
    """Record when and why checkpoints expired; on a full disk they are left for the next call."""
    try:
        stores.catalog.record(unrecorded)
    except StorageError as error:
        if not error.is_full:
            raise
    else:
        unrecorded.clear()


def end(stores: Stores, ownership: Ownership, done: str, *, gone: Container[Digest] = ()) -> None:
    """Append an operation that condemns nothing, without the entries of deleted checkpoints."""

    def choose(newest: Operation) -> Operation:
        left = tuple(entry for entry in newest.let_go if entry.id not in gone)
        return replace(newest, let_go=left)

    with_room(stores, lambda: ownership.append(choose, done))


def with_room(stores: Stores, write: Callable[[], object]) -> None:
    """Write something. On a full disk make room for it first."""
    try:
        write()
    except StorageError as error:
        if not error.is_full or not make_room(stores):
            raise
        write()


def make_room(stores: Stores) -> bool:
    """Free what can be freed without writing anything, and return whether there was anything."""
    swept, pruned = stores.storage.sweep(), stores.oplog.prune()
    return stores.storage.release_reserve() or bool(swept or pruned)


def _ancestors(
    stores: Stores, id: Digest, expiring: Collection[Digest]
) -> tuple[Digest, ...] | None:
    """Return the nearest ancestors of a checkpoint that stay, unless these are hard to find."""
    with stores.live.lock:
        manifest = stores.live.manifests.get(id)
        if manifest is None:
            return None
        found = stores.live.before(manifest.parents, without=expiring, reads_max=READS_MAX)
    return found if found is not None and len(found) <= EXPIRY_ANCESTORS_MAX else None
