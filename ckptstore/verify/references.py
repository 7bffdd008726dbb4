"""References: everything that a checkpoint refers to, compared with what is there.

Each page and each structure is read once, however many checkpoints share it. What is remembered of
a page is shared by all pages that list the same paths, as those of one architecture do.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from blake3 import blake3

from ckptstore.digest import Digest, DigestMap
from ckptstore.documents.page import Page
from ckptstore.documents.zarr_page import NodePage
from ckptstore.errors import CkptStoreError, CorruptError
from ckptstore.state.paths import ROOT
from ckptstore.state.tree import arrays
from ckptstore.store.catalog import in_order
from ckptstore.threads import gather
from ckptstore.verify import heal
from ckptstore.zarr.encoded_entries import encoded_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ckptstore.documents.manifest import Manifest, PageRef
    from ckptstore.store.catalog import Catalog
    from ckptstore.verify.findings import Findings
    from ckptstore.verify.inventory import Inventory

AnyPage = TypeVar("AnyPage", Page, NodePage)

UNREAD = 0  # the number of a page that could not be read
PAGES_AHEAD = 128  # pages that are read at once, of a far storage


@dataclass(frozen=True, slots=True)
class Summary:
    """The part of a page that is needed once its objects were checked.

    claim: what manifests that list it claim of it. begin, end: its place in path order. paths: the
    arrays that it lists, or of which it has the Zarr documents.
    """

    claim: tuple[str, int, int]
    begin: object
    end: object
    paths: tuple[str, ...]


class References:
    """Checks checkpoints one by one."""

    def __init__(self, catalog: Catalog, inventory: Inventory, findings: Findings) -> None:
        self._catalog, self._inventory, self._findings = catalog, inventory, findings
        self._structures = DigestMap()
        # What was wrong with the bundle of a page that was read ahead; None if it was right.
        self._bundle_errors: dict[Digest, CkptStoreError | None] = {}
        self._pages = _Pages(catalog.page, self._visit)
        self._node_pages = _Pages(catalog.node_page, self._visit)

    def check(self, id: Digest, manifest: Manifest) -> None:
        """Follow every reference of a live checkpoint."""
        self._inventory.reach(manifest.structure)
        paths: list[tuple[str, ...]] = []
        numbers: list[bytes] = []
        is_whole = True
        for pages, refs in self._kinds(manifest):
            known: list[int] = []
            for start in range(0, len(refs), PAGES_AHEAD):
                part = refs[start : start + PAGES_AHEAD]
                self._read_ahead((pages, ref) for ref in part)
                known += [pages.number(ref) for ref in part]
            paths += (pages.summaries[number].paths for number in known)
            numbers += (number.to_bytes(8, "big") for number in [*known, UNREAD])
            if UNREAD in known:
                is_whole = False
                continue
            self._findings.attempt(
                self._catalog.key(id),
                partial(pages.check_order, refs),
                heal=heal.CONTENT,
                checkpoint=id,
            )
        if is_whole and self._inventory.is_right(manifest.structure):
            combination = blake3(manifest.structure.encode() + b"".join(numbers)).hexdigest()
            if combination not in self._structures:
                self._structures[combination] = 1
                self._check_structure(manifest, paths)

    def prepare(self, manifests: Iterable[Manifest]) -> None:
        """Read the first new pages of checkpoints that are checked next, if the storage is far."""
        self._read_ahead(
            (pages, ref)
            for manifest in manifests
            for pages, refs in self._kinds(manifest)
            for ref in refs
        )

    def _kinds(self, manifest: Manifest) -> Iterator[tuple[_Pages[Any], tuple[PageRef, ...]]]:
        """Both kinds of pages of a checkpoint."""
        yield self._pages, manifest.pages
        yield self._node_pages, manifest.hierarchy or ()

    def _read_ahead(self, refs: Iterable[tuple[_Pages[Any], PageRef]]) -> None:
        if not self._catalog.is_far:
            return
        new = {ref.digest: pages for pages, ref in refs if not pages.has_visited(ref)}
        reads = (
            partial(self._read_page_ahead, digest, pages)
            for digest, pages in islice(new.items(), PAGES_AHEAD)
            if digest not in self._bundle_errors
        )
        gather(reads, threads=self._inventory.threads)

    def _read_page_ahead(self, digest: Digest, pages: _Pages[Any]) -> None:
        """Have the catalog remember a page, and compare its bundle."""
        with suppress(CkptStoreError):  # which is met again
            page = pages.read(digest)
            if page.bundle:
                try:
                    self._check_bundle_bytes(page)
                except CkptStoreError as error:
                    self._bundle_errors[digest] = error
                else:
                    self._bundle_errors[digest] = None

    def _check_structure(self, manifest: Manifest, paths: Sequence[tuple[str, ...]]) -> None:
        """Check that a structure can be read, and that a page lists every array that it names."""

        def check() -> None:
            named = {node.path for node in arrays(self._catalog.structure(manifest))}
            if unlisted := sorted(named.difference(*paths)):
                raise CorruptError(
                    f"The structure names arrays that no page lists: {', '.join(unlisted[:5])}."
                )

        self._attempt(manifest.structure, check)

    def _visit(self, ref: PageRef, read: Callable[[Digest], AnyPage]) -> Summary | None:
        """Read a page for the first time, and check what it refers to; None if it is unreadable."""
        digest = ref.digest
        if not self._inventory.reach(digest):
            return None
        found: list[AnyPage] = []
        if not self._attempt(digest, lambda: found.append(read(digest))):
            return None
        (page,) = found
        listed = [
            self._inventory.reach(digest, size=size)
            for digest, size in dict.fromkeys(page.digests())
        ]
        if page.bundle and self._inventory.is_right(page.bundle.digest):
            self._attempt(digest, partial(self._check_bundle, digest, page))
        paths: list[str] = []
        if isinstance(page, Page):
            paths += (entry.path for entry in page.entries)
        elif all(listed) and not self._attempt(
            digest, lambda: paths.extend(encoded_paths(page, self._catalog))
        ):
            return None
        claim = claimed(ref) if page.is_as_claimed(ref) else ("", -1, -1)
        return Summary(claim, page.begin, page.end, tuple(path or ROOT for path in paths))

    def _attempt(self, document: Digest, check: Callable[[], object]) -> bool:
        """Run a check of what a page or structure holds; its bytes were right a moment ago."""

        def check_all() -> None:
            self._inventory.check_bytes(document)
            check()

        try:
            check()
        except CkptStoreError as error:
            self._inventory.note(document, error, check=check_all, heal=heal.CONTENT)
            return False
        return True

    def _check_bundle(self, digest: Digest, page: Page | NodePage) -> None:
        """Check the bundle of a page, unless that was done ahead. Once repeated, it is read."""
        if digest not in self._bundle_errors:
            self._check_bundle_bytes(page)
        elif error := self._bundle_errors.pop(digest):
            raise error

    def _check_bundle_bytes(self, page: Page | NodePage) -> None:
        """Compare the digest of each small array or document with its place in the bundle."""
        assert page.bundle is not None
        data = self._catalog.objects.get(page.bundle.digest, bytes_max=page.bundle.size)
        for path, digest, part in page.bundled():
            if Digest.of(data[part]) != digest:
                raise CorruptError(f"The page lists a wrong place in its bundle for {path!r}.")


class _Pages(Generic[AnyPage]):
    """The pages of one kind by number, as far as they were read."""

    def __init__(
        self,
        read: Callable[[Digest], AnyPage],
        visit: Callable[[PageRef, Callable[[Digest], AnyPage]], Summary | None],
    ) -> None:
        self.read: Callable[[Digest], AnyPage] = read
        self._visit: Callable[[PageRef, Callable[[Digest], AnyPage]], Summary | None] = visit
        self.summaries = [Summary(("", -1, -1), None, None, ())]
        self._numbers_by_summary: dict[Summary, int] = {}
        self._numbers = DigestMap()

    def has_visited(self, ref: PageRef) -> bool:
        """Return True for a page that has a number."""
        return ref.digest in self._numbers

    def number(self, ref: PageRef) -> int:
        """Return the number of the summary of a page, which is read if it is new."""
        number = self._numbers.get(ref.digest)
        if number is None:
            summary = self._visit(ref, self.read)
            number = UNREAD if summary is None else self._number_of(summary)
            self._numbers[ref.digest] = number
        return number

    def check_order(self, refs: Sequence[PageRef]) -> None:
        """Compare pages with what a manifest claims of them."""
        for _ in in_order(refs, self._known):
            pass

    def _number_of(self, summary: Summary) -> int:
        number = self._numbers_by_summary.setdefault(summary, len(self.summaries))
        if number == len(self.summaries):
            self.summaries.append(summary)
        return number

    def _known(self, digest: Digest) -> _Known[AnyPage]:
        number = self._numbers.get(digest) or UNREAD
        return _Known(self.summaries[number], partial(self.read, digest))


@dataclass(frozen=True, slots=True)
class _Known(Generic[AnyPage]):
    """A page in its summary, which is read again only if a manifest claims something else."""

    summary: Summary
    read: Callable[[], AnyPage]

    @property
    def begin(self) -> object:
        return self.summary.begin

    @property
    def end(self) -> object:
        return self.summary.end

    def is_as_claimed(self, ref: PageRef) -> bool:
        return self.summary.claim == claimed(ref) or self.read().is_as_claimed(ref)


def claimed(ref: PageRef) -> tuple[str, int, int]:
    """Return what a manifest claims of a page."""
    return ref.first, ref.arrays, ref.bytes
