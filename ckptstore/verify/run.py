"""Run: one verify of one repository, from the objects to the report."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.digest import DigestMap
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.operation import Operation
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.history import ancestors
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store.catalog import EXPIRED, EXPIRIES, LIVE, Catalog
from ckptstore.store.lost import lost
from ckptstore.store.notes import Notes
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog, first_kept
from ckptstore.store.reach import searched, walk
from ckptstore.threads import gather
from ckptstore.verify import heal
from ckptstore.verify.findings import Findings
from ckptstore.verify.history import History
from ckptstore.verify.inventory import Inventory
from ckptstore.verify.references import References
from ckptstore.verify.report import Problem, Unreachable, VerifyReport
from ckptstore.verify.users import Users

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.storage import Listed, Storage
    from ckptstore.store.meter import Meter
    from ckptstore.verify.findings import Finding

    Name = TypeVar("Name")
    Repair = Callable[[Sequence[Digest]], tuple[Digest, ...]]

CACHED_PAGES, FAR_CACHED_PAGES = 4, 256
FAR_CHECKPOINTS = 64  # whose pages are read at once
PLACE_DIGITS = 12  # of a digest, for its place among all digests
LOOKS_MAX = 10  # between each two of which 1,000 operations would have to be appended


def verify(
    storage: Storage,
    *,
    only: Collection[Digest] | None = None,
    window: tuple[float, float] = (0, 1),
    meter: Meter | None = None,
    repair: Repair = lambda damaged: (),
) -> VerifyReport:
    """Check a whole repository, or only some checkpoints.

    only: the ids of the only checkpoints to check, with everything they refer to. window: the start
    and length of the range of digests whose objects are read; 0 to 1 is all, and it wraps around.
    meter: counts the bytes checked. repair: moves damaged objects aside.
    """
    return _Verify(storage, repair, only=only, window=window, meter=meter).report()


class _Verify:
    """One run over one repository."""

    def __init__(
        self,
        storage: Storage,
        repair: Repair,
        *,
        only: Collection[Digest] | None,
        window: tuple[float, float],
        meter: Meter | None,
    ) -> None:
        self.storage, self.repair = storage, repair
        self.only, self.window = only, window
        self.objects = ObjectStore(storage, meter=meter)
        cached_pages = FAR_CACHED_PAGES if storage.is_far else CACHED_PAGES
        self.catalog = Catalog(storage, self.objects, cached_pages=cached_pages)
        self.oplog = Oplog(storage)
        self.notes = Notes(storage, self.oplog.between)
        self.findings = Findings()
        self.inventory = Inventory(self.objects, self.findings)
        self.references = References(self.catalog, self.inventory, self.findings)
        self.foreign: set[str] = set()

    def report(self) -> VerifyReport:
        """Check everything once, and then again what failed."""
        self.findings.attempt(MARKER_KEY, self.check_marker, heal=heal.MARKER)
        (folder,) = self.objects.FOLDERS
        self.inventory.add(self.listed(folder, self.objects.list))
        self.inventory.check(chosen=self.chosen())
        if self.only is not None:
            self.check_only(self.only)
            return self.report_of(self.confirmed(), len(self.only))
        self.check_notes()
        missing_operations = self.check_operations()
        checkpoints, reached, orphans = self.check_checkpoints()
        problems = self.confirmed()
        orphans, unnamed = self.unreachable(orphans, reached)
        if unnamed:
            problems.append(self.problem_of(unnamed))
        objects, size = self.inventory.unreached()
        unreachable = Unreachable(checkpoints=_newest_first(orphans), objects=objects, bytes=size)
        return self.report_of(
            problems,
            checkpoints,
            unreachable=unreachable,
            foreign=tuple(sorted(self.foreign)),
            missing_operations=missing_operations,
        )

    def report_of(
        self,
        problems: Iterable[Problem],
        checkpoints: int,
        *,
        unreachable: Unreachable = Unreachable(),  # noqa: B008 - frozen
        foreign: tuple[str, ...] = (),
        missing_operations: int = 0,
    ) -> VerifyReport:
        """Return the report of this check."""
        damaged = tuple(
            finding.object
            for finding in self.findings.by_key.values()
            if finding.is_alone and finding.object and not finding.is_missing
        )
        return VerifyReport(
            problems=tuple(sorted(problems, key=lambda problem: problem.key)),
            checkpoints=checkpoints,
            objects=self.inventory.checked_count,
            bytes=self.inventory.checked_bytes,
            stored_objects=self.inventory.count,
            stored_bytes=self.inventory.bytes,
            unreachable=unreachable,
            foreign=foreign,
            missing_operations=missing_operations,
            damaged=damaged,
            _repair=partial(self.repair, damaged),
        )

    def chosen(self) -> Callable[[Digest], bool]:
        """Return a function that chooses the objects to read.

        These are the objects in the window; if there are `only` checkpoints, those that they refer
        to. If none is in the window, the first one after its start is read.
        """
        begin, length = self.window
        wanted = None if self.only is None else self.reached_by(self.only)

        def distance(digest: Digest) -> float:
            place: float = int(digest[:PLACE_DIGITS], 16) / 16**PLACE_DIGITS
            return (place - begin) % 1

        def is_wanted(digest: Digest) -> bool:
            return wanted is None or digest in wanted

        first = min(map(distance, filter(is_wanted, self.inventory)), default=0.0)
        return lambda digest: (
            is_wanted(digest) and (distance(digest) < length or distance(digest) == first)
        )

    def reached_by(self, ids: Iterable[Digest]) -> DigestMap:
        """Return the objects that checkpoints refer to; an unreadable page refers to nothing."""
        reached = DigestMap()
        manifests = [manifest for _, manifest in self.catalog.manifests(ids)]
        pages = walk(
            manifests,
            searched(self.catalog),
            wanted=lambda page: page not in reached,
            failed=lambda page, error: None,
        )
        for page, listed in pages:
            for digest in (page, *listed):
                reached[digest] = 1
        for digest in (document for manifest in manifests for document in manifest.documents()):
            reached[digest] = 1
        return reached

    def check_only(self, ids: Iterable[Digest]) -> None:
        """Check some checkpoints with everything they refer to."""
        for id in ids:
            check = partial(self.catalog.manifest, id)
            key = self.catalog.key(id)
            if self.findings.attempt(key, check, heal=heal.MANIFEST, checkpoint=id):
                self.references.check(id, self.catalog.manifest(id))

    def check_marker(self) -> None:
        """Read the marker."""
        Marker.decode(self.storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))

    def listed(
        self, folder: str, entries: Callable[[], Iterable[tuple[Name | None, Listed]]]
    ) -> Iterator[tuple[Name, Listed]]:
        """Yield what is in a folder, by name, and remember the files of other programs.

        A folder that cannot be listed is a problem, unless the storage lists none at all.
        """
        try:
            for name, item in entries():
                if name is None:
                    self.foreign.add(item.key)
                else:
                    yield name, item
        except UnlistedError:  # nothing is wrong, and nothing can be checked
            raise
        except CkptStoreError:
            check = partial(_drain, entries)
            self.findings.attempt(folder, check, heal=heal.FOLDER)

    def ids(self, folder: str) -> set[Digest]:
        """Return the ids of the manifests or expiries in a folder."""
        return {id for id, _ in self.listed(folder, partial(self.catalog.list, folder))}

    def check_notes(self) -> None:
        """Read every note."""
        (folder,) = self.notes.FOLDERS
        checks = {
            self.notes.key(name): partial(self.notes.read, name)
            for name, _ in self.listed(folder, self.notes.list)
        }
        self.attempt_all(checks, heal=heal.NOTE)

    def attempt_all(self, checks: Mapping[str, Callable[[], object]], *, heal: str) -> None:
        """Run checks of documents by their keys, many at once if the storage is far."""
        jobs = (
            partial(self.findings.attempt, key, check, heal=heal) for key, check in checks.items()
        )
        gather(jobs, threads=self.catalog.threads)

    def check_operations(self) -> int:
        """Read every operation, and return how many of those that are kept are missing."""
        (folder,), (page_folder,) = self.oplog.FOLDERS, self.oplog.PAGE_FOLDERS
        seqs = {seq for seq, _ in self.listed(folder, self.oplog.list)}
        pages_of: dict[int, dict[tuple[str, str], int]] = {}
        checks = {
            self.oplog.key(seq): partial(self.check_operation, seq, pages_of)
            for seq in sorted(seqs)
        }
        self.attempt_all(checks, heal=heal.OPERATION)
        pages: dict[tuple[str, str], int] = {}
        for seq in sorted(pages_of):
            pages |= pages_of[seq]
        page_checks = {
            self.oplog.page_key(name): partial(self.check_ref_page, name, kind, seq)
            for (kind, name), seq in pages.items()
        }
        self.attempt_all(page_checks, heal=heal.OPERATION)
        _drain(lambda: self.listed(page_folder, self.oplog.list_pages))  # for foreign files
        newest = max(seqs, default=0)
        kept = range(first_kept(newest), newest + 2)
        missing = [seq for seq in kept if seq not in seqs]
        for seq in missing:  # a link or a folder may be where an operation was or will be
            look = partial(self.oplog.exists, seq)
            self.findings.attempt(self.oplog.key(seq), look, heal=heal.OPERATION)
        return len(missing) - 1

    def check_operation(self, seq: int, pages_of: dict[int, dict[tuple[str, str], int]]) -> None:
        """Read an operation, unless it was pruned, and note its pages; a gap alone is no problem.

        pages_of: the pages of each operation by kind and name, with its number.
        """
        with suppress(NotFoundError):
            operation = self.oplog.read_without_pages(seq)
            pages_of[seq] = {
                **{("branch", name): seq for name in operation.head_pages},
                **{("tag", name): seq for name in operation.tag_pages},
            }

    def check_ref_page(self, name: str, kind: str, seq: int) -> None:
        """Read a page of refs, unless it was pruned with all operations that have it."""
        with suppress(NotFoundError):
            self.oplog.read_page(name, kind=kind, seq=seq)

    def newest(self) -> tuple[Operation, bool]:
        """Return the newest operation that can be read, and whether it is the newest of all.

        One that was found to be damaged is not read again.
        """
        damaged = {seq for seq in self.seqs() if self.oplog.key(seq) in self.findings.by_key}
        if not damaged:
            with suppress(CkptStoreError):
                return self.oplog.newest(), True
        seqs = sorted(self.seqs(), reverse=True)
        for seq in seqs:
            if seq not in damaged:
                with suppress(CkptStoreError):
                    return self.oplog.read(seq), seq == seqs[0]
        return Operation(), False

    def seqs(self) -> set[int]:
        """Return the numbers of the operations that are there, as far as they can be listed."""
        try:
            return self.oplog.seqs()
        except CkptStoreError:
            return set()

    def check_checkpoints(self) -> tuple[int, set[Digest], dict[Digest, Manifest]]:
        """Check all manifests, and what live ones refer to that a branch or tag reaches.

        Returns how many live ones there are, all that a branch or tag reaches, and the live ones
        that none does. Objects of these are not checked, unless a part of the history is missing: a
        commit that died beside a gc may have left one without them.
        """
        history = History(self.catalog, *self.newest())
        live, expired = self.ids(LIVE), self.ids(EXPIRED)
        expiries = {
            self.catalog.key(id, EXPIRIES): partial(self.catalog.expiry, id)
            for id in self.ids(EXPIRIES)
        }
        self.attempt_all(expiries, heal=heal.EXPIRY)
        checkpoints = iter(history)
        while part := list(islice(checkpoints, FAR_CHECKPOINTS if self.storage.is_far else 1)):
            found = {id: manifest for id, manifest in part if id in live}
            self.references.prepare(found.values())
            for id, manifest in found.items():
                self.references.check(id, manifest)
        reached = set(history.reached)
        orphans = {}
        for id in sorted((live | expired) - reached):
            key = self.catalog.key(id, LIVE if id in live else EXPIRED)
            check, way = partial(self.catalog.manifest, id), self.way_to_heal(id, history)
            if not self.findings.attempt(key, check, heal=way, checkpoint=id):
                continue
            manifest = self.catalog.manifest(id)
            if id in live:
                orphans[id] = manifest
            if history.is_cut:
                history.add(id, manifest)
                if id in live:
                    self.references.check(id, manifest)
        self.check_named(history, live, expired)
        return len(live), reached, orphans

    def check_named(
        self, history: History, live: Collection[Digest], expired: Collection[Digest]
    ) -> None:
        """Check that each checkpoint is there that a branch, a tag or a child names."""
        for id, reason in history.named.items():
            if id not in live and id not in expired:
                check = partial(self.find_manifest, id, reason)
                key = self.catalog.key(id)
                way = self.way_to_heal(id, history)
                self.findings.attempt(key, check, heal=way, checkpoint=id)
        for name, id in history.newest.refs.items():
            if id in expired and id not in live:
                check = partial(self.check_live, name, id)
                key = self.catalog.key(id)
                self.findings.attempt(key, check, heal=heal.EXPIRED, checkpoint=id)

    def way_to_heal(self, id: Digest, history: History) -> str:
        """Return what can be done about a manifest, which a ref or only the history may name."""
        is_ancestor = id in history.named and id not in history.newest.refs.values()
        return heal.HISTORY if is_ancestor else heal.MANIFEST

    def find_manifest(self, id: Digest, reason: str) -> None:
        """Raise NotFoundError when neither a live nor an expired checkpoint has this id."""
        if not (self.catalog.is_live(id) or self.catalog.is_expired(id)):
            raise NotFoundError(f"{self.catalog.key(id)} is missing; {reason}.")

    def check_live(self, name: str, id: Digest) -> None:
        """Raise CorruptError when the checkpoint that a branch or tag names has expired.

        The operation is read last: an older one may name a checkpoint that has expired since.
        """
        if not self.catalog.is_live(id) and self.newest()[0].refs.get(name) == id:
            raise CorruptError(
                f"Checkpoint {id.short}, which {name!r} names, has expired: its arrays are gone."
            )

    def confirmed(self) -> list[Problem]:
        """Repeat the checks that failed, and return those that are damage.

        A check that fails because a gc took a checkpoint away concerns no checkpoint that a ref
        reached before it was repeated, and that no operation condemned until afterwards.
        """
        problems: list[Problem] = []
        for _ in range(LOOKS_MAX if self.findings.by_key else 0):
            before, is_newest = self.newest()
            users, suffering = self.users(before, is_newest=is_newest)
            self.findings.repeat()
            after, _ = self.newest()
            try:
                condemned = self.condemned(before, after)
            except NotFoundError:  # operations since were pruned: look again
                condemned = None
            problems = list(self.problems(users, suffering - (condemned or set())))
            if condemned is not None or not self.findings.by_key:
                break
        return problems

    def problems(
        self, users: dict[Digest, set[Digest]], suffering: set[Digest]
    ) -> Iterator[Problem]:
        """Yield the findings that are damage, each with the checkpoints that suffer.

        users: the checkpoints that refer to an object. suffering: all that can suffer.
        """
        for key, finding in self.findings.by_key.items():
            ids: set[Digest] = set()
            if finding.object:
                ids = users.get(finding.object, set()) & suffering
            elif finding.checkpoint:
                ids = {finding.checkpoint} & suffering
            if ids or _is_damage_alone(finding):
                if finding.checkpoint:
                    ids = {finding.checkpoint}
                yield Problem(
                    key=key, error=finding.error, checkpoints=tuple(sorted(ids)), heal=finding.heal
                )

    def users(
        self, newest: Operation, *, is_newest: bool
    ) -> tuple[dict[Digest, set[Digest]], set[Digest]]:
        """Return which live checkpoints refer to each object that is wrong, and who can suffer.

        Those are the checkpoints that a ref reaches, and those that should be there.
        """
        wrong = [finding.object for finding in self.findings.by_key.values() if finding.object]
        users_of = Users(self.catalog, wrong)
        by_object: dict[Digest, set[Digest]] = {}
        history = History(self.catalog, newest, is_newest)
        live = self.ids(LIVE)

        def add(id: Digest, manifest: Manifest) -> None:
            for digest in users_of.of(manifest) if id in live else ():
                by_object.setdefault(digest, set()).add(id)

        for id, manifest in history:
            add(id, manifest)
        for id in set(self.only or ()) - history.reached:
            if found := self.readable(id):
                add(id, found)
        if history.is_cut:
            for id in (live | self.ids(EXPIRED)) - history.reached:
                if found := self.readable(id):
                    history.add(id, found)
                    add(id, found)
        return by_object, history.reached | history.named.keys() | set(self.only or ())

    def readable(self, id: Digest) -> Manifest | None:
        """Return a manifest, or None when it is damaged or missing."""
        try:
            return self.catalog.lookup(id)
        except CkptStoreError:
            return None

    def condemned(self, before: Operation, after: Operation) -> set[Digest]:
        """Return the checkpoints that a gc condemned from one operation to another.

        NotFoundError when an operation between them was pruned.
        """
        condemned: set[Digest] = set()
        for seq in range(before.seq, after.seq + 1):
            try:
                operation = {before.seq: before, after.seq: after}.get(seq) or self.oplog.read(seq)
            except CorruptError:
                continue
            if operation.condemned:
                condemned.update(operation.condemned.checkpoints)
        return condemned

    def unreachable(
        self, orphans: dict[Digest, Manifest], reached: set[Digest]
    ) -> tuple[dict[Digest, Manifest], set[Digest]]:
        """Return the checkpoints that no ref reaches, and those whose operations are missing."""
        newest, is_newest = self.newest()
        if not orphans or not is_newest:
            return orphans, set()
        since = ancestors(
            newest.refs.values(), lambda id: None if id in reached else self.readable(id)
        )
        reached = reached.union(id for id, _ in since)
        orphans = {id: manifest for id, manifest in orphans.items() if id not in reached}
        folders = (*self.oplog.FOLDERS, *self.oplog.PAGE_FOLDERS)
        if any(key.startswith(folders) for key in self.findings.by_key):
            return orphans, set()  # an operation that cannot be read may name them
        return orphans, lost(
            orphans, reached=reached, newest=newest, oplog=self.oplog, catalog=self.catalog
        )

    def problem_of(self, unnamed: set[Digest]) -> Problem:
        """Return the problem of checkpoints whose operations are missing."""
        (folder,) = self.oplog.FOLDERS
        return Problem(
            key=folder,
            error=f"{folder} lacks operations: no operation names {len(unnamed)} checkpoints from "
            "which others were made, or these. This is a copy that was cut short, or older "
            "operations were put over newer ones.",
            checkpoints=tuple(sorted(unnamed)),
            heal=heal.OPERATIONS,
        )


def _drain(entries: Callable[[], Iterable[object]]) -> None:
    """List all of a folder."""
    for _ in entries():
        pass


def _is_damage_alone(finding: Finding) -> bool:
    """Return True for what is damage even if no checkpoint that is reached suffers."""
    if finding.object:
        return finding.is_alone and not finding.is_missing
    return not (finding.checkpoint and finding.is_missing)


def _newest_first(orphans: dict[Digest, Manifest]) -> tuple[Digest, ...]:
    return tuple(sorted(orphans, key=lambda id: (-orphans[id].created, id)))
