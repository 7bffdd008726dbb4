"""Marks: what the live checkpoints reach, counted, so that it can be kept from one gc to the next.

Of each object only the first 64 bits of its digest are kept, with the number of pages that list it:
12 bytes in all. If two digests begin with the same 64 bits, the objects count as one: such an
object may stay though nothing reaches it, and is never deleted while something does.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ckptstore.errors import CorruptError
from ckptstore.forks import renewed
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import CkptStoreError
    from ckptstore.store.catalog import Catalog

MARK_DIGITS = 16

MarkArray: TypeAlias = NDArray[np.uint64]
NONE: MarkArray = np.empty(0, np.uint64)


def marks_of(digests: Iterable[str]) -> MarkArray:
    """Return the first 64 bits of each digest."""
    text = "".join([digest[:MARK_DIGITS] for digest in digests])
    return np.frombuffer(bytes.fromhex(text), ">u8").astype(np.uint64)


class Counts:
    """How often each mark was added."""

    def __init__(self) -> None:
        self._marks = NONE  # ascending
        self._counts = np.empty(0, np.uint32)

    def change(self, *, added: Sequence[MarkArray] = (), removed: Sequence[MarkArray] = ()) -> None:
        """Add marks, then remove others that are in."""
        if added:
            marks, counts = np.unique(np.concatenate(added), return_counts=True)
            places, known = find(self._marks, marks)
            self._counts[places[known]] += counts[known].astype(np.uint32)
            self._marks = np.insert(self._marks, places[~known], marks[~known])
            self._counts = np.insert(self._counts, places[~known], counts[~known])
        if removed:
            marks, counts = np.unique(np.concatenate(removed), return_counts=True)
            places, known = find(self._marks, marks)
            self._counts[places[known]] -= counts[known].astype(np.uint32)
            is_left = self._counts > 0
            self._marks, self._counts = self._marks[is_left], self._counts[is_left]

    def of(self, marks: MarkArray) -> NDArray[np.int64]:
        """Return how often each of some marks is in."""
        places, known = find(self._marks, marks)
        counts = np.zeros(len(marks), np.int64)
        counts[known] = self._counts[places[known]]
        return counts


def find(ascending: MarkArray, marks: MarkArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where each mark is or would be among ascending ones, and which of them are there."""
    places = np.searchsorted(ascending, marks)
    if not len(ascending):
        return places, np.zeros(len(marks), np.bool_)
    return places, ascending[np.minimum(places, len(ascending) - 1)] == marks


@dataclass(frozen=True, slots=True)
class Exclusive:
    """The objects that only some checkpoints reach.

    pages: the pages among them. marks: of all of them, ascending. owners: for each mark, the first
    of the checkpoints that reaches it, as a position.
    """

    pages: frozenset[Digest]
    marks: MarkArray
    owners: NDArray[np.intp]

    def owners_of(self, marks: MarkArray) -> NDArray[np.intp]:
        """Return the owner of each mark, -1 for those of other objects."""
        places, known = find(self.marks, marks)
        owners = np.full(len(marks), -1, np.intp)
        owners[known] = self.owners[places[known]]
        return owners


class Marks:
    """The objects that some checkpoints reach. A page is read once, however many share it.

    manifests: these checkpoints. unread: pages that could not be read, so that what they list is
    unknown. They are tried again for each further checkpoint that names them, as a commit may have
    put them back.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._reader = searched(catalog)
        self._forget()
        renewed(self, Marks._forget)  # another thread may have been in the middle

    def _forget(self) -> None:
        self.manifests: dict[Digest, Manifest] = {}
        self.unread: set[Digest] = set()
        self._users: Counter[Digest] = Counter()  # of pages and structures
        self._listed: dict[Digest, MarkArray] = {}  # by page
        self._counts = Counts()

    def follow(self, live: Mapping[Digest, Manifest]) -> None:
        """Mark what these checkpoints reach, and nothing else."""
        with self._forgotten_on_error():
            gone = self.manifests.keys() - live.keys()
            removed = [part for id in gone for part in self._remove(self.manifests.pop(id))]
            new = {id: live[id] for id in live.keys() - self.manifests.keys()}
            self.manifests |= new
            added = [self._add(manifest) for manifest in new.values()]
            added += self._read(new.values(), must_be_whole=False)
            self._counts.change(added=added, removed=removed)

    def require(self, manifest: Manifest) -> None:
        """Raise CorruptError when a page of a marked checkpoint cannot be read."""
        if not self.unread.isdisjoint(ref.digest for ref in manifest.refs):
            with self._forgotten_on_error():
                self._counts.change(added=list(self._read([manifest], must_be_whole=True)))

    def has_read(self, page: Digest) -> bool:
        """Return True for a page of a marked checkpoint that was read."""
        return page in self._listed

    def are_reached(self, marks: MarkArray) -> NDArray[np.bool_]:
        """Return for the mark of each object whether a marked checkpoint reaches it."""
        return self._counts.of(marks) > 0

    def exclusive(self, ids: Sequence[Digest]) -> Exclusive:
        """Return the objects that these checkpoints reach, and no others that are marked."""
        documents = [sorted(self.manifests[id].documents()) for id in ids]
        users = Counter(document for named in documents for document in named)
        pages: set[Digest] = set()
        parts, owners = [NONE], [0]
        for position, named in enumerate(documents):
            only = [doc for doc in named if users.pop(doc, 0) == self._users[doc]]
            listed = [self._listed[doc] for doc in only if doc in self._listed]
            pages.update(doc for doc in only if doc in self._listed)
            parts += [marks_of(only), *listed]
            owners += [position] * (1 + len(listed))
        marks, first, counts = np.unique(
            np.concatenate(parts), return_index=True, return_counts=True
        )
        owner = np.repeat(np.array(owners, np.intp), [len(part) for part in parts])[first]
        is_only = self._counts.of(marks) == counts
        return Exclusive(frozenset(pages), marks[is_only], owner[is_only])

    @contextmanager
    def _forgotten_on_error(self) -> Iterator[None]:
        """Begin anew after an error: some pages may be noted as read that were not counted."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _add(self, manifest: Manifest) -> MarkArray:
        named = manifest.documents()
        new = marks_of(named - self._users.keys())
        self._users.update(named)
        return new

    def _remove(self, manifest: Manifest) -> Iterator[MarkArray]:
        named = manifest.documents()
        self._users.subtract(named)
        gone = [document for document in named if not self._users[document]]
        yield marks_of(gone)
        for document in gone:
            del self._users[document]
            self.unread.discard(document)
            if document in self._listed:
                yield self._listed.pop(document)

    def _read(self, manifests: Iterable[Manifest], *, must_be_whole: bool) -> Iterator[MarkArray]:
        """Read the pages that were not read yet, and yield the marks of what each lists."""
        begun: set[Digest] = set()  # as several are read at once

        def wanted(page: Digest) -> bool:
            is_new = page not in self._listed and page not in begun
            begun.add(page)
            return is_new

        def failed(page: Digest, error: CkptStoreError) -> None:
            if must_be_whole or not isinstance(error, CorruptError):
                raise error
            self.unread.add(page)
            begun.discard(page)

        for page, listed in walk(manifests, self._reader, wanted=wanted, failed=failed):
            self._listed[page] = marks = marks_of(listed)
            self.unread.discard(page)
            yield marks
