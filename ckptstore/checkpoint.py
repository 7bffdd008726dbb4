"""Checkpoint: what a user holds of one checkpoint. Its facts are at hand; its array list is read when asked for."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    import zarr

    from ckptstore.arrays.indexed import IndexedArray
    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import ArrayEntry
    from ckptstore.documents.zarr_page import EncodedEntry
    from ckptstore.store.catalog import Catalog
    from ckptstore.zarr.hierarchy import ZarrValues

_path = attrgetter("path")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """One array of a checkpoint: `nbytes` of data of this dtype and shape, stored as `chunk_count` chunks.

    Of an array that came in through Zarr, `nbytes` is what its chunks take as they are encoded, and `dtype` is "" where only
    Zarr knows such elements (texts, dates).

    A small array (under 64 KiB) lies in a bundle with others and counts as one chunk; its chunk_shape is its shape.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    nbytes: int
    chunk_count: int

    @classmethod
    def of(cls, entry: ArrayEntry) -> Self:
        """An array of a state."""
        from ckptstore.documents.chunks import chunk_count

        is_small = entry.offset is not None
        return cls(
            path=entry.path,
            dtype=entry.dtype,
            shape=entry.shape,
            chunk_shape=entry.shape if is_small else entry.chunk_shape,
            nbytes=entry.nbytes,
            chunk_count=1 if is_small else chunk_count(entry.shape, entry.chunk_shape),
        )

    @classmethod
    def of_encoded(cls, entry: EncodedEntry) -> Self:
        """An array that came in through Zarr."""
        return cls(
            path=entry.path or "array",
            dtype=entry.dtype,
            shape=entry.shape,
            chunk_shape=entry.chunk_shape,
            nbytes=entry.nbytes,
            chunk_count=entry.chunks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint, as its manifest tells it.

    created: UTC. new_bytes: bytes that its commit had to store. array_bytes: bytes of all its arrays.
    """

    id: Digest
    step: int | None
    metrics: Mapping[str, int | float]
    parents: tuple[Digest, ...]
    branch: str | None
    message: str
    created: datetime
    meta: Mapping[str, Any]
    expired: bool
    new_bytes: int
    array_count: int
    array_bytes: int
    _manifest: Manifest = field(repr=False, compare=False)
    _catalog: Catalog = field(repr=False, compare=False)
    # Made when the first array is asked for, and kept: it reads the structure.
    _openers: list[ArrayOpener] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, id: Digest, manifest: Manifest, catalog: Catalog) -> Checkpoint:
        """The checkpoint that a manifest tells of."""
        return cls(
            id=id,
            step=manifest.step,
            metrics=dict(manifest.metrics),
            parents=manifest.parents,
            branch=manifest.branch,
            message=manifest.message,
            created=_EPOCH + timedelta(microseconds=manifest.created),
            meta=deepcopy(dict(manifest.meta)),  # the manifest is shared by all who ask
            expired=catalog.is_expired(id),
            new_bytes=manifest.new_bytes,
            array_count=sum(ref.arrays for ref in manifest.refs),
            array_bytes=manifest.array_bytes,
            _manifest=manifest,
            _catalog=catalog,
        )

    @property
    def arrays(self) -> tuple[ArrayInfo, ...]:
        """Every array, in path order; read from the repository at each call."""
        from ckptstore.zarr.encoded_entries import encoded_entries

        listed = [
            ArrayInfo.of(entry)
            for page in self._catalog.pages(self._manifest)
            for entry in page.entries
        ]
        encoded = encoded_entries(self._manifest, self._catalog).values()
        return tuple(sorted([*listed, *map(ArrayInfo.of_encoded, encoded)], key=_path))

    def array(self, path: str, *, framework: str | None = None) -> IndexedArray:
        """One array, read as it is indexed: `checkpoint.array("model/wte.weight")[1000:1010]` reads only these rows' chunks.

        framework: "torch" or "numpy": what indexing gives; None: what was committed. NotFoundError names what is like it.
        """
        from ckptstore.checkout.opener import ArrayOpener

        self._catalog.refuse_expired(self.id)
        if not self._openers:
            self._openers.append(ArrayOpener(self.id, self._manifest, self._catalog))
        return self._openers[0].named(path, framework)

    def zarr(self) -> zarr.Group:
        """The checkpoint as a read-only Zarr group, whose arrays are read as they are indexed.

        Its attributes tell the checkpoint's id, step, metrics, message and time. zarr-python, dask and xarray can open it.
        NotFoundError when it is no group but an array, which `array` reads.
        """
        from ckptstore.zarr.store import CheckpointStore, open_group

        return open_group(CheckpointStore.of(self.id, self._catalog))

    def zarr_values(self) -> ZarrValues | None:
        """All that a Zarr reader sees of a checkpoint that came in through Zarr, wholly or in part, for `formats.write_file`.

        None for a checkpoint of a state alone, whose form in Zarr is made as it is written.
        """
        if self._manifest.hierarchy is None:
            return None
        from ckptstore.zarr.contents import Values

        self._catalog.refuse_expired(self.id)
        return Values(self.id, self._manifest, self._catalog)

    @property
    def names(self) -> tuple[str | int, ...]:
        """The keys of the state's outermost dict, in order; none of any other state. Read at each call."""
        from ckptstore.state.tree import keys

        return tuple(keys(self._catalog.structure(self._manifest)))

    @property
    def values(self) -> dict[str, object]:
        """Every plain value (learning rate, step, …) by its path; read from the repository at each call."""
        from ckptstore.arrays import codecs
        from ckptstore.documents.nodes import ArrayNode
        from ckptstore.state.tree import leaves, plain

        return {
            path: plain(node, decode=codecs.decode)
            for path, node in leaves(self._catalog.structure(self._manifest))
            if not isinstance(node, ArrayNode)
        }
