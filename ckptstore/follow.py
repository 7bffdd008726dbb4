"""Follow: a model kept at the newest checkpoint of a branch while somebody else trains it.

An update compares digests with those of the update before, and reads the chunks that differ and nothing else. All of it is
read and checked before anything changes; then it is copied into the model while nobody reads that. So a model never
holds a part of a checkpoint, and an update that fails leaves it as it was.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ckptstore import arrays, state
from ckptstore.checkout import fresh
from ckptstore.collector import paused_collector
from ckptstore.errors import (
    CheckoutMismatchError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    shown,
)
from ckptstore.format.chunks import Chunk, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.structure import array_path
from ckptstore.history import first_parents
from ckptstore.parallel import gather
from ckptstore.placement import place
from ckptstore.state import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.catalog import Catalog
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.format.manifest import Manifest
    from ckptstore.format.page import ArrayEntry, Bundle
    from ckptstore.format.structure import Node
    from ckptstore.objects import ObjectStore
    from ckptstore.oplog import Oplog
    from ckptstore.placement import Placement

READ_THREADS = 4
ATTEMPTS = 5  # at a newest checkpoint that gc gives up while it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update did: arrays and values that changed, and bytes of arrays that were read for it.

    whole_bytes: what a checkout of the same part reads.
    """

    checkpoint: Checkpoint
    changed: tuple[str, ...]
    read_bytes: int
    whole_bytes: int


class Follower:
    """Follows one branch. Made by `Repository.follow`; safe to use from several threads."""

    def __init__(
        self,
        branch: str,
        *,
        oplog: Oplog,
        catalog: Catalog,
        objects: ObjectStore,
        checkpoint: Callable[[Digest, Manifest], Checkpoint],
        poll_seconds: float,
    ) -> None:
        if not 0 < poll_seconds < threading.TIMEOUT_MAX:
            raise InvalidInputError(
                f"poll_seconds is {shown(poll_seconds)}; a number of seconds above 0 is expected."
            )
        self.branch = branch
        self._oplog, self._catalog, self._objects = oplog, catalog, objects
        self._checkpoint, self._poll_seconds = checkpoint, poll_seconds
        self._closed = threading.Event()
        self._seen: Digest | None = None
        self._saw_none = False
        self._waiting: deque[Digest] = deque()
        self._looking = threading.Lock()
        self._updating = threading.Lock()
        self._gate = _Gate()
        self._holds = _Holds()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Checkpoint]:
        """Each new checkpoint of the branch, beginning with the newest there is, until `close`."""
        while (found := self.wait()) is not None:
            yield found

    def poll(self) -> Checkpoint | None:
        """The next checkpoint that was not given yet, or None; this never waits."""
        with self._looking:
            self._look()
            while self._waiting:
                id = self._waiting.popleft()
                if not self._catalog.is_expired(id):
                    return self._checkpoint(id, self._catalog.manifest(id))
        return None

    def wait(self, timeout: float | None = None) -> Checkpoint | None:
        """The next checkpoint that was not given yet; None after `timeout` seconds, or once the follower was closed."""
        end = None if timeout is None else time.monotonic() + timeout
        while not self._closed.is_set():
            found = self.poll()
            if found is not None:
                return found
            left = (
                self._poll_seconds
                if end is None
                else min(self._poll_seconds, end - time.monotonic())
            )
            if left <= 0:
                return None
            self._closed.wait(left)
        return None

    def close(self) -> None:
        """End every wait, also of other threads. Updates go on to work."""
        self._closed.set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While this is held, no update changes a model. Several threads may hold it at once; do not update inside it."""
        with self._gate.reading():
            yield

    def update(self, model: Any, *, part: str | None = None, full: bool = False) -> Update | None:
        """Bring a model to the newest checkpoint of the branch; None while there is none.

        model: an nn.Module, or a nest as `Repository.checkout(into=)` fills it; its arrays stay where they are in memory.
        part: the name in the outermost dict of what goes into it; None takes "model" for a module where there is such a
        name, else everything. The first update reads everything, the next what differs from the one before. Who changes
        the model in between calls `forget`, or passes full=True.
        CheckoutMismatchError lists every difference in names, shapes and dtypes; then, as after any error, nothing has
        changed. Takes memory for what is read.
        """
        with self._updating:
            for attempt in range(ATTEMPTS):
                head = self._oplog.newest().heads.get(self.branch)
                if head is None:
                    return None
                try:
                    return self._bring(model, head, part=part, full=full)
                except (CorruptError, NotFoundError, ExpiredError):
                    if attempt == ATTEMPTS - 1 or not self._catalog.is_expired(head):
                        raise
        return None

    def forget(self, model: Any) -> None:
        """Forget what a model holds: the next update reads everything."""
        self._holds.forget(model)

    def _look(self) -> None:
        """Find what is new on the branch; of a branch that was moved elsewhere only its head is."""
        head = self._oplog.newest().heads.get(self.branch)
        if head is None:
            self._saw_none = True  # so whatever comes is new
        if head is None or head == self._seen:
            return
        new: list[Digest] = []
        for id, _ in first_parents(head, self._manifest):
            if id == self._seen:
                break
            new.append(id)
            if self._seen is None and not self._saw_none:
                break
        else:
            new = new if self._seen is None else [head]
        self._waiting.extend(reversed(new))
        self._seen = head

    def _manifest(self, id: Digest) -> Manifest | None:
        try:
            return self._catalog.manifest(id)
        except NotFoundError:
            return None

    def _bring(self, model: Any, id: Digest, *, part: str | None, full: bool) -> Update:
        """Read what a checkpoint has that a model does not hold, then change the model."""
        manifest = self._catalog.manifest(id)
        held = None if full else self._holds.of(model)
        with paused_collector():
            whole = self._catalog.structure(manifest)
            name = _name_of_part(whole, model, part)
            root = whole if name is None else state.part(whole, name)
            entries, bundles = self._arrays(manifest)
            placement = place(
                root,
                arrays.in_place(model),
                entries,
                path="" if name is None else state.path_of(name),
            )
        if placement.incompatible:
            raise CheckoutMismatchError(
                f"The checkpoint does not fit: {placement.incompatible}. Nothing was changed.",
                placement.incompatible,
            )
        before = held.entries if held else {}
        changes = list(_changes(placement.targets, entries, bundles, before))
        staged = gather(
            [partial(change.read, self._objects) for change in changes], threads=READ_THREADS
        )
        loads = self._loads(placement, manifest, entries, held)
        with self._gate.writing():
            self._holds.forget(
                model
            )  # whatever happens now, nobody knows what it holds until all is done
            for change, data in zip(changes, staged, strict=True):
                arrays.copy_chunk(change.target, change.chunk, data)
            for _, assign, value in loads:
                assign(value)
            now = _Held(structure=manifest.structure, entries=entries)
            self._holds.remember(model, now)
        changed = dict.fromkeys(change.path for change in changes)
        return Update(
            checkpoint=self._checkpoint(id, manifest),
            changed=tuple(changed),
            read_bytes=sum(change.chunk.size for change in changes)
            + sum(_bytes_of(node, entries) for node, _, _ in loads),
            whole_bytes=_whole_bytes(placement.targets, entries)
            + sum(_bytes_of(node, entries) for node, _ in placement.loads),
        )

    def _arrays(self, manifest: Manifest) -> tuple[dict[str, ArrayEntry], dict[str, Bundle | None]]:
        """Every array of a checkpoint by its path, and the bundle that it lies in."""
        entries: dict[str, ArrayEntry] = {}
        bundles: dict[str, Bundle | None] = {}
        for page in self._catalog.pages(manifest):
            for entry in page.entries:
                entries[entry.path], bundles[entry.path] = entry, page.bundle
        return entries, bundles

    def _loads(
        self,
        placement: Placement,
        manifest: Manifest,
        entries: Mapping[str, ArrayEntry],
        held: _Held | None,
    ) -> list[tuple[Node, Callable[[Any], object], Any]]:
        """What is handed over whole (plain values, optimizers), built; what is the same as before is left out."""
        is_same = held is not None and held.structure == manifest.structure
        loads = []
        for node, assign in placement.loads:
            paths = _paths(node)
            if (
                held is None
                or not is_same
                or any(held.entries.get(path) != entries.get(path) for path in paths)
            ):
                pages = list(self._catalog.pages(manifest)) if paths else []
                loads.append((node, assign, fresh(node, pages, objects=self._objects)))
        return loads


def _name_of_part(root: Node, model: object, name: str | None) -> str | None:
    """The part of a structure that goes into a model; None for the whole."""
    if name is None and arrays.is_module(model) and WEIGHTS in state.entries(root):
        return WEIGHTS
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What a model was last brought to."""

    structure: Digest
    entries: Mapping[str, ArrayEntry]


@dataclass(slots=True)
class _Holds:
    """What each model holds; a model that is gone is forgotten."""

    _weak: weakref.WeakKeyDictionary[Any, _Held] = field(default_factory=weakref.WeakKeyDictionary)
    _strong: dict[int, tuple[Any, _Held]] = field(default_factory=dict)

    def of(self, model: Any) -> _Held | None:
        if arrays.is_module(model):
            return self._weak.get(model)
        return self._strong.get(id(model), (None, None))[1]

    def remember(self, model: Any, held: _Held) -> None:
        if arrays.is_module(model):
            self._weak[model] = held
        else:
            self._strong[id(model)] = model, held

    def forget(self, model: Any) -> None:
        if arrays.is_module(model):
            self._weak.pop(model, None)
        else:
            self._strong.pop(id(model), None)


@dataclass(frozen=True, slots=True)
class _Change:
    """Bytes to read, and where they go. bundle: the object they are a part of, from `start` on."""

    path: str
    target: Any
    chunk: Chunk
    digest: Digest
    bundle: Bundle | None = None
    start: int = 0

    def read(self, objects: ObjectStore) -> memoryview:
        """The checked bytes."""
        data = memoryview(bytearray(self.chunk.size))
        if self.bundle:
            objects.read_range(self.bundle.digest, data, start=self.start, expected=self.digest)
        else:
            objects.read_into(self.digest, data)
        return data


def _changes(
    targets: Mapping[str, Any],
    entries: Mapping[str, ArrayEntry],
    bundles: Mapping[str, Bundle | None],
    before: Mapping[str, ArrayEntry],
) -> Iterator[_Change]:
    """The chunks of what goes into a model that differ from what it holds."""
    seen: set[int] = set()
    for path, target in targets.items():
        new, old = entries[path], before.get(path)
        is_alike = old is not None and (old.dtype, old.shape, old.chunk_shape) == (
            new.dtype,
            new.shape,
            new.chunk_shape,
        )
        if id(target) in seen or (is_alike and old is not None and old.digests == new.digests):
            continue
        seen.add(id(target))  # a tied name is the same memory, with the same digests
        if new.offset is not None:
            everything = tuple(slice(0, length) for length in new.shape)
            whole = Chunk(0, new.nbytes, everything)
            yield _Change(path, target, whole, new.digests[0], bundles[path], new.offset)
            continue
        held = old.digests if is_alike and old is not None else (None,) * len(new.digests)
        grid = chunks(new.shape, new.chunk_shape, item_bytes=ITEM_BYTES[new.dtype])
        for digest, known, chunk in zip(new.digests, held, grid, strict=True):
            if digest != known:
                yield _Change(path, target, chunk, digest)


def _whole_bytes(targets: Mapping[str, Any], entries: Mapping[str, ArrayEntry]) -> int:
    """Bytes of all that is filled in place; tied names count once."""
    return sum({id(target): entries[path].nbytes for path, target in targets.items()}.values())


def _paths(node: Node) -> list[str]:
    found = (array_path(leaf) for _, leaf in state.leaves(node))
    return [path for path in found if path is not None]


def _bytes_of(node: Node, entries: Mapping[str, ArrayEntry]) -> int:
    return sum(entries[path].nbytes for path in _paths(node))


class _Gate:
    """Many may read or one may write; who wants to write comes before those who want to read after that."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._is_written = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it together with others who read."""
        with self._changed:
            while self._is_written:
                self._changed.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold it alone."""
        with self._changed:
            while self._is_written:
                self._changed.wait()
            self._is_written = True  # from here on nobody begins to read
            while self._readers:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._is_written = False
                self._changed.notify_all()
