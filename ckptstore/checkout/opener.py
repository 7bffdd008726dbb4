"""ArrayOpener: arrays of a checkpoint one by one, each read when it is indexed and not before."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.arrays.indexed import kind_of
from ckptstore.arrays.source import KINDS, NDARRAY
from ckptstore.checkout.checkpoint_array import CheckpointArray
from ckptstore.documents.nodes import ZARR
from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, shown
from ckptstore.forks import cached_property
from ckptstore.state.paths import ROOT
from ckptstore.state.tree import arrays
from ckptstore.storage import open_storage
from ckptstore.store.catalog import Catalog
from ckptstore.store.objects import ObjectStore
from ckptstore.zarr.encoded_entries import encoded_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.arrays.indexed import IndexedArray
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import StoredArray
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import ArrayEntry, Page
    from ckptstore.documents.zarr_page import EncodedEntry
    from ckptstore.zarr.store import CheckpointStore

ZARR_TAG = "zarr"


class ArrayOpener:
    """Opens arrays of one checkpoint.

    bytes_max: the most bytes that an array committed through Zarr may take; see `check_unpacked`.
    origins: the stored path of each array, if a rename gave them others.
    """

    def __init__(
        self,
        id: Digest,
        manifest: Manifest,
        catalog: Catalog,
        *,
        bytes_max: int | None = None,
        origins: Mapping[str, str] | None = None,
    ) -> None:
        self._id, self._manifest, self._catalog = id, manifest, catalog
        self._bytes_max, self._origins = bytes_max, origins
        self._store: CheckpointStore | None = None

    def again(self, origins: Mapping[str, str]) -> ArrayOpener:
        """One of the same checkpoint under other names."""
        return ArrayOpener(
            self._id, self._manifest, self._catalog, bytes_max=self._bytes_max, origins=origins
        )

    def named(self, path: str, framework: str | None) -> IndexedArray:
        """The array that a user names; NotFoundError lists names that are similar."""
        if not isinstance(path, str) or path not in self._tags:
            like = get_close_matches(shown(path), self._tags, n=3, cutoff=0.5)
            hint = f" Is it {' or '.join(map(repr, like))}?" if like else ""
            count = f"{len(self._tags):,} array{'' if len(self._tags) == 1 else 's'}"
            raise NotFoundError(
                f"Checkpoint {self._id.short} has no array {shown(path)}.{hint} It has {count}."
            )
        return self.open(path, self._tags[path], framework=framework)

    @cached_property
    def _tags(self) -> dict[str, str]:
        """The tag of each array's node in the structure, by path."""
        with self._catalog.reading(self._id):
            root = self._catalog.structure(self._manifest)
        return {node.path: node.kind for node in arrays(root)}

    def open(self, path: str, tag: str, *, framework: str | None = None) -> IndexedArray:
        """The array of a node of the structure. tag: of that node."""
        stored = path if self._origins is None else self._origins[path]
        if tag in ZARR:
            return self._zarr(stored, kind_of(framework, ZARR[tag]), framework)
        with self._catalog.reading(self._id):
            for page in self._catalog.pages_of(self._manifest, (stored,)):
                for entry in page.entries:
                    if entry.path == stored:
                        entry = replace(entry, path=path)
                        return self.listed(entry, page, kind_of(framework, tag))
        raise unlisted(path)

    def listed(self, entry: ArrayEntry, page: Page, kind: str) -> IndexedArray:
        """The array of an entry of a page."""
        array = CheckpointArray(
            entry,
            page.bundle,
            kind=kind,
            objects=self._catalog.objects,
            reading=partial(self._catalog.reading, self._id),
        )
        path = entry.path
        return self._with_origin(array, path if self._origins is None else self._origins[path])

    def bytes_of(self, array: StoredArray) -> IndexedArray:
        """An array that a diff names, to be read run by run."""
        return self.open(array.path, ZARR_TAG if array.is_encoded else NDARRAY)

    def encoded_entries(self) -> dict[str, EncodedEntry]:
        """The arrays that came in through Zarr, by path in the state."""
        with self._catalog.reading(self._id):
            found = encoded_entries(self._manifest, self._catalog)
        named = {path or ROOT: entry for path, entry in found.items()}
        if self._origins is not None:
            named = {path: named[old] for path, old in self._origins.items() if old in named}
        return {path: replace(entry, path=path) for path, entry in named.items()}

    def _zarr(self, path: str, kind: str, framework: str | None) -> IndexedArray:
        from ckptstore.zarr.array import ZarrArray
        from ckptstore.zarr.store import DecodedStore

        if self._store is None:
            self._store = DecodedStore.of(self._id, self._catalog, bytes_max=self._bytes_max)
        is_root = path == ROOT and self._store.is_array("")
        array = ZarrArray(self._store, "" if is_root else path, kind=kind)
        if framework == "torch" and not array.dtype:
            raise InvalidInputError(
                f"torch has no tensors of the elements of {shown(path)}. "
                "Read it with framework='numpy'."
            )
        return self._with_origin(array, path)

    def _with_origin(self, array: IndexedArray, path: str) -> IndexedArray:
        array.origin = reopened, (self._catalog.url, self._id, path, array.kind, self._bytes_max)
        return array


def reopened(
    url: str, id: Digest, path: str, kind: str, bytes_max: int | None = None
) -> IndexedArray:
    """An array of a repository that is not open here; ExpiredError when gc gave it up meanwhile."""
    storage = open_storage(url)
    catalog = Catalog(storage, ObjectStore.cached(storage))
    catalog.refuse_expired(id)
    framework = next(name for name, made in KINDS.items() if made == kind)
    opener = ArrayOpener(id, catalog.manifest(id), catalog, bytes_max=bytes_max)
    return opener.named(path, framework)


def unlisted(path: str) -> CorruptError:
    """The error for an array of the structure that is on no page."""
    return CorruptError(f"The structure names {path!r:.200}, which no page lists. Run verify.")
