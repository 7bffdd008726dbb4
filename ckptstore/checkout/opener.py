"""ArrayOpener: the arrays of a checkpoint one by one, none of them read before it is indexed."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ckptstore.arrays.indexed import FRAMEWORKS, kind_of
from ckptstore.arrays.source import NDARRAY
from ckptstore.checkout.checkpoint_array import CheckpointArray
from ckptstore.documents.structure import ZARR, array_path, tag_of
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, shown
from ckptstore.state.tree import ROOT, leaves
from ckptstore.storage import open_storage
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore.zarr.encoded_entries import encoded_entries

if TYPE_CHECKING:
    from ckptstore.arrays.indexed import IndexedArray
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import StoredArray
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.zarr_page import EncodedEntry
    from ckptstore.zarr.store import CheckpointStore

ZARR_TAG = "zarr"


class ArrayOpener:
    """Opens arrays of one checkpoint."""

    def __init__(self, id: Digest, manifest: Manifest, catalog: Catalog) -> None:
        self._id, self._manifest, self._catalog = id, manifest, catalog
        self._firsts = [ref.first for ref in manifest.pages]
        self._store: CheckpointStore | None = None

    def named(self, path: str, framework: str | None) -> IndexedArray:
        """The array that a user names; NotFoundError says which names are like it."""
        if path not in self._tags:
            like = get_close_matches(str(path), self._tags, n=3, cutoff=0.5)
            hint = f" Is it {' or '.join(map(repr, like))}?" if like else ""
            raise NotFoundError(
                f"Checkpoint {self._id.short} has no array {shown(path)}.{hint} It has {len(self._tags)}."
            )
        return self.open(path, self._tags[path], framework=framework)

    @cached_property
    def _tags(self) -> dict[str, str]:
        """The tag of each array's node in the structure, by path."""
        with self._catalog.reading(self._id):
            root = self._catalog.structure(self._manifest)
        return {name: tag_of(node) for name, node in leaves(root) if array_path(node) is not None}

    def open(self, path: str, tag: str, *, framework: str | None = None) -> IndexedArray:
        """The array of a structure's node. tag: of that node."""
        found = self._open(path, tag, framework)
        found.origin = reopened, (self._catalog.url, self._id, path, found.kind)
        return found

    def _open(self, path: str, tag: str, framework: str | None) -> IndexedArray:
        if tag in ZARR:
            array = self._zarr(path, kind_of(framework, ZARR[tag]))
            if framework == "torch" and not array.dtype:
                raise InvalidInputError(
                    f"torch has no tensors of what {shown(path)} holds. Read it with framework='numpy'."
                )
            return array
        with self._catalog.reading(self._id):
            number = bisect_right(self._firsts, path) - 1
            refs = self._manifest.pages[max(0, number) : number + 1]
            for page in self._catalog.pages(replace(self._manifest, pages=refs)):
                for entry in page.entries:
                    if entry.path == path:
                        return CheckpointArray(
                            entry,
                            page.bundle,
                            kind=kind_of(framework, tag),
                            objects=self._catalog.objects,
                            reading=partial(self._catalog.reading, self._id),
                        )
        raise CorruptError(f"The structure names {path!r:.200}, which no page lists. Run verify.")

    def bytes_of(self, array: StoredArray) -> IndexedArray:
        """An array that a diff names, to be read run by run."""
        return self.open(array.path, ZARR_TAG if array.is_encoded else NDARRAY)

    def encoded_entries(self) -> dict[str, EncodedEntry]:
        """The arrays that came in through Zarr, by path in the state."""
        with self._catalog.reading(self._id):
            found = encoded_entries(self._manifest, self._catalog)
        return {path or ROOT: replace(entry, path=path or ROOT) for path, entry in found.items()}

    def _zarr(self, path: str, kind: str) -> IndexedArray:
        from ckptstore.zarr.array import ZarrArray
        from ckptstore.zarr.store import CheckpointStore

        if self._store is None:
            self._store = CheckpointStore.of(self._id, self._catalog)
        is_root = path == ROOT and self._store.is_array("")
        return ZarrArray(self._store, "" if is_root else path, kind=kind)


def reopened(url: str, id: Digest, path: str, kind: str) -> IndexedArray:
    """An array of a checkpoint of a repository that is not open here. ExpiredError when gc gave it up meanwhile."""
    storage = open_storage(url)
    catalog = Catalog(storage, ObjectStore(storage))
    catalog.refuse_expired(id)
    framework = next(name for name, made in FRAMEWORKS.items() if made == kind)
    return ArrayOpener(id, catalog.manifest(id), catalog).named(path, framework)
