"""Verify: checks every byte and every reference of a repository, and goes on past damage.

Each object is read once and compared with its name. Then every reference of each checkpoint is
followed, to see whether what it names is there and right (docs/reference/format.md, section 16).
Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.digest import Digest
from ckptstore.documents.marker import CHUNK_BYTES_MAX, MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.page import Page
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.history import ancestors
from ckptstore.state.paths import ROOT
from ckptstore.state.tree import arrays
from ckptstore.store.catalog import EXPIRED, EXPIRIES, LIVE, Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import KEPT_OPERATIONS, Oplog
from ckptstore.store.reach import decoded, walk
from ckptstore.threads import gather
from ckptstore.zarr.encoded_entries import encoded_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from typing import TypeVar

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.zarr_page import NodePage
    from ckptstore.storage import Listed, Storage

    Name = TypeVar("Name")

VERIFY_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A stored object or document that is damaged or missing.

    Attributes:
        key: The file.
        error: What is wrong with it.
        checkpoints: The ids of the checkpoints that it affects.
    """

    key: str
    error: str
    checkpoints: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The result of a verify.

    Attributes:
        problems: Everything that is wrong, sorted by key.
        checkpoints: How many live checkpoints there are.
        objects: How many objects were read.
        bytes: The bytes of these.
    """

    problems: tuple[Problem, ...]
    checkpoints: int
    objects: int
    bytes: int

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def verify(
    storage: Storage, *, progress: Callable[[int, int], object] | None = None
) -> VerifyReport:
    """Check a whole repository.

    progress: called with the bytes checked so far and the bytes in all.
    """
    return _Verify(storage).report(progress or (lambda done, total: None))


class _Verify:
    """One run over one repository.

    wrong: what is wrong, by key. users: the checkpoints that reach a key. named: why a checkpoint
    must be there, by id.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.objects = ObjectStore(storage)
        self.catalog = Catalog(storage, self.objects)
        self.oplog = Oplog(storage)
        self.wrong: dict[str, str] = {}
        self.users: dict[str, set[Digest]] = {}
        self.named: dict[Digest, str] = {}
        self.sizes: dict[Digest, int] = {}
        self.bundles_checked: set[Digest] = set()
        self.reachable: set[Digest] = set()
        self.reaches_all = False

    def report(self, progress: Callable[[int, int], object]) -> VerifyReport:
        """Check everything once."""
        self.attempt(
            MARKER_KEY,
            lambda: Marker.decode(self.storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX)),
        )
        count, size = self.check_objects(progress)
        self.check_operations()  # before the manifests are listed: a commit may come meanwhile
        live, expired = self.ids(LIVE), self.ids(EXPIRED)
        for id in self.ids(EXPIRIES):
            self.attempt(self.catalog.key(id, EXPIRIES), partial(self.catalog.expiry, id))
        for id in (*live, *expired):
            self.check_manifest(id, is_live=id in live)
        self.check_named({*live, *expired})
        problems = tuple(
            Problem(key=key, error=error, checkpoints=tuple(sorted(self.users.get(key, ()))))
            for key, error in sorted(self.wrong.items())
        )
        return VerifyReport(problems=problems, checkpoints=len(live), objects=count, bytes=size)

    def attempt(self, key: str, check: Callable[[], object]) -> bool:
        """Run one check; an error becomes a problem of that key."""
        try:
            check()
        except CkptStoreError as error:
            self.wrong.setdefault(key, str(error))
            return False
        return True

    def listed(
        self,
        folder: str,
        entries: Callable[[], Iterable[tuple[Name | None, Listed]]],
        *,
        kind: str,
    ) -> dict[Name, Listed]:
        """Return what is in a folder, by name.

        A file without a legal name is a problem, and so is a folder that cannot be listed.
        """
        listing: list[tuple[Name | None, Listed]] = []
        self.attempt(folder, lambda: listing.extend(entries()))
        for name, item in listing:
            if name is None:
                self.wrong[item.key] = f"{item.key} is not the name of {kind}."
        return {name: item for name, item in listing if name is not None}

    def ids(self, folder: str) -> tuple[Digest, ...]:
        """Return the ids of the manifests or expiries in a folder."""
        entries = partial(self.catalog.list, folder)
        return tuple(sorted(self.listed(folder, entries, kind="a manifest")))

    def check_objects(self, progress: Callable[[int, int], object]) -> tuple[int, int]:
        """Compare every object with its name, and return how many there are and their bytes."""
        (folder,) = self.objects.FOLDERS
        listed = self.listed(folder, self.objects.list, kind="an object")
        self.sizes = {digest: item.size for digest, item in listed.items()}
        total = sum(self.sizes.values())
        done = 0

        def check(digest: Digest, item: Listed) -> None:
            nonlocal done
            self.attempt(item.key, partial(self.check_object, digest, item))
            done += item.size
            progress(done, total)

        gather([partial(check, *entry) for entry in listed.items()], threads=VERIFY_THREADS)
        return len(listed), total

    def check_object(self, digest: Digest, item: Listed) -> None:
        """Compare one object with its name."""
        if item.size > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"{item.key} has {item.size} bytes; no object has more than {CHUNK_BYTES_MAX}."
            )
        self.objects.check(digest, size=item.size)

    def check_manifest(self, id: Digest, *, is_live: bool) -> None:
        """Compare a manifest with its name and, when it is live, with the objects it refers to.

        The objects of a live one that no branch and no tag reaches are not checked: a commit that
        died beside a gc may have left it without them.
        """
        key = self.catalog.key(id, LIVE if is_live else EXPIRED)
        self.users.setdefault(key, set()).add(id)
        try:
            manifest = self.catalog.manifest(id)
        except CkptStoreError as error:
            self.wrong[key] = str(error)
            return
        for parent in manifest.parents:
            self.named.setdefault(parent, f"checkpoint {id.short} was made from it")
        if is_live and (id in self.reachable or self.reaches_all):
            self.check_content(id, manifest)

    def check_content(self, id: Digest, manifest: Manifest) -> None:
        """Follow every reference of a checkpoint."""
        there = {digest for digest in manifest.documents() if self.is_there(digest, user=id)}
        pages = walk(
            manifest, decoded(self.catalog), wanted=there.__contains__, failed=self.note_unread
        )
        paths: set[str] = set()
        for digest, page in pages:
            self.check_page(id, digest, page)
            if isinstance(page, Page):
                paths.update(entry.path for entry in page.entries)
        if self.is_right(ref.digest for ref in manifest.refs):
            self.attempt(self.catalog.key(id), lambda: list(self.catalog.pages(manifest)))
            self.attempt(self.catalog.key(id), lambda: list(self.catalog.node_pages(manifest)))
        if manifest.hierarchy and self.is_right(manifest.documents()):
            self.attempt(self.catalog.key(id), lambda: paths.update(self.encoded_paths(manifest)))
        if manifest.structure in there:
            key = self.objects.key(manifest.structure)
            self.attempt(key, partial(self.check_structure, manifest, paths))

    def note_unread(self, page: Digest, error: CkptStoreError) -> None:
        """Note that a page cannot be read."""
        self.wrong.setdefault(self.objects.key(page), str(error))

    def is_right(self, digests: Iterable[Digest]) -> bool:
        """Return True when no problem of these objects is known."""
        return not any(self.objects.key(digest) in self.wrong for digest in digests)

    def is_there(self, digest: Digest, *, user: Digest) -> bool:
        """Note that a checkpoint reaches an object; a missing one becomes a problem.

        Returns True when there is an object without a known problem.
        """
        key = self.objects.key(digest)
        self.users.setdefault(key, set()).add(user)
        return key not in self.wrong and (
            digest in self.sizes or self.attempt(key, partial(self.find, digest))
        )

    def find(self, digest: Digest) -> int:
        """Return the size of an object that may have been put since all were listed."""
        size = self.objects.size(digest)
        if size is None:
            raise NotFoundError(f"{self.objects.key(digest)} is missing.")
        return size

    def encoded_paths(self, manifest: Manifest) -> Iterator[str]:
        """Yield the paths of the arrays that came in through Zarr, from their documents."""
        return (path or ROOT for path in encoded_entries(manifest, self.catalog))

    def check_page(self, id: Digest, digest: Digest, page: Page | NodePage) -> None:
        """Follow the references of a page; its bundle is read once, however many share it."""
        for listed, size in dict.fromkeys(page.digests()):
            if self.is_there(listed, user=id) and self.sizes.get(listed) != size:
                self.attempt(self.objects.key(listed), partial(self.check_size, listed, size))
        if digest in self.bundles_checked:
            return
        self.bundles_checked.add(digest)
        if page.bundle and self.is_right([page.bundle.digest]):
            self.attempt(self.objects.key(digest), partial(self.check_bundle, page))

    def check_size(self, digest: Digest, expected: int) -> None:
        """Compare the size of an object with the size that the page records."""
        size = self.find(digest)
        if size != expected:
            raise CorruptError(
                f"{self.objects.key(digest)} has {size} bytes; the page that lists it "
                f"records {expected}."
            )

    def check_bundle(self, page: Page | NodePage) -> None:
        """Compare the digest of each small array or document with its place in the bundle."""
        assert page.bundle is not None
        data = self.objects.get(page.bundle.digest, bytes_max=page.bundle.size)
        for path, digest, part in page.bundled():
            if Digest.of(data[part]) != digest:
                raise CorruptError(f"The page lists a wrong place in its bundle for {path!r}.")

    def check_structure(self, manifest: Manifest, paths: Collection[str]) -> None:
        """Check that a page lists every array that the structure names."""
        named = {node.path for node in arrays(self.catalog.structure(manifest))}
        unlisted = sorted(named - set(paths))
        if unlisted and self.is_right(ref.digest for ref in manifest.refs):
            raise CorruptError(
                f"The structure names arrays that no page lists: {', '.join(unlisted[:5])}."
            )

    def check_operations(self) -> None:
        """Read every operation, and note what the newest one reaches."""
        (folder,) = self.oplog.FOLDERS
        seqs = set(self.listed(folder, self.oplog.list, kind="an operation"))
        for seq in seqs:
            self.attempt(self.oplog.key(seq), partial(self.oplog.read, seq))
        self.check_gaps(seqs)
        readable = (
            seq for seq in sorted(seqs, reverse=True) if self.oplog.key(seq) not in self.wrong
        )
        newest = next(readable, None)
        refs = self.oplog.read(newest).refs if newest else {}
        for name, id in refs.items():
            self.named.setdefault(id, f"{name!r} names it")
        self.reaches_all = newest != max(seqs, default=None)
        self.reachable = {id for id, _ in ancestors(refs.values(), self.lookup)}

    def lookup(self, id: Digest) -> Manifest | None:
        """Return a manifest if it can be read; each is checked later, by itself."""
        try:
            return self.catalog.manifest(id)
        except CkptStoreError:
            self.reaches_all = True  # what could be reached from there is unknown
            return None

    def check_gaps(self, seqs: set[int]) -> None:
        """Check that nothing else is where an operation was or will be.

        A gap alone is no problem: a power failure may leave one.
        """
        newest = max(seqs, default=0)
        for seq in range(max(1, newest - KEPT_OPERATIONS), newest + 2):
            if seq not in seqs:
                self.attempt(self.oplog.key(seq), partial(self.oplog.exists, seq))

    def check_named(self, ids: set[Digest]) -> None:
        """Check that every checkpoint that a branch, a tag or a child names is there."""
        for id, reason in self.named.items():
            if id not in ids:
                key = self.catalog.key(id)
                self.wrong.setdefault(key, f"{key} is missing; {reason}.")
                self.users.setdefault(key, set()).add(id)
