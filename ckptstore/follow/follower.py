"""Follower: a model kept at the newest checkpoint of a branch that another process trains.

An update compares digests with those of the update before, and reads the chunks that differ.
Everything is read and checked before anything changes; then it is copied into the model while no
reader uses that. See docs/adr/0015.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ckptstore.arrays.frameworks import is_model
from ckptstore.arrays.pytrees import is_pytree
from ckptstore.checkout.placement import misfit_error, place
from ckptstore.checkout.proposal import remedy
from ckptstore.checkout.stored_state import StoredState
from ckptstore.errors import (
    CorruptError,
    ExpiredError,
    InvalidInputError,
    NotFoundError,
    shown,
)
from ckptstore.follow.known import Known
from ckptstore.follow.refill import CountedObjects, Refill
from ckptstore.follow.rwlock import RWLock
from ckptstore.forks import free_in_child, renewed
from ckptstore.history import ancestors, first_parents, own_chain
from ckptstore.python_gc import paused_collector
from ckptstore.state.rename import Rename
from ckptstore.state.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from ckptstore.checkout.placement import Placement
    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.documents.entry import Entry
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import Incompatible
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.notes import Notes
    from ckptstore.store.oplog import Oplog

    Patterns = str | Sequence[str] | None
ATTEMPTS = 5  # at newest checkpoints that expire while they are read


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The result of an update.

    Attributes:
        checkpoint: The checkpoint that the model now holds.
        changed: The paths of the arrays that were read.
        read_bytes: Bytes of arrays that were read from the storage. Small arrays may bring others
            of their bundle with them.
        whole_bytes: Bytes of all arrays that go into the model.
    """

    checkpoint: Checkpoint
    changed: tuple[str, ...]
    read_bytes: int
    whole_bytes: int


class Follower:
    """A follower of one branch, made by `Repository.follow`; safe to use from several threads.

    Example:
        >>> import ckptstore, torch
        >>> repo = ckptstore.init("memory://")
        >>> model, served = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> _ = repo.commit({"model": model.state_dict()}, step=1)
        >>> follower = repo.follow("main")
        >>> update = follower.update(served)
        >>> update.checkpoint.step, update.read_bytes
        (1, 12)
        >>> follower.update(served).read_bytes
        0
    """

    def __init__(
        self,
        branch: str,
        *,
        oplog: Oplog,
        catalog: Catalog,
        notes: Notes,
        checkpoint: Callable[[Digest, Manifest], Checkpoint],
        unevaluated: str | None,
        poll_seconds: float,
        seen: Digest | None = None,
    ) -> None:
        is_number = isinstance(poll_seconds, int | float)
        if not is_number or not 0 < poll_seconds < threading.TIMEOUT_MAX:
            raise InvalidInputError(
                f"poll_seconds is {shown(poll_seconds)}; a number of seconds above 0 is expected."
            )
        self.branch = branch
        self._oplog, self._catalog, self._notes = oplog, catalog, notes
        self._unevaluated = unevaluated
        self._checkpoint, self._poll_seconds = checkpoint, poll_seconds
        self._closed = free_in_child(threading.Event())
        self._seen = seen
        self._others: tuple[Digest, ...] | None = None
        self._waiting: deque[Digest] = deque()
        self._looking = free_in_child(threading.Lock())
        self._updating = free_in_child(threading.Lock())
        self._lock = RWLock()
        self._memory = Known()
        renewed(self, Follower._doubt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Checkpoint]:
        """Yield each new checkpoint of the branch, beginning with its newest, until `close`."""
        while (checkpoint := self.wait()) is not None:
            yield checkpoint

    def poll(self) -> Checkpoint | None:
        """Return the next checkpoint that was not returned yet, or None; never wait.

        The first is the newest one of the branch, or the first that is committed to a branch that
        does not exist yet. With `unevaluated` it is the oldest one of the branch without that
        metric. Checkpoints that expired or were evaluated meanwhile are skipped. If the branch was
        moved elsewhere, only its head is new.
        """
        with self._looking:
            self._look()
            while self._waiting:
                id = self._waiting.popleft()
                if not self._catalog.is_expired(id):
                    checkpoint = self._checkpoint(id, self._catalog.manifest(id))
                    if self._unevaluated not in checkpoint.metrics:
                        return checkpoint
        return None

    def wait(self, timeout: float | None = None) -> Checkpoint | None:
        """Wait for the next checkpoint that was not returned yet.

        Args:
            timeout: Seconds to wait at most; None waits until there is one.

        Returns:
            The checkpoint, as `poll` does; None after the timeout, or once the follower is closed.

        Raises:
            InvalidInputError: The timeout is not a number of seconds.
        """
        if timeout is not None and (not isinstance(timeout, int | float) or timeout != timeout):
            raise InvalidInputError(f"timeout is {shown(timeout)}; seconds, or None, are expected.")
        end = None
        if timeout is not None:
            end = time.monotonic() + max(0, min(timeout, threading.TIMEOUT_MAX))
        while not self._closed.is_set():
            checkpoint = self.poll()
            if checkpoint is not None:
                return checkpoint
            seconds = self._poll_seconds
            if end is not None:
                seconds = min(seconds, end - time.monotonic())
            if seconds <= 0:
                return None
            self._closed.wait(seconds)
        return None

    def close(self) -> None:
        """End every wait, also those of other threads. Updates still work."""
        self._closed.set()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep updates from changing a model inside the block.

        Several threads may be inside at once, each more than once. On a GPU this covers work that
        was queued on the stream that updates copy on, which is the default one; synchronize any
        other stream before leaving the block.
        """
        with self._lock.reading():
            yield

    def update(
        self,
        model: Any,
        *,
        include: Patterns = None,
        exclude: Patterns = None,
        part: str | None = None,
        rename: Mapping[str, str] | None = None,
        full: bool = False,
    ) -> Update | None:
        """Bring a model to the newest checkpoint of the branch.

        The first update reads everything, later ones read what differs from what the update before
        copied to the same memory. This takes memory for what is read, and as much again for a
        module that computes some of its state. Plain values that a module has no place for are
        left out. On any error the arrays are as they were.

        Args:
            model: A destination as `Repository.checkout(into=)` takes it: an nn.Module, a Keras
                model or a nested structure. Its arrays keep their memory. Of JAX, what
                `ckptstore.integrations.jax.JaxState` has: `{**state}`, where unchanged arrays stay.
            include: Globs over the checkpoint's paths, as in `Repository.checkout`.
            exclude: Globs over paths to leave out.
            part: The key of the outermost dict whose value goes into the model. None takes "model"
                for a module where there is such a key, else everything.
            rename: New paths of what the globs choose, as in `Repository.checkout`.
            full: Whether to read everything, because the model may have been changed since the
                last update. `forget` does the same for the next update.

        Returns:
            The result, or None while the branch has no checkpoint.

        Raises:
            CheckoutMismatchError: The model does not fit. Lists every difference in names, shapes
                and dtypes.
            CorruptError: Something in the repository is damaged or missing.
            ExpiredError: The newest checkpoint expired while it was read, several times in a row.
            InvalidInputError: Called inside `reading`, where it would wait for itself, or a
                load_state_dict refused its state.
        """
        if self._lock.is_reading():
            raise InvalidInputError(
                "This thread is inside reading() and would wait for itself. Update after that."
            )
        if is_pytree(model):
            raise InvalidInputError(
                "A pytree of JAX cannot be changed. Keep it in a JaxState of "
                "ckptstore.integrations.jax, and pass {**state}."
            )
        selection, renames = Selection.of(include, exclude), Rename.of(rename)
        with self._updating:
            failed: Exception | None = None
            for _ in range(ATTEMPTS):
                head = self._oplog.newest().heads.get(self.branch)
                if head is None:
                    return None
                try:
                    return self._bring(model, head, selection, renames, part, full=full)
                except (CorruptError, NotFoundError, ExpiredError) as error:
                    if not self._catalog.is_expired(head):
                        raise
                    failed = error
        raise ExpiredError(
            f"The newest checkpoint of {self.branch!r} expired while it was read, {ATTEMPTS} times "
            "in a row. Keep more checkpoints, or collect less often."
        ) from failed

    def forget(self, model: Any) -> None:
        """Forget what a model holds, so that the next update reads everything.

        Args:
            model: A destination that was passed to `update`.
        """
        self._memory.forget_model(model)

    def _doubt(self) -> None:
        """Forget what all models hold: in a forked child, what they share with the parent changes.

        An update of another thread may also have ended in the middle.
        """
        self._memory = Known()

    def _look(self) -> None:
        """Find what is new on the branch."""
        newest = self._oplog.newest()
        self._notes.update(newest)
        head = newest.heads.get(self.branch)
        if head is None:
            self._others = tuple(newest.refs.values())  # what they do not reach is new
        if head is None or head == self._seen:
            return
        if self._seen is not None:
            known = {self._seen}
        elif self._others is not None:
            known = {id for id, _ in ancestors(self._others, self._catalog.lookup)}
        elif self._unevaluated is not None:
            own = own_chain(head, newest.claim_of(self.branch), self._catalog.lookup)
            known = set(own.others)
        else:
            known = set(self._catalog.manifest(head).parents[:1])
        new: list[Digest] = []
        for id, _ in first_parents(head, self._catalog.lookup):
            if id in known:
                break
            new.append(id)
        else:
            new = [head] if self._seen is not None else new
        self._waiting.extend(reversed(new or [head]))
        self._seen = head

    def _bring(
        self,
        model: Any,
        id: Digest,
        selection: Selection,
        rename: Rename,
        part: str | None,
        *,
        full: bool,
    ) -> Update:
        """Read what a model does not hold of a checkpoint, then change the model."""
        manifest, objects = self._catalog.manifest(id), CountedObjects(self._catalog.objects)
        stored = StoredState.load(
            id,
            manifest,
            self._catalog,
            selection=selection,
            rename=rename,
            part=part,
            model=model,
            objects=objects,
        )
        with paused_collector():
            entries = stored.entries()
            placement = place(stored, model, entries, leaves_values=is_model(model))
        judge = partial(_misfit_of, model=model, entries=entries)
        advise = partial(remedy, stored, model, judge=judge)
        misfit = judge(placement)
        if misfit:
            found = advise(misfit)
            raise misfit_error(misfit, hint=found.text, rename=found.rename)
        refill = Refill.read(stored, placement, entries, Known() if full else self._memory)
        with self._lock.writing():
            refill.apply(self._memory, advise)
        return Update(
            checkpoint=self._checkpoint(id, manifest),
            changed=refill.changed,
            read_bytes=sum(objects.read_bytes),
            whole_bytes=refill.whole_bytes,
        )


def _misfit_of(placement: Placement, model: object, entries: Mapping[str, Entry]) -> Incompatible:
    """The differences from a model; a module need not have a place for plain values."""
    misfit = placement.incompatible
    if placement.empty and not misfit:
        misfit = replace(misfit, missing=tuple(placement.empty))
    if is_model(model):
        unexpected = tuple(name for name in misfit.unexpected if name in entries)
        misfit = replace(misfit, unexpected=unexpected)
    return misfit
