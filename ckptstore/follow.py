"""Follow: a model kept at the newest checkpoint of a branch while somebody else trains it.

An update compares digests with those of the update before, and reads the chunks that differ and nothing else. All of it is
read and checked before anything changes; then it is copied into the model while nobody reads that. So a model never
holds a part of a checkpoint, and an update that fails leaves it as it was.

What an array holds is remembered by where it lies in memory, and for as long as that memory lives: what was put in its
place holds nothing, whichever model it belongs to.
"""

from __future__ import annotations

import threading
import time
import weakref
from bisect import bisect_right
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ckptstore import arrays, state
from ckptstore.array_opener import ArrayOpener
from ckptstore.checkout import fresh
from ckptstore.collector import paused_collector
from ckptstore.errors import (
    CheckoutMismatchError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    UnsupportedValueError,
    shown,
)
from ckptstore.format.chunks import Chunk, chunks
from ckptstore.format.dtypes import ITEM_BYTES
from ckptstore.format.structure import array_path, tag_of
from ckptstore.history import ancestors, first_parents
from ckptstore.objects import ObjectStore
from ckptstore.parallel import gather
from ckptstore.placement import place
from ckptstore.reader import read_bundle
from ckptstore.selection import Selection
from ckptstore.state import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ckptstore.catalog import Catalog
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.format.manifest import Manifest
    from ckptstore.format.page import ArrayEntry, Bundle, Page
    from ckptstore.format.structure import Node
    from ckptstore.oplog import Oplog
    from ckptstore.placement import Placement

    Patterns = str | Sequence[str] | None
READ_THREADS = 4
ATTEMPTS = 5  # at a newest checkpoint that gc gives up while it is read


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What an update did.

    changed: the paths of the arrays that were read. read_bytes: bytes of arrays that came from the storage for it; small
    arrays may bring others of their bundle with them. whole_bytes: bytes of all the arrays that go into the model.
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
        is_number = isinstance(poll_seconds, int | float)
        if not is_number or not 0 < poll_seconds < threading.TIMEOUT_MAX:
            raise InvalidInputError(
                f"poll_seconds is {shown(poll_seconds)}; a number of seconds above 0 is expected."
            )
        self.branch = branch
        self._oplog, self._catalog, self._objects = oplog, catalog, objects
        self._checkpoint, self._poll_seconds = checkpoint, poll_seconds
        self._closed = threading.Event()
        self._seen: Digest | None = None
        self._others: tuple[Digest, ...] | None = None
        self._waiting: deque[Digest] = deque()
        self._looking = threading.Lock()
        self._updating = threading.Lock()
        self._gate = _Gate()
        self._memory = _Memory()

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
        """While this is held, no update changes a model. Several threads may hold it at once, each more than once.

        On a GPU it covers what was queued on the stream that updates copy on (the default one); before leaving it,
        synchronize any other.
        """
        with self._gate.reading():
            yield

    def update(
        self,
        model: Any,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        part: str | None = None,
        full: bool = False,
    ) -> Update | None:
        """Bring a model to the newest checkpoint of the branch; None while there is none.

        model: an nn.Module, or a nest as `Repository.checkout(into=)` fills it; its arrays stay where they are in memory.
        include, exclude: globs over the checkpoint's paths, as checkout takes them. part: the name in the outermost dict
        of what goes into the model; None takes "model" for a module where there is such a name, else everything.
        The first update reads everything, the next what differs from what the one before brought to the same memory. Who
        changes that in between calls `forget`, or passes full=True. Plain values that a module has no place for are left
        out. Takes memory for what is read; for a module that computes some of its state, also for what was there before.
        CheckoutMismatchError lists every difference in names, shapes and dtypes; then, as after any error, the arrays
        are as they were. Not inside `reading`, which would wait for itself.
        """
        if self._gate.is_mine():
            raise InvalidInputError(
                "This thread is reading() and would wait for itself. Update after that."
            )
        choice = _Choice(selection=Selection.of(include, exclude), part=part)
        with self._updating:
            failed: Exception | None = None
            for _ in range(ATTEMPTS):
                head = self._oplog.newest().heads.get(self.branch)
                if head is None:
                    return None
                try:
                    return self._bring(model, head, choice, full=full)
                except (CorruptError, NotFoundError, ExpiredError) as error:
                    if not self._catalog.is_expired(head):
                        raise
                    failed = error
        raise ExpiredError(
            f"The newest checkpoint of {self.branch!r} expired while it was read, {ATTEMPTS} times in a row. "
            "Keep more of them, or collect less often."
        ) from failed

    def forget(self, model: Any) -> None:
        """Forget what a model holds: the next update reads everything."""
        held = list(_holders(model, {}))
        keys = [_place_of(holder) for holder in held if arrays.is_array(holder)]
        self._memory.forget(keys=keys, owners=held)

    def _look(self) -> None:
        """Find what is new on the branch; of a branch that was moved elsewhere only its head is."""
        newest = self._oplog.newest()
        head = newest.heads.get(self.branch)
        if head is None:
            self._others = tuple(newest.refs.values())  # what they do not reach is new
        if head is None or head == self._seen:
            return
        if self._seen is not None:
            known = {self._seen}
        elif self._others is not None:
            known = {id for id, _ in ancestors(self._others, self._manifest)}
        else:
            known = set(self._catalog.manifest(head).parents[:1])
        new: list[Digest] = []
        for id, _ in first_parents(head, self._manifest):
            if id in known:
                break
            new.append(id)
        else:
            new = [head] if self._seen is not None else new
        self._waiting.extend(reversed(new or [head]))
        self._seen = head

    def _manifest(self, id: Digest) -> Manifest | None:
        try:
            return self._catalog.manifest(id)
        except NotFoundError:
            return None

    def _bring(self, model: Any, id: Digest, choice: _Choice, *, full: bool) -> Update:
        """Read what a checkpoint has that a model does not hold, then change the model."""
        manifest, objects = self._catalog.manifest(id), _CountedObjects(self._objects)
        memory = _Memory() if full else self._memory
        with paused_collector():
            root, path = choice.of(self._catalog.structure(manifest), model)
            pages = self._pages(manifest, root)
            opener = ArrayOpener(id, manifest, self._catalog)
            entries: dict[str, ArrayEntry] = {**opener.encoded_entries()}
            entries |= {entry.path: entry for page in pages for entry in page.entries}
            placement = place(root, arrays.in_place(model), entries, path=path)
        _refuse_misfit(placement, model, entries, is_whole=choice.selection.is_everything)
        fills = [_Fill(path, target, entries[path]) for path, target in placement.targets.items()]
        loads = _loads(placement, model, entries)
        changes = _changes(fills, memory)
        staged = _read(changes, pages, objects)
        new = [load for load in loads if not memory.was_handed(load)]
        handed = [(load, fresh(load.node, pages, objects=objects, opener=opener)) for load in new]
        may_undo = any(load.may_refuse and not load.is_own for load in new)
        before = [(change, change.copy()) for change in changes] if may_undo else []
        with self._gate.writing():
            self._memory.forget(keys=(), owners=[load.owner for load in new])
            _hand_over(load for load in handed if load[0].is_own)  # one that refuses does so first
            self._memory.forget(keys=[change.fill.key for change in changes], owners=())
            try:
                _copy_all(staged)
                _hand_over(load for load in handed if not load[0].is_own)
            except BaseException:  # back where something refused, on where only copying was cut off
                _copy_all(before or staged)
                raise
            self._memory.remember([change.fill for change in changes], loads)
        changed = [
            *(change.fill.path for change in changes),
            *chain.from_iterable(load.paths for load in new),
        ]
        wholes = {fill.key: fill.entry.nbytes for fill in fills}
        return Update(
            checkpoint=self._checkpoint(id, manifest),
            changed=tuple(dict.fromkeys(changed)),
            read_bytes=sum(objects.read_bytes),
            whole_bytes=sum(wholes.values()) + sum(load.nbytes for load in loads),
        )

    def _pages(self, manifest: Manifest, root: Node) -> list[Page]:
        """The pages that list the arrays of a structure, and no others."""
        firsts = [ref.first for ref in manifest.pages]
        nodes = (node for _, node in state.leaves(root) if array_path(node) is not None)
        names = chain.from_iterable({node[tag_of(node)], node.get("tied", "")} for node in nodes)
        chosen = {bisect_right(firsts, name) - 1 for name in names} - {-1}
        refs = tuple(manifest.pages[position] for position in sorted(chosen))
        return list(self._catalog.pages(replace(manifest, pages=refs)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """What of a checkpoint goes into a model."""

    selection: Selection
    part: str | None

    def of(self, root: Node, model: object) -> tuple[Node, str]:
        """The structure of what is chosen, and where it lies in the whole."""
        if not self.selection.is_everything:
            root = state.select(root, self.selection)
            if root is state.NOTHING:
                raise InvalidInputError(f"Nothing in the checkpoint is chosen by {self.selection}.")
        name = self.part
        if name is None and arrays.is_module(model) and WEIGHTS in state.entries(root):
            name = WEIGHTS
        return (root, "") if name is None else (state.part(root, name), state.path_of(name))


def _refuse_misfit(
    placement: Placement, model: object, entries: Mapping[str, ArrayEntry], *, is_whole: bool
) -> None:
    """Raise when a checkpoint does not fit; plain values that a module has no place for do not count."""
    found = placement.incompatible
    if not is_whole:
        found = replace(found, missing=())
    if arrays.is_module(model):
        arrays_only = tuple(name for name in found.unexpected if name in entries)
        found = replace(found, unexpected=arrays_only)
    if found:
        raise CheckoutMismatchError(
            f"The checkpoint does not fit: {found}. Nothing was changed.", found
        )


@dataclass(slots=True, eq=False)
class _Fill:
    """An array of a model, and what of a checkpoint goes into it. key: where the array lies in memory."""

    path: str
    target: Any
    entry: ArrayEntry
    key: object = None

    def __post_init__(self) -> None:
        self.key = _place_of(self.target) or id(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """Bytes to read, and where they go."""

    fill: _Fill
    chunk: Chunk
    digest: Digest

    @property
    def is_small(self) -> bool:
        """True for an array that lies in a bundle."""
        return self.fill.entry.offset is not None

    def read(self, objects: ObjectStore) -> list[tuple[_Change, memoryview]]:
        """The checked bytes of a chunk."""
        data = self._buffer()
        objects.read_into(self.digest, data)
        return [(self, data)]

    def copy(self) -> memoryview:
        """The bytes that are there now."""
        data, target = self._buffer(), self.fill.target
        target = target if arrays.is_ndarray(target) else target.detach()
        arrays.copy_out(target[self.chunk.index] if self.chunk.index else target, data)
        return data

    def _buffer(self) -> memoryview:
        return arrays.allocate(arrays.NDARRAY, "uint8", (self.chunk.size,))[1]


def _changes(fills: Iterable[_Fill], memory: _Memory) -> list[_Change]:
    """The chunks of what goes into a model that differ from what it holds; tied arrays are the same memory."""
    filled: dict[object, ArrayEntry] = {}
    changes: list[_Change] = []
    for fill in fills:
        new = fill.entry
        first = filled.setdefault(fill.key, new)
        if first is not new and first.digests == new.digests:
            continue
        held = memory.entry(fill.key) if first is new else None
        if held is not None and held.chunk_shape != new.chunk_shape:
            held = None
        if held is not None and held.digests == new.digests:
            continue
        if new.offset is not None:
            everything = tuple(slice(0, length) for length in new.shape)
            changes.append(_Change(fill, Chunk(0, new.nbytes, everything), new.digests[0]))
            continue
        known = (None,) * len(new.digests) if held is None else held.digests
        grid = chunks(new.shape, new.chunk_shape, item_bytes=ITEM_BYTES[new.dtype])
        changes += [
            _Change(fill, chunk, digest)
            for digest, old, chunk in zip(new.digests, known, grid, strict=True)
            if digest != old
        ]
    return changes


def _read(
    changes: Iterable[_Change], pages: Iterable[Page], objects: ObjectStore
) -> list[tuple[_Change, memoryview]]:
    """The checked bytes of all changes; small arrays of a page come together where most of its bundle is wanted."""
    small: dict[str, _Change] = {}
    jobs = []
    for change in changes:
        if change.is_small:
            small[change.fill.path] = change
        else:
            jobs.append(partial(change.read, objects))
    for page in pages:
        found = [small[entry.path] for entry in page.entries if entry.path in small]
        if found and page.bundle:
            jobs.append(partial(_read_small, page.bundle, found, objects))
    return list(chain.from_iterable(gather(jobs, threads=READ_THREADS)))


def _read_small(
    bundle: Bundle, changes: list[_Change], objects: ObjectStore
) -> list[tuple[_Change, memoryview]]:
    found = read_bundle(bundle, [change.fill.entry for change in changes], objects)
    return [(change, data) for change, (_, data) in zip(changes, found, strict=True)]


def _copy_all(staged: Iterable[tuple[_Change, memoryview]]) -> None:
    for change, data in staged:
        arrays.copy_chunk(change.fill.target, change.chunk, data)


class _CountedObjects(ObjectStore):
    """Objects, and the bytes of each read of them."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self.read_bytes: list[int] = []

    def read_into(self, digest: Digest, buffer: memoryview) -> None:
        """Read a whole object."""
        self._objects.read_into(digest, buffer)
        self.read_bytes.append(buffer.nbytes)

    def read_range(
        self, digest: Digest, buffer: memoryview, *, start: int, expected: Digest
    ) -> None:
        """Read a part of an object."""
        self._objects.read_range(digest, buffer, start=start, expected=expected)
        self.read_bytes.append(buffer.nbytes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Load:
    """What is handed over whole (plain values, optimizers), and to whom, where that can be told.

    content: equal for what is the same to the last bit; None for what holds no array, and costs nothing to hand over again.
    """

    node: Node
    assign: Callable[[Any], object]
    owner: object
    paths: tuple[str, ...]
    nbytes: int
    content: object

    @property
    def is_own(self) -> bool:
        """True for an object with a state of its own, such as an optimizer; it knows nothing of the arrays."""
        return hasattr(self.assign, "__self__")

    @property
    def may_refuse(self) -> bool:
        """True but for a value in a dict or list, which is only exchanged."""
        return not getattr(self.assign, "__qualname__", "").startswith("_setter")


def _hand_over(loads: Iterable[tuple[_Load, Any]]) -> None:
    """Give each object what is its own; its load_state_dict may refuse that in any way it likes."""
    for load, value in loads:
        try:
            load.assign(value)
        except Exception as error:
            raise InvalidInputError(
                f"A load_state_dict refused what the checkpoint holds for it ({type(error).__name__}: {error}). "
                "Arrays are as they were before."
            ) from error


def _loads(placement: Placement, model: object, entries: Mapping[str, ArrayEntry]) -> list[_Load]:
    """What is handed over."""
    loads = []
    for node, assign in placement.loads:
        paths = tuple(path for _, leaf in state.leaves(node) if (path := array_path(leaf)))
        unlisted = next((path for path in paths if path not in entries), None)
        if unlisted is not None:
            raise CorruptError(
                f"The structure names {unlisted!r:.200}, which no page lists. Run verify."
            )
        load = _Load(
            node=node,
            assign=assign,
            owner=getattr(assign, "__self__", model if arrays.is_module(model) else None),
            paths=paths,
            nbytes=sum(entries[path].nbytes for path in paths),
            content=(repr(node), *(entries[path].digests for path in paths)) if paths else None,
        )
        loads.append(load)
    return loads


class _Memory:
    """What arrays were filled with, by where they lie, and what objects were handed last; both weakly."""

    def __init__(self) -> None:
        self._filled: dict[object, tuple[Callable[[], bool], ArrayEntry]] = {}
        self._handed: dict[int, tuple[Callable[[], bool], set[object]]] = {}
        self._lock = threading.Lock()

    def entry(self, key: object) -> ArrayEntry | None:
        """What lies at this place in memory; None when nobody knows."""
        is_gone, entry = self._filled.get(key, (None, None))
        return None if is_gone is None or is_gone() else entry

    def was_handed(self, load: _Load) -> bool:
        """True when an object got just this from the last update that had anything for it."""
        is_gone, contents = self._handed.get(id(load.owner), (None, set()))
        return is_gone is not None and not is_gone() and load.content in contents

    def remember(self, fills: Iterable[_Fill], loads: Iterable[_Load]) -> None:
        """Remember what was filled and what was handed over, and let go of what is gone."""
        filled: dict[object, tuple[Callable[[], bool], ArrayEntry]] = {}
        handed: dict[int, tuple[Callable[[], bool], set[object]]] = {}
        disputed = set()  # memory that two arrays share and that got two different things
        for fill in fills:
            if (is_gone := _end_of(fill.target)) is not None:
                _, entry = filled.setdefault(fill.key, (is_gone, fill.entry))
                disputed |= {fill.key} if entry.digests != fill.entry.digests else set()
        for load in loads:
            if load.content is not None and (is_gone := _end_of(load.owner)) is not None:
                handed.setdefault(id(load.owner), (is_gone, set()))[1].add(load.content)
        with self._lock:
            self._filled = {key: held for key, held in self._filled.items() if not held[0]()}
            self._filled |= {key: held for key, held in filled.items() if key not in disputed}
            self._handed = {key: held for key, held in self._handed.items() if not held[0]()}
            self._handed |= handed

    def forget(self, *, keys: Iterable[object], owners: Iterable[object]) -> None:
        """Know nothing more of what lies at places in memory, and of objects."""
        with self._lock:
            for key in keys:
                self._filled.pop(key, None)
            for owner in owners:
                self._handed.pop(id(owner), None)


def _place_of(array: Any) -> object:
    """Equal for the same memory read in the same way, while that lives; None where that cannot be told."""
    try:
        source = arrays.describe_only(array)
    except UnsupportedValueError:
        return None
    return None if source is None else source.identity


def _end_of(holder: Any) -> Callable[[], bool] | None:
    """A function that tells whether something is gone: of a tensor its memory, which views share. None if that cannot be told."""
    if arrays.is_array(holder) and not arrays.is_ndarray(holder):
        if _place_of(holder) is None:
            return None
        reductions = import_module("torch.multiprocessing.reductions")
        expired: Callable[[], bool] = reductions.StorageWeakRef(holder.untyped_storage()).expired
        return expired
    try:
        found = weakref.ref(holder)
    except TypeError:
        return None
    return lambda: found() is None


def _holders(value: Any, seen: dict[int, object]) -> Iterator[Any]:
    """The arrays and objects of a model, which may hold itself."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if arrays.is_module(value):
        yield value
        named: Any = arrays.in_place(value)
        yield from _holders(value.state_dict(keep_vars=True) if named is value else named, seen)
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item, seen)
    else:
        yield value


class _Gate:
    """Many may read or one may write; who wants to write comes before those who begin to read after that."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers: Counter[int] = Counter()  # by thread
        self._is_written = False

    def is_mine(self) -> bool:
        """True while this thread reads."""
        with self._changed:
            return self._readers[threading.get_ident()] > 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold it together with others who read; a thread that does so already never waits."""
        reader = threading.get_ident()  # whoever ends it may be another thread
        with self._changed:
            while self._is_written and not self._readers[reader]:
                self._changed.wait()
            self._readers[reader] += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers[reader] -= 1
                self._readers += Counter()  # drops those that are at 0
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold it alone."""
        with self._changed:
            while self._is_written:
                self._changed.wait()
            self._is_written = True  # from here on no other thread begins to read
        try:
            with self._changed:
                while self._readers:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._is_written = False
                self._changed.notify_all()
