"""Usage: the contents of a repository and their size on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.documents.marker import MARKER_KEY
from ckptstore.errors import CorruptError
from ckptstore.history import ancestors
from ckptstore.store.lost import lost_among
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import CkptStoreError
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.oplog import Oplog

MARK_DIGITS = 16  # of each digest 64 bits are kept, which is enough for a sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Contents of a repository and their size on disk.

    Attributes:
        checkpoints: Number of live checkpoints that a branch or tag reaches.
        unreachable: Number of those that none reaches, as after a branch was deleted. `verify`
            names them.
        branches: Number of branches.
        tags: Number of tags.
        array_bytes: Bytes of all arrays of these checkpoints, as if each were stored whole.
        objects: Number of objects.
        stored_bytes: Bytes of all objects; what checkpoints share is counted once.
        metadata_bytes: Bytes of manifests, expiries, operations and the marker.
        is_torn: Whether checkpoints or operations are missing, as in a copy that was cut short. Gc
            then deletes no object that may belong to them.
        unreached_objects: Number of objects that no branch and no tag reaches: of interrupted
            commits, of commits in progress, of deleted branches and of what is missing.
        unreached_bytes: Bytes of these; they are among `stored_bytes`.
        temporary_files: Number of files that are being written, or were left half written.
        temporary_bytes: Bytes of these.
        left_bytes: Bytes of those among them whose process is known to be dead. `gc` deletes them.
    """

    checkpoints: int
    unreachable: int
    branches: int
    tags: int
    array_bytes: int
    objects: int
    stored_bytes: int
    metadata_bytes: int
    is_torn: bool
    unreached_objects: int
    unreached_bytes: int
    temporary_files: int
    temporary_bytes: int
    left_bytes: int


def usage(storage: Storage, catalog: Catalog, oplog: Oplog) -> Usage:
    """Look at all files. What a damaged page lists counts as not reached."""
    documents = [item for folder in catalog.FOLDERS for item in catalog.list(folder)]
    ids = {id for id, item in documents if id and item.key == catalog.key(id)}
    newest = oplog.newest()
    gaps: list[Digest] = []

    def lookup(id: Digest) -> Manifest | None:
        manifest = catalog.lookup(id)
        if manifest is None:
            expiry = catalog.expiry(id)
            if expiry is None or expiry.ancestors is None:
                gaps.append(id)
        return manifest

    reached = dict(ancestors(newest.refs.values(), lookup))
    live = {id: manifest for id, manifest in reached.items() if id in ids}
    lost = lost_among(
        ids - reached.keys(), reached=reached, newest=newest, oplog=oplog, catalog=catalog
    )
    stored, unreached = _objects(catalog, _reached(catalog, live.values()))
    temporaries = storage.temporaries()
    operations = (*oplog.list(), *oplog.list_pages())
    metadata = [item.size for name, item in (*documents, *operations) if name]
    return Usage(
        checkpoints=len(live),
        unreachable=len(ids - live.keys()),
        branches=len(newest.heads),
        tags=len(newest.tags),
        array_bytes=sum(manifest.array_bytes for manifest in live.values()),
        objects=len(stored),
        stored_bytes=sum(stored),
        metadata_bytes=sum(metadata) + (storage.size(MARKER_KEY) or 0),
        is_torn=bool(gaps or lost),
        unreached_objects=len(unreached),
        unreached_bytes=sum(unreached),
        temporary_files=len(temporaries),
        temporary_bytes=sum(item.size for item in temporaries),
        left_bytes=sum(item.size for item in temporaries if item.is_left),
    )


def _objects(catalog: Catalog, reached: Container[int]) -> tuple[list[int], list[int]]:
    """Return the sizes of all objects, and of those whose marks are not reached."""
    stored: list[int] = []
    unreached: list[int] = []
    for digest, item in catalog.objects.list():
        if digest is None:  # a file of another program
            continue
        stored.append(item.size)
        if _mark(digest) not in reached:
            unreached.append(item.size)
    return stored, unreached


def _reached(catalog: Catalog, manifests: Iterable[Manifest]) -> set[int]:
    """Return the marks of what checkpoints reach. A page is read once, however many share it."""
    reached: set[int] = set()
    read: set[Digest] = set()

    def skip(page: Digest, error: CkptStoreError) -> None:  # noqa: ARG001
        if not isinstance(error, CorruptError):
            raise error

    for manifest in manifests:
        reached.update(map(_mark, manifest.documents()))
        pages = walk(manifest, searched(catalog), wanted=lambda page: page not in read, failed=skip)
        for page, listed in pages:
            read.add(page)
            reached.update(map(_mark, listed))
    return reached


def _mark(digest: str) -> int:
    return int(digest[:MARK_DIGITS], 16)
