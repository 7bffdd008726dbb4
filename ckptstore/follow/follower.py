"""Follow: a model kept at the newest checkpoint of a branch while somebody else trains it.

An update compares digests with those of the update before, and reads the chunks that differ and nothing else. All of it is
read and checked before anything changes; then it is copied into the model while nobody reads that. So a model never
holds a part of a checkpoint, and an update that fails leaves it as it was.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays import source as arrays
from ckptstore.checkout.checkout import fresh
from ckptstore.checkout.opener import ArrayOpener
from ckptstore.checkout.placement import place
from ckptstore.documents.structure import array_path, tag_of
from ckptstore.errors import (
    CheckoutMismatchError,
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    shown,
)
from ckptstore.follow.refill import (
    CountedObjects,
    Fill,
    Memory,
    changes_of,
    copy_all,
    hand_over,
    holders,
    loads_of,
    place_of,
    read_changes,
)
from ckptstore.follow.rwlock import Gate
from ckptstore.history import ancestors, first_parents
from ckptstore.python_gc import paused_collector
from ckptstore.state import tree as state
from ckptstore.state.selection import Selection
from ckptstore.state.tree import WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ckptstore.checkout.placement import Placement
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import ArrayEntry, Page
    from ckptstore.documents.structure import Node
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.objects import ObjectStore
    from ckptstore.store.oplog import Oplog

    Patterns = str | Sequence[str] | None
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
        self._gate = Gate()
        self._memory = Memory()

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
        held = list(holders(model, {}))
        keys = [place_of(holder) for holder in held if arrays.is_array(holder)]
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
        manifest, objects = self._catalog.manifest(id), CountedObjects(self._objects)
        memory = Memory() if full else self._memory
        with paused_collector():
            root, path = choice.of(self._catalog.structure(manifest), model)
            pages = self._pages(manifest, root)
            opener = ArrayOpener(id, manifest, self._catalog)
            entries: dict[str, ArrayEntry] = {**opener.encoded_entries()}
            entries |= {entry.path: entry for page in pages for entry in page.entries}
            placement = place(root, arrays.in_place(model), entries, path=path)
        _refuse_misfit(placement, model, entries, is_whole=choice.selection.is_everything)
        fills = [Fill(path, target, entries[path]) for path, target in placement.targets.items()]
        loads = loads_of(placement, model, entries)
        changes = changes_of(fills, memory)
        staged = read_changes(changes, pages, objects)
        new = [load for load in loads if not memory.was_handed(load)]
        handed = [(load, fresh(load.node, pages, objects=objects, opener=opener)) for load in new]
        may_undo = any(load.may_refuse and not load.is_own for load in new)
        before = [(change, change.copy()) for change in changes] if may_undo else []
        with self._gate.writing():
            self._memory.forget(keys=(), owners=[load.owner for load in new])
            hand_over(load for load in handed if load[0].is_own)  # one that refuses does so first
            self._memory.forget(keys=[change.fill.key for change in changes], owners=())
            try:
                copy_all(staged)
                others = [load for load in handed if not load[0].is_own]
                hand_over(sorted(others, key=lambda load: not load[0].may_refuse))
            except BaseException:  # back where something refused, on where only copying was cut off
                copy_all(before or staged)
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
