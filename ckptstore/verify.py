"""Verify: every byte and every reference of a repository, going on past what it finds.

Each object is read once and held against its name; then each checkpoint is asked whether all it refers to is there and
right. Nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ckptstore.digest import Digest
from ckptstore.documents.marker import CHUNK_BYTES_MAX, MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.structure import array_path
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.history import ancestors
from ckptstore.state.tree import ROOT, leaves
from ckptstore.store.catalog import EXPIRED, EXPIRIES, LIVE, Catalog, key_of
from ckptstore.store.objects import PREFIX as OBJECTS
from ckptstore.store.objects import ObjectStore
from ckptstore.store.objects import key_of as object_key
from ckptstore.store.oplog import KEPT_OPERATIONS, Oplog
from ckptstore.store.oplog import PREFIX as OPERATIONS
from ckptstore.store.oplog import key_of as operation_key
from ckptstore.threads import gather
from ckptstore.zarr.encoded_entries import encoded_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import Page
    from ckptstore.documents.zarr_page import NodePage
    from ckptstore.storage import Storage

Entry = TypeVar("Entry")

VERIFY_THREADS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is not as it was written: the file, what is wrong with it, and which checkpoints suffer."""

    key: str
    error: str
    checkpoints: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What verify found; `objects` and `bytes` count what was read."""

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
    """Check everything; `progress` is called with the bytes checked so far and the bytes there are."""
    return _Verify(storage).report(progress or (lambda done, total: None))


class _Verify:
    """One run over one repository."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.objects = ObjectStore(storage)
        self.catalog = Catalog(storage, self.objects)
        self.wrong: dict[str, str] = {}
        self.users: dict[str, set[Digest]] = {}
        self.named: dict[Digest, str] = {}
        self.sizes: dict[str, int] = {}
        self.bundles_checked: set[str] = set()
        self.reachable: set[Digest] = set()
        self.reaches_all = False

    def report(self, progress: Callable[[int, int], object]) -> VerifyReport:
        """Look at everything once."""
        self.attempt(
            MARKER_KEY,
            lambda: Marker.decode(self.storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX)),
        )
        count, size = self.check_objects(progress)
        self.check_operations()  # before the manifests are listed: a commit may come meanwhile
        live, expired = self.ids(LIVE), self.ids(EXPIRED)
        for id in self.ids(EXPIRIES):
            self.attempt(key_of(id, EXPIRIES), partial(self.catalog.expiry, id))
        for id in (*live, *expired):
            self.check_manifest(id, expired=id not in live)
        self.check_named({*live, *expired})
        problems = tuple(
            Problem(key=key, error=error, checkpoints=tuple(sorted(self.users.get(key, ()))))
            for key, error in sorted(self.wrong.items())
        )
        return VerifyReport(problems=problems, checkpoints=len(live), objects=count, bytes=size)

    def attempt(self, key: str, check: Callable[[], object]) -> bool:
        """Run one check; what it raises becomes a problem of that key."""
        try:
            check()
        except CkptStoreError as error:
            self.wrong.setdefault(key, str(error))
            return False
        return True

    def listed(self, folder: str, entries: Callable[[], Iterable[Entry]]) -> list[Entry]:
        """What lies in a folder; one that cannot be listed is a problem of its own."""
        found: list[Entry] = []
        self.attempt(folder, lambda: found.extend(entries()))
        return found

    def check_objects(self, progress: Callable[[int, int], object]) -> tuple[int, int]:
        """Hold every object against its name."""
        listed = self.listed(OBJECTS, self.objects.list)
        self.sizes = {key: size for _, key, size in listed}
        total = sum(size for _, _, size in listed)
        done = 0

        def check(digest: Digest | None, key: str, size: int) -> None:
            nonlocal done
            self.attempt(key, partial(self.check_object, digest, key, size))
            done += size
            progress(done, total)

        gather([partial(check, *item) for item in listed], threads=VERIFY_THREADS)
        return len(listed), total

    def check_object(self, digest: Digest | None, key: str, size: int) -> None:
        """Hold one object against its name."""
        if digest is None:
            raise CorruptError(f"{key} is not the name of an object.")
        if size > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"{key} has {size} bytes; no object has more than {CHUNK_BYTES_MAX}."
            )
        self.objects.check(digest, size=size)

    def ids(self, folder: str) -> tuple[Digest, ...]:
        """The ids under a folder; a file that is no manifest's is a problem."""
        found = []
        for key, _ in self.listed(folder, lambda: self.storage.list(folder)):
            text = key.removeprefix(folder).removesuffix(".json")
            if self.attempt(key, lambda key=key, text=text: _check_manifest_key(key, text, folder)):  # type: ignore[misc]
                found.append(Digest(text))
        return tuple(sorted(found))

    def check_manifest(self, id: Digest, *, expired: bool) -> None:
        """Hold a manifest against its name, and what it refers to against what it says."""
        key = key_of(id, EXPIRED if expired else LIVE)
        self.users.setdefault(key, set()).add(id)
        try:
            manifest = self.catalog.manifest(id)
        except CkptStoreError as error:
            self.wrong[key] = str(error)
            return
        for parent in manifest.parents:
            self.named.setdefault(parent, f"checkpoint {id.short} was made from it")
        if not expired and (id in self.reachable or self.reaches_all):
            self.check_content(id, manifest)

    def check_content(self, id: Digest, manifest: Manifest) -> None:
        """Follow every reference of a live checkpoint.

        Not of one that no branch and no tag reaches: a commit that died beside a gc may have left its manifest alone.
        """
        paths: dict[str, None] = {}
        for ref in manifest.pages:
            key = self.used(ref.digest, id)
            if self.is_there(key) and self.attempt(key, partial(self.catalog.page, ref.digest)):
                page = self.catalog.page(ref.digest)
                paths |= dict.fromkeys(entry.path for entry in page.entries)
                self.check_page(id, key, page)
        self.check_node_pages(id, manifest, paths)
        if not any(object_key(ref.digest) in self.wrong for ref in manifest.refs):
            self.attempt(key_of(id), lambda: list(self.catalog.pages(manifest)))
            self.attempt(key_of(id), lambda: list(self.catalog.node_pages(manifest)))
        key = self.used(manifest.structure, id)
        if self.is_there(key):
            self.attempt(key, partial(self.check_structure, manifest, paths))

    def check_node_pages(self, id: Digest, manifest: Manifest, paths: dict[str, None]) -> None:
        """The same for what came in through Zarr, whose documents must tell of arrays."""
        for ref in manifest.hierarchy or ():
            key = self.used(ref.digest, id)
            if self.is_there(key) and self.attempt(
                key, partial(self.catalog.node_page, ref.digest)
            ):
                self.check_page(id, key, self.catalog.node_page(ref.digest))
        if manifest.hierarchy and not any(
            object_key(digest) in self.wrong for digest in manifest.documents()
        ):
            self.attempt(
                key_of(id),
                lambda: paths.update(
                    dict.fromkeys(path or ROOT for path in encoded_entries(manifest, self.catalog))
                ),
            )

    def check_page(self, id: Digest, key: str, page: Page | NodePage) -> None:
        """Follow the references of a page."""
        for digest, size in dict.fromkeys(page.digests()):
            inner = self.used(digest, id)
            if self.sizes.get(inner) != size and self.is_there(inner):
                self.attempt(inner, partial(self.check_size, inner, size))
        if key in self.bundles_checked:  # as part of another checkpoint
            return
        self.bundles_checked.add(key)
        if page.bundle and object_key(page.bundle.digest) not in self.wrong:
            self.attempt(key, partial(self.check_bundle, page))

    def check_size(self, key: str, size: int) -> None:
        """Hold the size of an object against what a page says of it."""
        found = self.storage.size(key)
        if found != size:
            raise CorruptError(f"{key} has {found} bytes; the page that lists it says {size}.")

    def check_bundle(self, page: Page | NodePage) -> None:
        """Hold the own digest of each small array, and document, against its place in the bundle."""
        assert page.bundle is not None
        data = self.objects.get(page.bundle.digest, bytes_max=page.bundle.size)
        for path, digest, part in page.bundled():
            if Digest.of(data[part]) != digest:
                raise CorruptError(f"The page lists a wrong place in its bundle for {path!r}.")

    def check_structure(self, manifest: Manifest, paths: Iterable[str]) -> None:
        """Every array that the structure names must be listed by a page."""
        named = {
            path
            for _, node in leaves(self.catalog.structure(manifest))
            if (path := array_path(node))
        }
        unlisted = sorted(named - set(paths))
        broken = any(object_key(ref.digest) in self.wrong for ref in manifest.refs)
        if unlisted and not broken:
            raise CorruptError(
                f"The structure names arrays that no page lists: {', '.join(unlisted[:5])}."
            )

    def check_operations(self) -> None:
        """Read every operation."""
        oplog = Oplog(self.storage)
        seqs = set()
        for key, _ in self.listed(OPERATIONS, lambda: self.storage.list(OPERATIONS)):
            number = key.removeprefix(OPERATIONS).removesuffix(".json")
            if number.isdecimal() and operation_key(int(number)) == key:
                seqs.add(int(number))
                self.attempt(key, partial(oplog.read, int(number)))
            else:
                self.wrong[key] = f"{key} is not the name of an operation."
        self.check_gaps(seqs)
        readable = (
            seq for seq in sorted(seqs, reverse=True) if operation_key(seq) not in self.wrong
        )
        newest = next(readable, None)
        refs = oplog.read(newest).refs if newest else {}
        for name, id in refs.items():
            self.named.setdefault(id, f"{name!r} names it")
        self.reaches_all = newest != max(seqs, default=None)
        self.reachable = {id for id, _ in ancestors(refs.values(), self.lookup)}

    def lookup(self, id: Digest) -> Manifest | None:
        """A manifest as far as it can be read; each is checked later, by itself."""
        try:
            return self.catalog.manifest(id)
        except CkptStoreError:
            self.reaches_all = True  # nobody knows what could be reached from there
            return None

    def check_gaps(self, seqs: set[int]) -> None:
        """Nothing else may lie where an operation was or will be. (A gap is none: a power failure may leave one.)"""
        newest = max(seqs, default=0)
        for seq in range(max(1, newest - KEPT_OPERATIONS), newest + 2):
            if seq not in seqs:
                self.attempt(operation_key(seq), partial(self.storage.size, operation_key(seq)))

    def check_named(self, ids: set[Digest]) -> None:
        """Every checkpoint that a branch, a tag or a child names must be there."""
        for id, reason in self.named.items():
            if id not in ids:
                self.wrong.setdefault(key_of(id), f"{key_of(id)} is missing; {reason}.")
                self.users.setdefault(key_of(id), set()).add(id)

    def used(self, digest: Digest, id: Digest) -> str:
        """The key of an object, noted as used by a checkpoint."""
        key = object_key(digest)
        self.users.setdefault(key, set()).add(id)
        return key

    def is_there(self, key: str) -> bool:
        """Whether a used object can be looked at; one that is not there becomes a problem."""
        if key in self.wrong:
            return False
        return self.attempt(key, lambda: _must_exist(key, self.storage.size(key)))


def _must_exist(key: str, size: int | None) -> None:
    if size is None:
        raise NotFoundError(f"{key} is missing.")


def _check_manifest_key(key: str, text: str, folder: str) -> None:
    if key != f"{folder}{text}.json":
        raise CorruptError(f"{key} is not the name of a manifest.")
    try:
        Digest.parse(text)
    except CkptStoreError as error:
        raise CorruptError(f"{key} is not the name of a manifest: {error}") from error
