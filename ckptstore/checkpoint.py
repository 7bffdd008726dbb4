"""Checkpoint: the handle to one checkpoint, and its list of arrays.

The facts of the manifest are attributes; arrays and values are read on access. Checkout, diff and
log are methods of Repository. See section 9 of docs/reference/format.md.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents.note import overlaid
from ckptstore.times import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    import zarr

    from ckptstore.arrays.indexed import IndexedArray
    from ckptstore.checkout.opener import ArrayOpener
    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.nodes import Node
    from ckptstore.documents.note import Note
    from ckptstore.documents.page import ArrayEntry
    from ckptstore.documents.zarr_page import EncodedEntry
    from ckptstore.retention import Reason
    from ckptstore.store.catalog import Catalog
    from ckptstore.zarr.contents import ZarrValues

_path = attrgetter("path")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInfo:
    """One array of a checkpoint. See sections 10.1 to 10.3 of docs/reference/format.md.

    Attributes:
        path: The path in the state.
        dtype: The element type by its Zarr name, such as "float32" or "bfloat16"; "" for elements
            that only Zarr knows (strings, dates).
        shape: The length of each dimension.
        chunk_shape: The shape of the chunks. A small array (under 64 KiB), which shares an object
            with others, is one chunk.
        nbytes: Bytes of the elements. Of an array that was committed through Zarr, bytes of its
            encoded chunks.
        chunk_count: The number of chunks.
        order: The dimensions in the order of the memory that the array came from and comes back
            in, such as (0, 2, 3, 1) for channels_last; None for C order.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    nbytes: int
    chunk_count: int
    order: tuple[int, ...] | None = None

    @classmethod
    def of(cls, entry: ArrayEntry) -> Self:
        """The array of a page's entry."""
        from ckptstore.documents.chunks import chunk_count

        is_small = entry.offset is not None
        return cls(
            path=entry.path,
            dtype=entry.dtype,
            shape=entry.shape,
            chunk_shape=entry.shape if is_small else entry.shown_chunk_shape,
            nbytes=entry.nbytes,
            chunk_count=1 if is_small else chunk_count(entry.stored_shape, entry.chunk_shape),
            order=entry.order,
        )

    @classmethod
    def of_encoded(cls, entry: EncodedEntry) -> Self:
        """An array that was committed through Zarr."""
        return cls(
            path=entry.path or "array",
            dtype=entry.dtype,
            shape=entry.shape,
            chunk_shape=entry.chunk_shape,
            nbytes=entry.nbytes,
            chunk_count=entry.chunks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """Metrics or a message that `annotate` added to a checkpoint after its commit.

    Attributes:
        metrics: Numbers by name.
        message: The message.
        time: When it was added, in UTC.
        user: The user who added it; "" if the user has no name.
        host: The name of the machine.
        program: The name of the program.
    """

    metrics: Mapping[str, int | float]
    message: str
    time: datetime
    user: str
    host: str
    program: str

    @classmethod
    def of(cls, note: Note) -> Self:
        """The annotation of a note."""
        return cls(
            metrics=dict(note.metrics),
            message=note.message,
            time=utc(note.time),
            user=note.by.user,
            host=note.by.host,
            program=note.by.program,
        )


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Checkpoint:
    """One checkpoint. Returned by `Repository.commit`, `resolve` and `log`.

    Attributes:
        id: The digest of the manifest.
        step: The training step, if one was given.
        metrics: Numbers by name, including those of notes. The newest value of each metric counts.
        parents: The ids of the checkpoints before it; usually one, none for the first of a branch.
        branch: The branch that it was committed on; None if it was not recorded.
        message: The message.
        created: The time of the commit, in UTC.
        meta: Further JSON values by name.
        notes: The notes that `Repository.annotate` added, oldest first.
        expired: True if a policy has expired it: its arrays are no longer stored.
        new_bytes: Bytes of the objects that the commit had to store: chunks of arrays and the pages
            that list them, but not its manifest.
        array_count: The number of arrays.
        array_bytes: Bytes of all arrays.

    Example:
        >>> import ckptstore, numpy as np
        >>> repo = ckptstore.init("memory://checkpoint-example")
        >>> checkpoint = repo.commit({"weight": np.arange(4)}, step=100, metrics={"loss": 0.5})
        >>> checkpoint.step, checkpoint.metrics["loss"], checkpoint.array_bytes
        (100, 0.5, 32)
        >>> [(array.path, array.shape) for array in checkpoint.arrays]
        [('weight', (4,))]
        >>> checkpoint.array("weight")[1:3]
        array([1, 2])
    """

    id: Digest
    step: int | None
    metrics: Mapping[str, int | float]
    parents: tuple[Digest, ...]
    branch: str | None
    message: str
    created: datetime
    meta: Mapping[str, Any]
    notes: tuple[Annotation, ...]
    expired: bool
    new_bytes: int
    array_count: int
    array_bytes: int
    _manifest: Manifest = field(compare=False)
    _catalog: Catalog = field(compare=False)
    _judge: Callable[[Digest], tuple[Reason, ...]] = field(compare=False)
    _seed_of: Callable[[Digest], Digest | None] = field(compare=False)
    # Created with the first array and kept, because it reads the structure.
    _openers: list[ArrayOpener] = field(default_factory=list, compare=False)

    def __repr__(self) -> str:
        facts = [f"Checkpoint({self.id.short}", f"step={self.step}", f"branch={self.branch!r}"]
        return ", ".join([*facts, *(["expired=True"] if self.expired else [])]) + ")"

    @classmethod
    def of(
        cls,
        id: Digest,
        manifest: Manifest,
        catalog: Catalog,
        notes: tuple[Note, ...] = (),
        *,
        judge: Callable[[Digest], tuple[Reason, ...]] = lambda id: (),
        seed_of: Callable[[Digest], Digest | None] = lambda id: None,
        expired: bool | None = None,
    ) -> Checkpoint:
        """The checkpoint of a manifest and the notes on it.

        judge: returns why it is kept. seed_of: returns what its branch was started from. expired:
        whether it has; None to look.
        """
        return cls(
            id=id,
            step=manifest.step,
            metrics=overlaid(manifest.metrics, notes),
            parents=manifest.parents,
            branch=manifest.branch,
            message=manifest.message,
            created=utc(manifest.created),
            meta=deepcopy(dict(manifest.meta)),  # the catalog shares its manifests
            notes=tuple(map(Annotation.of, notes)),
            expired=catalog.is_expired(id) if expired is None else expired,
            new_bytes=manifest.new_bytes,
            array_count=sum(ref.arrays for ref in manifest.refs),
            array_bytes=manifest.array_bytes,
            _manifest=manifest,
            _catalog=catalog,
            _judge=judge,
            _seed_of=seed_of,
        )

    @property
    def repository_url(self) -> str:
        """The URL with which `ckptstore.open` opens its repository."""
        return self._catalog.url

    @property
    def seed(self) -> Digest | None:
        """The id of the checkpoint that its branch was started from; None if it began empty.

        This is the source of a derived checkpoint, and what a fine-tuning began with. Its branch is
        the one that it was committed on. Found on each access by its history.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> pretrained = repo.commit({"w": 1}, branch="pretrain")
            >>> _ = repo.branch("task", "pretrain")
            >>> for step in range(3):
            ...     tuned = repo.commit({"w": step}, branch="task", step=step)
            >>> tuned.seed == pretrained.id, pretrained.seed
            (True, None)
        """
        return self._seed_of(self.id)

    @property
    def why(self) -> tuple[Reason, ...]:
        """The reasons why a gc by the saved policies keeps it, or not. See `Repository.why`."""
        return self._judge(self.id)

    @property
    def expiry(self) -> str:
        """When, by whose gc and by which policy it expired; "" if unknown or not expired.

        Read from the repository on each access.
        """
        return str(self._catalog.expiry(self.id) or "") if self.expired else ""

    @property
    def arrays(self) -> tuple[ArrayInfo, ...]:
        """All arrays in path order, read from the repository on each access.

        Raises:
            ExpiredError: The checkpoint has expired.
            CorruptError: A page is missing or damaged.
        """
        from ckptstore.zarr.encoded_entries import encoded_entries

        with self._catalog.reading(self.id):
            infos = [
                ArrayInfo.of(entry)
                for page in self._catalog.pages(self._manifest)
                for entry in page.entries
            ]
            encoded = encoded_entries(self._manifest, self._catalog).values()
        return tuple(sorted([*infos, *map(ArrayInfo.of_encoded, encoded)], key=_path))

    def array(
        self, path: str, *, framework: str | None = None, bytes_max: int | None = None
    ) -> IndexedArray:
        """One array, read lazily: indexing reads only the chunks that it needs.

        Args:
            path: The path of the array, such as "model/wte.weight".
            framework: The kind of array that indexing returns, "torch" or "numpy"; by default that
                which was committed.
            bytes_max: The most bytes that an array which was committed through Zarr may take; see
                `Repository.checkout`.

        Returns:
            An array with `shape`, `dtype` and basic indexing.

        Raises:
            NotFoundError: There is no such array; the message names similar paths.
            ExpiredError: The checkpoint has expired.
            InvalidInputError: The framework is unknown, or has no such dtype.
        """
        from ckptstore.checkout.opener import ArrayOpener

        self._catalog.refuse_expired(self.id)
        if bytes_max is not None:
            opener = ArrayOpener(self.id, self._manifest, self._catalog, bytes_max=bytes_max)
            return opener.named(path, framework)
        if not self._openers:
            self._openers.append(ArrayOpener(self.id, self._manifest, self._catalog))
        return self._openers[0].named(path, framework)

    def zarr(self) -> zarr.Group:
        """The checkpoint as a read-only Zarr group, whose arrays are read lazily.

        Its attributes are the checkpoint's id, step, metrics, message and time. zarr-python, dask
        and xarray can open its store. See docs/adr/0016.

        Raises:
            NotFoundError: The checkpoint is a single array, which `array` reads.
            ExpiredError: The checkpoint has expired.
            CorruptError: The root of the hierarchy cannot be read.
        """
        from ckptstore.zarr.store import CheckpointStore, open_group

        return open_group(CheckpointStore.of(self.id, self._catalog))

    def zarr_values(self) -> ZarrValues | None:
        """The Zarr hierarchy of a checkpoint that has one, for `formats.write_file`.

        Returns:
            The hierarchy, value by value as it was set; None for a checkpoint of a state alone.

        Raises:
            ExpiredError: The checkpoint has expired.
        """
        if self._manifest.hierarchy is None:
            return None
        from ckptstore.zarr.contents import ZarrValues

        self._catalog.refuse_expired(self.id)
        return ZarrValues(self.id, self._manifest, self._catalog)

    @property
    def names(self) -> tuple[str | int, ...]:
        """The keys of the state's outermost dict, in order; empty if the state is not a dict.

        Read from the repository on each access.

        Raises:
            ExpiredError: The checkpoint has expired.
            CorruptError: The structure is missing or damaged.
        """
        from ckptstore.state.tree import keys

        return tuple(keys(self._structure()))

    @property
    def values(self) -> dict[str, object]:
        """All plain values (learning rate, step, …) by path.

        A value of a registered type that holds arrays is shown in its plain form, with an object in
        place of each array that prints as <array>. Read from the repository on each access.

        Raises:
            ExpiredError: The checkpoint has expired.
            CorruptError: The structure is missing or damaged.
        """
        from ckptstore.arrays import codecs
        from ckptstore.documents.nodes import ArrayNode
        from ckptstore.state.tree import leaves, plain

        return {
            path: plain(node, decode=codecs.decode)
            for path, node in leaves(self._structure())
            if not isinstance(node, ArrayNode)
        }

    def _structure(self) -> Node:
        with self._catalog.reading(self.id):
            root: Node = self._catalog.structure(self._manifest)
            return root
