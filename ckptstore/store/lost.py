"""Lost: checkpoints that operations must have named, and that no operation names any more.

A copy that was cut short, or an older one put over a newer, has checkpoints without the operations
that made them. They look like those of a deleted branch, and must not be deleted like these. A
commit that died before its operation leaves a checkpoint too, but never one that another was made
from: each parent was named by some operation (docs/reference/format.md, section 14; ADR 0039).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ckptstore.errors import CkptStoreError, CorruptError
from ckptstore.history import ancestors
from ckptstore.store.oplog import first_kept

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.oplog import Oplog


def lost(
    orphans: Mapping[Digest, Manifest],
    *,
    reached: Container[Digest],
    newest: Operation,
    oplog: Oplog,
    catalog: Catalog,
) -> set[Digest]:
    """Return those of the checkpoints that no ref reaches whose operations are missing.

    Operations are read, the newest first, only if one checkpoint was made from another, and only as
    far back as needed.

    Args:
        orphans: The live checkpoints that no branch and no tag of `newest` reaches.
        reached: The live checkpoints that a branch or tag reaches; it may have expired ones too.
        newest: The newest operation.
        oplog: The operations.
        catalog: The manifests.
    """
    children = {
        parent: orphan.created
        for orphan in orphans.values()
        for parent in orphan.parents
        if parent not in reached
    }
    explained: set[Digest] = set()

    def explain(operation: Operation, stop: Container[Digest]) -> bool:
        """Note what an operation names, and return True once it explains everything."""

        def lookup(id: Digest) -> Manifest | None:
            if id in explained or id in stop:
                return None
            explained.add(id)
            return _readable(id, catalog)

        let_go = (entry.id for entry in operation.let_go if entry.id)
        for _ in ancestors((*operation.refs.values(), *let_go), lookup):
            pass
        return children.keys() <= explained

    if not children or explain(newest, reached):
        return set()
    since, seqs = newest.time, oplog.seqs()
    for operation in _backwards(newest, seqs, oplog):
        since = operation.time
        if explain(operation, reached):
            return set()
    if explain(oplog.newest(), ()):  # through checkpoints that have expired, or since then
        return set()
    is_pruned = 1 < min(seqs, default=1) <= first_kept(newest.seq)
    named_before = {id for id, created in children.items() if is_pruned and created <= since}
    return orphans.keys() - explained if children.keys() - explained - named_before else set()


def lost_among(
    ids: Iterable[Digest],
    *,
    reached: Container[Digest],
    newest: Operation,
    oplog: Oplog,
    catalog: Catalog,
) -> dict[Digest, Manifest]:
    """Return the manifests of the lost ones of some live checkpoints that no ref reaches.

    Those that cannot be read, and those that a gc has taken meanwhile, are left out.
    """
    orphans = {id: manifest for id in ids if (manifest := _readable(id, catalog))}
    found = lost(orphans, reached=reached, newest=newest, oplog=oplog, catalog=catalog)
    return {id: orphans[id] for id in found}


def refuse_without_operations(newest: Operation, oplog: Oplog, catalog: Catalog) -> None:
    """Raise CorruptError when there are no operations, but checkpoints that show there were some.

    Checkpoints are only listed where there is no operation, as in a new repository.
    """
    if newest.seq:
        return
    live = {id: manifest for id in catalog.live() if (manifest := _readable(id, catalog))}
    if not any(manifest.parents for manifest in live.values()):
        return  # none, or a first commit that died
    if oplog.seqs():  # another process made them since
        return
    head = max(live, key=lambda id: (live[id].created, id))
    step = "" if live[head].step is None else f", step {live[head].step}"
    raise CorruptError(
        f"{catalog.url} has {len(live)} checkpoints, but none of the operations that state where "
        "its branches are, as in a copy that was cut short. Copy ops/ from another copy. Without "
        f"one, make a branch at the newest checkpoint ({head.short}{step})."
    )


def head_of(branch: str, newest: Operation, oplog: Oplog, catalog: Catalog) -> Digest | None:
    """Return the head of a branch to commit on, or None for a new branch.

    CorruptError when its manifest is missing, or all operations are: the next checkpoint would
    silently begin a new history. A damaged manifest is there, and the next one follows it.
    """
    head = newest.heads.get(branch)
    if head is None:
        refuse_without_operations(newest, oplog, catalog)
    elif is_missing(head, catalog):
        raise missing_head(branch, head, catalog)
    return head


def is_missing(id: Digest, catalog: Catalog) -> bool:
    """Return True when there is no manifest of a checkpoint; a damaged one is there."""
    try:
        return catalog.lookup(id) is None
    except CorruptError:
        return False


def missing_head(name: str, id: Digest, catalog: Catalog) -> CorruptError:
    """Return the error for a branch or tag whose checkpoint is not there."""
    return CorruptError(
        f"Checkpoint {id.short}, which {name!r} names, is missing from {catalog.url}, as in a copy "
        f"that was cut short. Copy {catalog.key(id)} and its objects from another copy. Without "
        f"one, delete {name!r} and make it again at a checkpoint that is left: verify lists those "
        "that no branch reaches."
    )


def missing_ancestors(ids: Collection[Digest], catalog: Catalog) -> str:
    """Return what missing checkpoints of a history mean for gc; an empty text without any."""
    if not ids:
        return ""
    first = min(ids)
    others = f" and {len(ids) - 1:,} more are" if len(ids) > 1 else " is"
    return (
        f"Checkpoint {first.short}{others} missing from the history in {catalog.url}, or damaged, "
        "as in a copy that was cut short. It may need any object, so gc expires no checkpoint and "
        f"deletes no object. Copy {catalog.key(first)} from another copy; verify lists all missing "
        "files. Without a copy, gc continues a day after it first found this, and may then delete "
        "objects of the missing checkpoint."
    )


def _backwards(newest: Operation, seqs: Iterable[int], oplog: Oplog) -> Iterator[Operation]:
    """Yield the operations before the newest that can be read, the oldest last."""
    for seq in sorted(seqs, reverse=True):
        if seq < newest.seq:
            with suppress(CkptStoreError):
                yield oplog.read(seq)


def _readable(id: Digest, catalog: Catalog) -> Manifest | None:
    try:
        return catalog.lookup(id)
    except CkptStoreError:
        return None
