"""Sizes: the bytes that checkpoints reach, each object once, for a policy with a limit.

Pages are read once, however many checkpoints share them, and only if a policy has such a limit.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ckptstore.errors import CorruptError
from ckptstore.forks import renewed
from ckptstore.gc.marks import NONE, marks_of
from ckptstore.store.reach import decoded, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.gc.marks import MarkArray
    from ckptstore.store.catalog import Catalog

    Sized = tuple[MarkArray, NDArray[np.int64]]


class Sizes:
    """The sizes of the objects that checkpoints reach, by page, kept from one call to the next."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._forget()
        renewed(self, Sizes._forget)  # another thread may have been in the middle

    def _forget(self) -> None:
        self._known: dict[Digest, Sized] = {}

    def freed(self, manifests: Sequence[Manifest]) -> list[int]:
        """Return the bytes that each checkpoint frees once those before it have expired.

        Pages that are damaged count as empty.
        """
        known: dict[Digest, Sized] = {}
        parts: list[MarkArray] = [NONE]
        sizes: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        owners: list[NDArray[np.intp]] = [np.empty(0, np.intp)]
        for position, manifest in enumerate(manifests):
            self._read(manifest, known)
            for document in manifest.documents():
                marks, bytes_of = known[document]
                parts.append(marks)
                sizes.append(bytes_of)
                owners.append(np.full(len(marks), position, np.intp))
        self._known = known
        # The last owner of an object counts, which is the first one from the end.
        marks = np.concatenate(parts)[::-1]
        _, last = np.unique(marks, return_index=True)
        owner, size = np.concatenate(owners)[::-1][last], np.concatenate(sizes)[::-1][last]
        frees = np.zeros(len(manifests), np.int64)
        np.add.at(frees, owner, size)
        return [int(free) for free in frees]

    def _read(self, manifest: Manifest, known: dict[Digest, Sized]) -> None:
        """Note the objects of each page of a checkpoint, and the page itself."""

        def is_wanted(page: Digest) -> bool:
            if page in self._known:
                known[page] = self._known[page]
            return page not in known

        pages = walk(
            [manifest], decoded(self._catalog), wanted=is_wanted, failed=lambda page, error: None
        )
        for page, content in pages:
            known[page] = self._sized({page: self._size(page), **dict(content.digests())})
        for document in manifest.documents() - known.keys():
            known[document] = self._known.get(document) or self._sized(
                {document: self._size(document)}
            )

    def _size(self, digest: Digest) -> int:
        with suppress(CorruptError):
            return self._catalog.objects.size(digest) or 0
        return 0

    def _sized(self, objects: dict[Digest, int]) -> Sized:
        return marks_of(objects), np.fromiter(objects.values(), np.int64, len(objects))
