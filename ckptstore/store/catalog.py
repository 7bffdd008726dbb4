"""Catalog: manifests, pages and structures by id, with small caches, as none of them ever changes.

Only this module knows the keys of manifests and expiries (docs/reference/format.md, sections 2
and 9). A checkpoint is live while its manifest is in `checkpoints/`, and expired once that was
moved to `history/`.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from ckptstore.digest import Digest
from ckptstore.documents import structure
from ckptstore.documents.canonical import readable
from ckptstore.documents.expiry import EXPIRY_BYTES_MAX, Expiry
from ckptstore.documents.manifest import MANIFEST_BYTES_MAX, Manifest
from ckptstore.documents.page import PAGE_BYTES_MAX, Page, reached
from ckptstore.documents.settings import claim_of
from ckptstore.documents.structure import STRUCTURE_BYTES_MAX
from ckptstore.documents.zarr_page import NodePage
from ckptstore.errors import (
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ckptstore.history import ancestors
from ckptstore.revisions import Names
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store.cache import Cache
from ckptstore.store.objects import damaged
from ckptstore.threads import ahead, gather
from ckptstore.times import to_the_minute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.documents.manifest import PageRef
    from ckptstore.documents.operation import Operation
    from ckptstore.history import Lookup
    from ckptstore.storage import Listed, Storage
    from ckptstore.store.objects import ObjectStore

LIVE = "checkpoints/"
EXPIRED = "history/"
EXPIRIES = "expired/"
EXPIRE_THREADS = 8  # they mostly wait for the disk
FAR_THREADS = 32  # they wait for a network
CACHED_PAGES = 256
CACHED_WRITTEN = 4096
CACHED_MANIFEST_PARTS = 1 << 18  # of 300 bytes each: 50,000 small manifests, 1,000 of 250 pages
MANIFEST_PARTS = 4  # of a manifest besides its pages

_first = attrgetter("first")
Content = TypeVar("Content")
AnyPage = TypeVar("AnyPage", bound="OrderedPage")


class OrderedPage(Protocol):
    """A page, or what is remembered of one, as it is compared with a manifest's claims."""

    @property
    def begin(self) -> object:
        """Where it begins in path order."""

    @property
    def end(self) -> object:
        """Where it ends in path order."""

    def is_as_claimed(self, ref: PageRef) -> bool:
        """Return True for a page that matches its reference in a manifest."""


def key_of(id: Digest, folder: str = LIVE) -> str:
    """Return the storage key of a manifest or, in `EXPIRIES`, of an expiry."""
    return f"{folder}{id}.json"


class Catalog:
    """The documents of the checkpoints of one repository.

    objects: where pages and structures are read. cached_pages: how many pages of either kind stay
    in memory; one may have 10 MB. check_store: called when something cannot be read; raises when
    the repository is not there any more.
    """

    FOLDERS: ClassVar = (LIVE, EXPIRED, EXPIRIES)
    key = staticmethod(key_of)

    def __init__(
        self,
        storage: Storage,
        objects: ObjectStore,
        *,
        cached_pages: int = CACHED_PAGES,
        check_store: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage, self._check_store = storage, check_store
        self.objects = objects
        self._manifests: Cache[Digest, Manifest] = Cache(
            CACHED_MANIFEST_PARTS, weigh=lambda manifest: MANIFEST_PARTS + len(manifest.refs)
        )
        self._pages: Cache[Digest, Page] = Cache(cached_pages)
        self._node_pages: Cache[Digest, NodePage] = Cache(cached_pages)
        self._written: Cache[Digest, bool] = Cache(CACHED_WRITTEN)
        # The checkpoints that a look found here. The cache on disk has those of other repositories
        # too, and perhaps some that were deleted here.
        self._present: set[Digest] = set()

    @property
    def url(self) -> str:
        """What `ckptstore.open` takes to open this repository again."""
        return self._storage.url

    @property
    def is_far(self) -> bool:
        """True where a look for a document costs a round trip."""
        return self._storage.is_far

    @property
    def threads(self) -> int:
        """How many documents are worth reading at once."""
        return FAR_THREADS if self.is_far else 1

    def manifest(self, id: Digest) -> Manifest:
        """Return the manifest of a live or expired checkpoint; NotFoundError for others."""
        return self._manifests.get(id, self._read_manifest)

    def live_manifest(self, id: Digest) -> Manifest:
        """Return the manifest of a live checkpoint; ExpiredError for one that has expired.

        Where each look takes a round trip, the manifest is read where only a live one is.
        """
        if self.is_far and not self.knows(id) and id not in self.objects.cache:
            with suppress(CorruptError, NotFoundError):
                data, key = self._read_document(id)
                if key == key_of(id):
                    self._saw(id, LIVE)
                    return self._manifests.get(id, lambda _: Manifest.decode(data, name=key))
        self.refuse_expired(id)
        return self.manifest(id)

    def knows(self, id: Digest) -> bool:
        """Return True when the manifest of a checkpoint is in memory."""
        return id in self._manifests

    def read_ahead(self, id: Digest, *, has_expired: bool = False) -> None:
        """Read a manifest into memory if it can be read. has_expired: where to look first."""
        first = (EXPIRED,) if has_expired else ()
        with suppress(CorruptError, NotFoundError):
            self._manifests.get(id, partial(self._read_manifest, first=first))

    def manifests(self, ids: Iterable[Digest]) -> Iterator[tuple[Digest, Manifest]]:
        """Yield those of some manifests that can be read, in order, reading others meanwhile."""

        def read(id: Digest) -> tuple[Digest, Manifest | None]:
            return id, self.readable(id)

        for id, manifest in ahead((partial(read, id) for id in ids), threads=self.threads):
            if manifest is not None:
                yield id, manifest

    def document(self, id: Digest) -> bytes:
        """Return the bytes of a manifest, whose digest is its id, to copy it elsewhere."""
        data = readable(self.manifest(id), name="The manifest")
        if Digest.of(data) == id:
            return data
        return self._read_document(id)[0]

    def take(self, documents: Mapping[Digest, bytes], *, threads: int) -> None:
        """Store manifests of another repository as live ones, durably."""
        self._put_all({key_of(id): data for id, data in documents.items()}, threads=threads)

    def take_expired(
        self, documents: Mapping[Digest, tuple[bytes, Expiry | None]], *, threads: int
    ) -> None:
        """Store manifests of another repository as history with their expiries, durably."""
        puts = {key_of(id, EXPIRED): data for id, (data, _) in documents.items()}
        for id, (_, expiry) in documents.items():
            if expiry is not None:
                puts[key_of(id, EXPIRIES)] = readable(expiry, name="The expiry")
        self._put_all(puts, threads=threads)

    def revive(self, ids: Iterable[Digest]) -> None:
        """Delete what says that checkpoints have expired, which are live by now."""
        keys = [key_of(id, folder) for id in ids for folder in (EXPIRIES, EXPIRED)]
        self._storage.delete(keys)

    def _put_all(self, puts: Mapping[str, bytes], *, threads: int) -> None:
        gather(
            (partial(self._storage.put, key, data) for key, data in puts.items()), threads=threads
        )
        self._storage.flush(puts)

    def is_in(self, id: Digest, folder: str) -> bool:
        """Return True when one of `FOLDERS` has a document of this checkpoint."""
        is_here = self._storage.size(key_of(id, folder)) is not None
        if is_here:
            self._saw(id, folder)
        return is_here

    def _saw(self, id: Digest, folder: str) -> None:
        if self.is_far and folder != EXPIRIES:
            self._present.add(id)

    def is_expired(self, id: Digest) -> bool:
        """Return True when only the manifest is left."""
        return not self.is_in(id, LIVE) and self.is_in(id, EXPIRED)

    def is_live(self, id: Digest) -> bool:
        """Return True for a checkpoint whose arrays are there, unless a gc condemned it."""
        return self.is_in(id, LIVE)

    def refuse_expired(self, id: Digest) -> None:
        """Raise ExpiredError, saying when and why, for a checkpoint whose arrays are gone."""
        if self.is_expired(id):
            expiry = self.expiry(id)
            when = f" on {to_the_minute(expiry.time)}" if expiry else ""
            why = f" ({expiry.why.rstrip('.')})" if expiry else ""
            raise ExpiredError(
                f"Checkpoint {id.short} expired{why}: its arrays were deleted{when}; its step and "
                "metrics remain."
            )

    @contextmanager
    def reading(self, id: Digest) -> Iterator[None]:
        """Turn the error of reading a checkpoint into ExpiredError when it expired meanwhile.

        StorageError when the repository is not there any more.
        """
        try:
            yield
        except (CorruptError, NotFoundError):
            self._check_store()
            self.refuse_expired(id)
            raise

    def names(self, newest: Operation, lookup: Lookup | None = None) -> Names:
        """Return what revisions can name as of an operation. lookup: of manifests."""
        return Names(
            heads=newest.heads,
            tags=newest.tags,
            lookup=self.lookup if lookup is None else lookup,
            ids=partial(self._ids_or_history, newest),
            claim=partial(claim_of, newest.settings),
        )

    def lookup(self, id: Digest) -> Manifest | None:
        """Return the manifest of a checkpoint, or None when there is none."""
        try:
            return self.manifest(id)
        except NotFoundError:
            return None

    def readable(self, id: Digest) -> Manifest | None:
        """Return a manifest; None for one that is missing or damaged."""
        with suppress(CorruptError):
            return self.lookup(id)
        return None

    def store(self, manifest: Manifest) -> Digest:
        """Store a manifest, durably, and return its id."""
        data = readable(manifest, name="The manifest")
        id = Digest.of(data)
        self._storage.put(key_of(id), data)
        self.flush(id)
        if self.is_far:
            self._manifests.put(id, manifest)
        return id

    def flush(self, id: Digest) -> None:
        """Return once the manifest of a live checkpoint is durable, regardless of its writer."""
        self._storage.flush([key_of(id)])

    def expire(self, ids: Iterable[Digest], *, look: Callable[[], object] = lambda: None) -> None:
        """Move the manifests of live checkpoints to history, durably; ignore others.

        Where the storage can do that, no byte is written: the disk may be full. look: called before
        anything is deleted; an error it raises ends this.
        """
        waiting: Sequence[Digest] = self._those_in(LIVE, ids)
        while waiting:
            copied = self._copied_to_history(waiting)
            self._storage.flush(key_of(id, EXPIRED) for id in copied)
            look()
            self._storage.delete([key_of(id) for id in copied])
            waiting = waiting[len(copied) :]

    def drop(self, ids: Iterable[Digest]) -> None:
        """Delete the manifests of live checkpoints, durably, without a trace in history."""
        self._storage.delete([key_of(id) for id in ids])

    def _those_in(self, folder: str, ids: Iterable[Digest]) -> list[Digest]:
        """Return those of some checkpoints that a folder has."""
        listed = list(ids)
        looks = (partial(self.is_in, id, folder) for id in listed)
        are_there = gather(looks, threads=self.threads)
        return [id for id, is_there in zip(listed, are_there, strict=True) if is_there]

    def _copied_to_history(self, ids: Sequence[Digest]) -> Sequence[Digest]:
        """Copy manifests to history, and return those for which there was room: one at least.

        What a gc that died has copied stays: the live one may be a deleted name that came back
        after a power failure, as that of other bytes.
        """
        if self.is_far:  # where no room runs out
            gather((partial(self._copy_to_history, id) for id in ids), threads=self.threads)
            return ids
        for number, id in enumerate(ids):
            try:
                self._copy_to_history(id)
            except StorageError as error:
                if not (error.is_full and number):
                    raise
                return ids[:number]
        return ids

    def _copy_to_history(self, id: Digest) -> None:
        if not self.is_in(id, EXPIRED):
            self._storage.copy(key_of(id), key_of(id, EXPIRED))

    def record(self, expiries: Mapping[Digest, Expiry]) -> None:
        """Store when and why checkpoints expired, durably, unless that was done."""
        keys = {id: key_of(id, EXPIRIES) for id in expiries}
        recorded = set(self._those_in(EXPIRIES, expiries))
        missing = [id for id in keys if id not in recorded]
        if missing:
            puts = [
                partial(self._storage.put, keys[id], readable(expiries[id], name="The expiry"))
                for id in missing
            ]
            gather(puts, threads=max(EXPIRE_THREADS, self.threads))
            self._storage.flush(keys[id] for id in missing)

    def expiry(self, id: Digest) -> Expiry | None:
        """Return when and why a checkpoint expired; None when that is not known."""
        key = key_of(id, EXPIRIES)
        try:
            return Expiry.decode(self._storage.get(key, bytes_max=EXPIRY_BYTES_MAX), name=key)
        except NotFoundError:
            return None

    def list(self, folder: str) -> Iterator[tuple[Digest | None, Listed]]:
        """List one of `FOLDERS`; the id is None for a key that is no document's."""
        try:
            for item in self._storage.list(folder):
                id = _id_of(item.key, folder)
                if id:
                    self._saw(id, folder)
                yield id, item
        except NotFoundError:
            self._check_store()
            raise

    def live(self) -> dict[Digest, float]:
        """Return all checkpoints that have not expired, each with the time it was stored at."""
        return {id: item.modified for id, item in self.list(LIVE) if id}

    def stored(self) -> dict[Digest, bool]:
        """Return all checkpoints, the one stored last first, each with whether it has expired."""
        jobs = (partial(tuple, self.list(folder)) for folder in (EXPIRED, LIVE))
        expired, live = gather(jobs, threads=self.threads)
        found = {id: (item.modified, True) for id, item in expired if id}
        found |= {id: (item.modified, False) for id, item in live if id}
        ordered = sorted(found, key=lambda id: found[id][0], reverse=True)
        return {id: found[id][1] for id in ordered}

    def page(self, digest: Digest) -> Page:
        """Return a page of arrays, with every entry checked."""
        return self._pages.get(digest, partial(self._read_page, decode=Page.decode))

    def node_page(self, digest: Digest) -> NodePage:
        """Return a page of Zarr nodes, with every value checked."""
        return self._node_pages.get(digest, partial(self._read_page, decode=NodePage.decode))

    def search_page(self, digest: Digest) -> set[str]:
        """Return the digests of all objects that a page of arrays refers to, perhaps some more."""
        return self._read_page(digest, partial(reached, decode=Page.decode))

    def search_node_page(self, digest: Digest) -> set[str]:
        """Return the digests of all objects that a page of nodes refers to, perhaps some more."""
        return self._read_page(digest, partial(reached, decode=NodePage.decode))

    def node_pages(self, manifest: Manifest) -> Iterator[NodePage]:
        """Return the pages of Zarr nodes, in path order, compared with the manifest's claims."""
        return in_order(manifest.hierarchy or (), self.node_page, threads=self.threads)

    def remember_page(self, digest: Digest, page: Page) -> None:
        """Cache a page that was just written, so that the next commit need not read it."""
        self._pages.put(digest, page)
        self._written.put(digest, True)

    def wrote_page(self, digest: Digest) -> bool:
        """Return True for a page written by this handle; the bundle of any other may be false."""
        return digest in self._written

    def pages(self, manifest: Manifest) -> Iterator[Page]:
        """Return the pages of a checkpoint, in path order, compared with the manifest's claims."""
        return in_order(manifest.pages, self.page, threads=self.threads)

    def pages_of(self, manifest: Manifest, paths: Iterable[str]) -> Iterator[Page]:
        """Yield, in path order, the only pages that can list these paths; no other is read."""
        if any(a.first >= b.first for a, b in pairwise(manifest.pages)):
            raise CorruptError("The pages of a manifest do not follow one another in path order.")
        positions = {bisect_right(manifest.pages, path, key=_first) - 1 for path in paths} - {-1}
        refs = tuple(manifest.pages[position] for position in sorted(positions))
        return self.pages(replace(manifest, pages=refs))

    def structure(self, manifest: Manifest) -> Any:
        """Return the root node of a checkpoint's structure."""
        data = self.objects.get(manifest.structure, bytes_max=STRUCTURE_BYTES_MAX)
        return structure.decode(data, name=f"structure {manifest.structure}")

    def ids(self, prefix: str = "") -> Iterator[Digest]:
        """Yield the ids of all checkpoints, live and expired, that begin with these digits."""
        for folder in (LIVE, EXPIRED):
            for id, _ in self.list(folder):
                if id and id.startswith(prefix):
                    yield id

    def _ids_or_history(self, newest: Operation, prefix: str = "") -> Iterator[Digest]:
        """Yield these ids; where nothing can be listed, those in the history of a ref."""
        try:
            yield from list(self.ids(prefix))
        except UnlistedError:
            for id, _ in ancestors(newest.refs.values(), self.lookup):
                if id.startswith(prefix):
                    yield id

    def _read_manifest(self, id: Digest, first: tuple[str, ...] = ()) -> Manifest:
        data, key = self._read_document(id, first)
        return Manifest.decode(data, name=key)

    def _read_document(self, id: Digest, first: tuple[str, ...] = ()) -> tuple[bytes, str]:
        """Return the bytes of a manifest, checked, and their key. first: where it should be."""
        cache = self.objects.cache
        if id in self._present and (cached := cache.get(id, bytes_max=MANIFEST_BYTES_MAX)):
            return cached, key_of(id)
        wrong = None
        # LIVE again: gc may have moved it between the first two reads.
        for folder in (*first, LIVE, EXPIRED, LIVE):
            key = key_of(id, folder)
            try:
                data = self._storage.get(key, bytes_max=MANIFEST_BYTES_MAX)
            except NotFoundError:
                continue
            if Digest.of(data) == id:
                cache.put(id, data)
                return data, key
            wrong = key
        if wrong:
            raise damaged(wrong)
        raise NotFoundError(f"Checkpoint {id.short} is not in this repository.")

    def _read_page(self, digest: Digest, decode: Callable[..., Content]) -> Content:
        data = self.objects.get(digest, bytes_max=PAGE_BYTES_MAX)
        return decode(data, name=f"page {digest}")


def in_order(
    refs: Sequence[PageRef], read: Callable[[Digest], AnyPage], *, threads: int = 1
) -> Iterator[AnyPage]:
    """Yield the pages that a manifest lists, compared with its claims.

    threads: how many pages are read at once.
    """
    last: Any = None
    pages = ahead((partial(read, ref.digest) for ref in refs), threads=threads)
    for ref, page in zip(refs, pages, strict=True):
        if not page.is_as_claimed(ref):
            raise CorruptError(f"Page {ref.digest} does not match its manifest.")
        if last is not None and page.begin <= last:
            raise CorruptError(
                f"Page {ref.digest} does not follow the page before it in path order."
            )
        last = page.end
        yield page


def _id_of(key: str, folder: str) -> Digest | None:
    try:
        id = Digest.parse(key.removeprefix(folder).removesuffix(".json"))
    except InvalidInputError:
        return None
    return id if key_of(id, folder) == key else None
