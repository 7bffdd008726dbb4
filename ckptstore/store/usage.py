"""Usage: the contents of a repository and their size on disk."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

from ckptstore.documents.marker import MARKER_KEY
from ckptstore.documents.settings import names_before
from ckptstore.errors import CorruptError
from ckptstore.history import ancestors
from ckptstore.store.lost import lost_among
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import CkptStoreError
    from ckptstore.storage import Storage
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.oplog import Oplog

MARK_DIGITS = 16  # of each digest 64 bits are kept, which is enough for a sum
GROWTH_CHECKPOINTS = 20
GROWTH_SECONDS_MIN = 60
SECONDS_PER_DAY = 86400
_SHARED = -1  # by checkpoints of several branches; below it: by several of one branch


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The space of one checkpoint, or of all checkpoints that were committed on one branch.

    Those of a deleted branch are live while a tag or another branch reaches them.

    Attributes:
        name: The id of the checkpoint, or the branch; "" if no branch was recorded.
        checkpoints: The number of live checkpoints.
        own_bytes: Bytes of the objects that no other checkpoint, or other branch, reaches.
        shared_bytes: Bytes of the objects that others reach too.
        is_deleted: True if there is no branch of this name any more.
    """

    name: str
    checkpoints: int
    own_bytes: int
    shared_bytes: int
    is_deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """The growth by the newest checkpoints, for a forecast.

    Attributes:
        checkpoints: Their number, over all branches, including expired ones.
        seconds: The time from the first to the last of them.
        new_bytes: Bytes that all but the first had to store.
        kept_bytes: The part of `new_bytes` that belongs to checkpoints that have not expired.
    """

    checkpoints: int
    seconds: float
    new_bytes: int
    kept_bytes: int

    @property
    def bytes_per_day(self) -> float:
        """The bytes that one day adds, without those that retention frees."""
        return self.kept_bytes / self.seconds * SECONDS_PER_DAY


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
        reserve_bytes: Bytes of a reserve that lets a gc work on a full disk.
        by_branch: The objects of each branch that has live checkpoints, by name. Their own bytes,
            `shared_bytes` and `unreached_bytes` add up to `stored_bytes`.
        by_checkpoint: The same for each checkpoint, newest first, if requested.
        shared_bytes: Bytes of the objects that checkpoints of several branches reach.
        growth: The growth by the newest checkpoints; None if there are too few to tell.
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
    reserve_bytes: int
    by_branch: tuple[Share, ...]
    by_checkpoint: tuple[Share, ...]
    shared_bytes: int
    growth: Growth | None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return self.stored_bytes + self.metadata_bytes + self.temporary_bytes + self.reserve_bytes


def usage(
    storage: Storage,
    catalog: Catalog,
    oplog: Oplog,
    notes: Notes,
    *,
    with_checkpoints: bool = False,
) -> Usage:
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
    renamed = names_before(newest.settings, newest.heads)
    owners = _Owners(
        catalog, live, {former: name for name, names in renamed.items() for former in names}
    )
    stored, unreached = _objects(catalog, owners)
    temporaries = storage.temporaries()
    others = (*oplog.list(), *oplog.list_pages(), *notes.list())
    metadata = [item.size for name, item in (*documents, *others) if name]
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
        reserve_bytes=storage.reserve_bytes(),
        by_branch=owners.by_branch(newest.heads),
        by_checkpoint=owners.by_checkpoint() if with_checkpoints else (),
        shared_bytes=owners.shared_bytes,
        growth=_growth(reached, live),
    )


def _objects(catalog: Catalog, owners: _Owners) -> tuple[list[int], list[int]]:
    """Return the sizes of all objects, and of those that no checkpoint reaches."""
    stored: list[int] = []
    unreached: list[int] = []
    for digest, item in catalog.objects.list():
        if digest is None:  # a file of another program
            continue
        stored.append(item.size)
        if not owners.take(_mark(digest), item.size):
            unreached.append(item.size)
    return stored, unreached


class _Owners:
    """The owner of each object. A page is read once, however many checkpoints share it.

    The owner of an object is the number of the only checkpoint that reaches it, _SHARED, or
    _SHARED - 1 - B where only checkpoints of branch number B do.

    renamed: the present names of branches, by their earlier ones.

    Attributes:
        shared_bytes: Bytes of the counted objects that checkpoints of several branches reach.
    """

    def __init__(
        self, catalog: Catalog, live: Mapping[Digest, Manifest], renamed: Mapping[str, str]
    ) -> None:
        self._ids = list(live)
        recorded = [manifest.branch or "" for manifest in live.values()]
        branches = [renamed.get(name, name) for name in recorded]
        self._names = sorted(set(branches))
        numbers = {name: number for number, name in enumerate(self._names)}
        self._branches = [numbers[name] for name in branches]
        self._documents = [manifest.documents() for manifest in live.values()]
        self._owners: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._listed: dict[int, set[int]] = {}  # by the mark of a page
        for number, documents in enumerate(self._documents):
            for document in documents:
                self._add(_mark(document), number)
        self._read(catalog, live.values())
        self._own = [0] * len(self._ids)
        self._branch_own = [0] * len(self._names)
        self.shared_bytes = 0

    def take(self, mark: int, size: int) -> bool:
        """Count an object for its owner; return False if it has none."""
        owner = self._owners.get(mark)
        if owner is None:
            return False
        self._sizes[mark] = size
        if owner >= 0:
            self._own[owner] += size
        if owner == _SHARED:
            self.shared_bytes += size
        else:
            self._branch_own[self._branch_of(owner)] += size
        return True

    def by_branch(self, existing: Container[str]) -> tuple[Share, ...]:
        """Return the shares of the branches, once all objects are counted."""
        reached: list[set[int]] = [set() for _ in self._names]
        for documents, branch in zip(self._documents, self._branches, strict=True):
            reached[branch].update(map(_mark, documents))
        return tuple(
            Share(
                name=name,
                checkpoints=self._branches.count(number),
                own_bytes=self._branch_own[number],
                shared_bytes=self._bytes_of(reached[number]) - self._branch_own[number],
                is_deleted=bool(name) and name not in existing,
            )
            for number, name in enumerate(self._names)
        )

    def by_checkpoint(self) -> tuple[Share, ...]:
        """Return the shares of the checkpoints, once all objects are counted."""
        return tuple(
            Share(
                name=id,
                checkpoints=1,
                own_bytes=own,
                shared_bytes=self._bytes_of(set(map(_mark, documents))) - own,
            )
            for id, own, documents in zip(self._ids, self._own, self._documents, strict=True)
        )

    def _bytes_of(self, documents: set[int]) -> int:
        """Return the bytes of documents, and of all objects that pages among them list."""
        marks = documents.union(*(self._listed.get(mark, ()) for mark in documents))
        return sum(self._sizes.get(mark, 0) for mark in marks)

    def _read(self, catalog: Catalog, manifests: Iterable[Manifest]) -> None:
        def skip(page: Digest, error: CkptStoreError) -> None:  # noqa: ARG001
            if not isinstance(error, CorruptError):
                raise error

        pages = walk(
            manifests,
            searched(catalog),
            wanted=lambda page: _mark(page) not in self._listed,
            failed=skip,
        )
        for page, listed in pages:
            marks = set(map(_mark, listed))
            self._listed[_mark(page)] = marks
            for mark in marks:
                self._add(mark, self._owners[_mark(page)])

    def _add(self, mark: int, owner: int) -> None:
        """Record that an owner reaches an object."""
        known = self._owners.get(mark, owner)
        if known != owner:
            branches = {self._branch_of(known), self._branch_of(owner)}
            known = _SHARED if len(branches) > 1 else _SHARED - 1 - branches.pop()
        self._owners[mark] = known

    def _branch_of(self, owner: int) -> int:
        """Return the branch of an owner; -1 for several."""
        return self._branches[owner] if owner >= 0 else _SHARED - 1 - owner


def _growth(reached: Mapping[Digest, Manifest], live: Mapping[Digest, Manifest]) -> Growth | None:
    """Return the growth by the newest checkpoints; None if they span too little time to tell."""
    newest = nlargest(GROWTH_CHECKPOINTS, reached, key=lambda id: reached[id].created)
    seconds = (reached[newest[0]].created - reached[newest[-1]].created) / 1e6 if newest else 0
    if seconds < GROWTH_SECONDS_MIN:
        return None
    added = newest[:-1]
    return Growth(
        checkpoints=len(newest),
        seconds=seconds,
        new_bytes=sum(reached[id].new_bytes for id in added),
        kept_bytes=sum(reached[id].new_bytes for id in added if id in live),
    )


def _mark(digest: str) -> int:
    return int(digest[:MARK_DIGITS], 16)
