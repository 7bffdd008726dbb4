"""Commit hooks: functions that are called with each checkpoint that this process has committed.

A tracker or a message to a chat begins here. Hooks are called once the checkpoint is durable, one
after the other, by the thread that committed it. None of their errors reaches the commit, and where
there are no hooks a commit costs what it did (docs/adr/0076).
"""

from __future__ import annotations

import logging
import sys
import threading
import urllib.parse
import warnings
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from ckptstore.errors import CkptStoreError, InvalidInputError, printable, shown
from ckptstore.forks import cached_property, free_in_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.settings import Mirrored
    from ckptstore.store.meter import Progress
    from ckptstore.store.objects import ObjectStore

    Hook = Callable[["CommitEvent"], object]

GROUP = "ckptstore.on_commit"
REASON_LENGTH_MAX = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEvent:
    """A checkpoint that this process has committed, and where it is.

    Attributes:
        checkpoint: The checkpoint, which is durable.
        repository: The URL of its repository, without user, password and query.
        mirror: The URL of the mirror of its branch, without these too; None if there is none. The
            checkpoint may not be there yet.

    Example:
        >>> import ckptstore
        >>> repo = ckptstore.init("memory://event-example")
        >>> remove = repo.on_commit(lambda event: print(event.address, event.step, event.metrics))
        >>> checkpoint = repo.commit({"lr": 0.1}, step=3, metrics={"loss": 0.5})
        memory://event-example#... 3 {'loss': 0.5}
    """

    checkpoint: Checkpoint
    repository: str
    mirror: str | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, mirror: str | None = None) -> CommitEvent:
        """Return the event of a checkpoint. mirror: the URL of its mirror."""
        return cls(
            checkpoint=checkpoint,
            repository=address(checkpoint.repository_url),
            mirror=None if mirror is None else address(mirror),
        )

    @property
    def id(self) -> str:
        """The id of the checkpoint."""
        return str(self.checkpoint.id)

    @property
    def step(self) -> int | None:
        """The training step of the checkpoint, if it has one."""
        return self.checkpoint.step

    @property
    def metrics(self) -> Mapping[str, int | float]:
        """The metrics of the checkpoint, by name."""
        return self.checkpoint.metrics

    @property
    def branch(self) -> str | None:
        """The branch that it was committed to."""
        return self.checkpoint.branch

    @property
    def address(self) -> str:
        """The repository and the id, joined by "#"."""
        return f"{self.repository}#{self.id}"

    def document(self) -> dict[str, Any]:
        """Return "checkpoint", "checkpoint_step" and "repository", and "mirror" if there is one."""
        there = {} if self.mirror is None else {"mirror": self.mirror}
        return {
            "checkpoint": self.id,
            "checkpoint_step": self.step,
            "repository": self.repository,
            **there,
        }


class Hooks:
    """The hooks of one repository handle or one manager, in the order in which they were added.

    Args:
        installed: Whether to call those of installed packages too, before the others.
    """

    def __init__(self, *, installed: bool = False) -> None:
        self._hooks: dict[object, Hook] = {}
        self._installed = installed
        self._lock = free_in_child(threading.Lock())  # one event at a time

    @classmethod
    def of(cls, given: object) -> Self:
        """Return those that a manager is given: one function, a list or tuple of them, or None."""
        hooks = cls()
        for hook in given if isinstance(given, list | tuple) else (given,):
            if hook is not None:
                hooks.add(hook)
        return hooks

    def add(self, hook: Hook) -> Callable[[], None]:
        """Add a hook, and return a function that removes it.

        Raises:
            InvalidInputError: It is not a function.
        """
        if not callable(hook):
            raise InvalidInputError(
                f"on_commit is {shown(hook)}; a function that takes a CommitEvent is expected."
            )
        key = object()
        self._hooks[key] = hook

        def remove() -> None:
            self._hooks.pop(key, None)

        return remove

    def call(self, make: Callable[[], CommitEvent]) -> None:
        """Call the hooks with the event that `make` returns. A commit by a hook calls none."""
        if getattr(_thread, "is_calling", False):
            return
        hooks = (*(installed() if self._installed else ()), *self._hooks.values())
        if not hooks:
            return
        with self._lock:
            _thread.is_calling = True
            try:
                _call(hooks, make)
            finally:
                _thread.is_calling = False


_thread = threading.local()


class Hooked(ABC):
    """A repository that calls functions of the program: with its progress, and after commits."""

    _objects: ObjectStore

    @property
    @abstractmethod
    def mirrors(self) -> dict[str, Mirrored]:
        """The mirrors of branches."""

    @abstractmethod
    def _checkpoint(
        self, id: Digest, manifest: Manifest, expired: bool | None = None
    ) -> Checkpoint:
        """Return the checkpoint of a manifest."""

    @cached_property
    def _hooks(self) -> Hooks:
        return Hooks(installed=True)

    def on_progress(self, listener: Callable[[Progress], object] | None) -> None:
        """Report the progress of commit, checkout, diff, verify and gc of this handle.

        Args:
            listener: Called often, from different threads but by one at a time. It should return
                quickly. None ends the reports.

        Raises:
            InvalidInputError: The listener is not a function.

        Example:
            >>> import ckptstore, numpy as np
            >>> repo = ckptstore.init("memory://")
            >>> seen = []
            >>> repo.on_progress(seen.append)
            >>> _ = repo.commit({"w": np.zeros(1_000_000)})
            >>> seen[-1].kind, seen[-1].done, seen[-1].total
            ('stored', 8000000, 8000000)
        """
        if listener is not None and not callable(listener):
            raise InvalidInputError(f"listener is {shown(listener)}; a function is expected.")
        self._objects.meter.listener = listener

    def on_commit(self, hook: Callable[[CommitEvent], object]) -> Callable[[], None]:
        """Call a function with each checkpoint that this handle commits, once it is durable.

        Hooks are called in the order in which they were added, by the thread that commits, one
        event at a time; `commit` returns after them. An error of a hook is a warning, once for each
        hook, and never fails the commit. A commit that a hook makes calls none.

        Args:
            hook: Takes a `CommitEvent`.

        Returns:
            A function that removes the hook.

        Raises:
            InvalidInputError: The hook is not a function.

        Example:
            >>> import ckptstore
            >>> repo = ckptstore.init("memory://")
            >>> steps = []
            >>> remove = repo.on_commit(lambda event: steps.append(event.step))
            >>> for step in (1, 2):
            ...     _ = repo.commit({"lr": 0.1 / step}, step=step)
            >>> remove()
            >>> _ = repo.commit({"lr": 0.01}, step=3)
            >>> steps
            [1, 2]
        """
        return self._hooks.add(hook)

    def _committed(self, id: Digest, manifest: Manifest) -> None:
        """Call the hooks, those of installed packages first, with a checkpoint just published."""

        def event() -> CommitEvent:
            known = None
            with suppress(CkptStoreError):
                known = self.mirrors.get(manifest.branch or "")
            checkpoint = self._checkpoint(id, manifest, False)
            return CommitEvent.of(checkpoint, mirror=None if known is None else known.url)

        self._hooks.call(event)


def installed() -> tuple[Hook, ...]:
    """Return the hooks of installed packages: the entry points of the group `GROUP`."""
    return tuple(_of_entry_point(point) for point in _entry_points())


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    """Return the entry points, in the order of their names; looked for once in a process."""
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)))


@cache
def _of_entry_point(point: EntryPoint) -> Hook:
    """Return a hook that loads an entry point with the first event."""
    loaded: list[Hook] = []

    def hook(event: CommitEvent) -> None:
        if not loaded:
            loaded.append(point.load())
        loaded[0](event)

    hook.__qualname__ = f"{point.name} ({point.value})"
    return hook


_warned: set[int] = set()  # the ids of hooks whose errors were reported, which stay alive below
_failed: list[Hook] = []


def _call(hooks: Sequence[Hook], make: Callable[[], CommitEvent]) -> None:
    """Call hooks with one event. Whatever they raise, the commit is done."""
    try:
        event = make()
    except Exception:  # noqa: BLE001 - as below
        _log.exception("The hooks of a commit were not called, as its event cannot be made.")
        return
    for hook in hooks:
        try:
            hook(event)
        except Exception as error:  # noqa: BLE001 - of other programs, and no reason to fail a commit
            _warn(hook, error)


def _warn(hook: Hook, error: Exception) -> None:
    """Warn of an error of a hook, once for each hook."""
    if id(hook) in _warned:
        return
    _warned.add(id(hook))
    _failed.append(hook)
    name = getattr(hook, "__qualname__", type(hook).__qualname__)
    reason = printable(str(error)[:REASON_LENGTH_MAX])
    text = (
        f"The hook {name} failed ({type(error).__name__}: {reason}). The checkpoint is durable. "
        "Further errors of this hook are not reported."
    )
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # warnings are errors in this program, and a commit must not fail
        sys.stderr.write(f"ckptstore: {text}\n")


def address(url: str) -> str:
    """Return the URL of a repository without user, password, query and fragment."""
    if url.startswith("/") or "://" not in url:  # a path, where "?" and "@" are plain characters
        return url
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
