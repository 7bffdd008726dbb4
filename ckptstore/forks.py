"""Forks: what a forked child makes anew, because it is a copy of one thread only.

In a child, locks that other threads held at the fork stay held for ever, jobs that other threads
were doing never end, and open files are shared with the parent. `DataLoader` forks in the middle of
a training, whatever other threads are doing. So every lock, thread or global state that outlives a
call is registered here, and each child renews it before it runs any other code. What lives only
during a call of another thread needs nothing: the child has no such call.

A child that is forked while another thread imports a module of this package would wait for that
import for ever, so a fork waits for such imports.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Owner = TypeVar("Owner")
Value = TypeVar("Value")

_PACKAGE = __name__.partition(".")[0]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_bootstrap: Any = vars(importlib)["_bootstrap"]
_renewals: WeakKeyDictionary[Any, Callable[[Any], object]] = WeakKeyDictionary()
_unshared: set[int] = set()
_opening = threading.RLock()  # held during a fork, so that no descriptor is missing in `_unshared`


def renewed(owner: Owner, renew: Callable[[Owner], object]) -> Owner:
    """Return an object for which `renew` is called in each child that is forked while it lives."""
    _renewals[owner] = renew
    return owner


def free_in_child(lock: Owner) -> Owner:
    """Return a lock, condition or event of `threading` that is free in each forked child."""
    return renewed(lock, type(lock)._at_fork_reinit)  # type: ignore[attr-defined]  # noqa: SLF001


class cached_property(functools.cached_property[Value]):  # noqa: N801 - named as its base is
    """functools.cached_property, whose lock in Python 3.11 all instances of a class share."""

    def __init__(self, compute: Callable[[Any], Value]) -> None:
        super().__init__(compute)
        if hasattr(self, "lock"):
            free_in_child(self.lock)


def open_unshared(path: str, flags: int, mode: int = 0, *, dir_fd: int | None = None) -> int:
    """Open a file to be locked with flock; OSError when it cannot be opened.

    The lock belongs to the open file, which a forked child shares. A child closes it at once, since
    it would keep the lock when the parent dies. `close_unshared` closes it.
    """
    with _opening:
        descriptor = os.open(path, flags, mode, dir_fd=dir_fd)
        _unshared.add(descriptor)
    return descriptor


def close_unshared(descriptor: int) -> None:
    """Release the lock of a file and close it; does nothing in a child that was forked meanwhile.

    The lock is released explicitly, not only by closing: programs in other languages fork without
    telling Python.
    """
    with _opening:
        if descriptor in _unshared:
            _unshared.remove(descriptor)
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


@contextmanager
def unshared_folder(path: str) -> Iterator[int]:
    """Open a folder to be locked with flock; OSError when it cannot be opened."""
    descriptor = open_unshared(path, _FOLDER)
    try:
        yield descriptor
    finally:
        close_unshared(descriptor)


def _before_fork() -> None:
    while names := _being_imported():
        for name in names:
            with suppress(Exception):  # the thread that imports it sees the error
                importlib.import_module(name)
    _opening.acquire()


def _being_imported() -> list[str]:
    """The modules of this package that other threads are importing."""
    locks = [(name, lock()) for name, lock in list(_bootstrap._module_locks.items())]  # noqa: SLF001
    own = [(name, lock) for name, lock in locks if name.partition(".")[0] == _PACKAGE and lock]
    return [name for name, lock in own if lock.owner not in (None, threading.get_ident())]


def _after_fork_in_child() -> None:
    for descriptor in _unshared:
        os.close(descriptor)
    _unshared.clear()
    _opening._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001
    for owner, renew in list(_renewals.items()):
        renew(owner)


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_opening.release,
    after_in_child=_after_fork_in_child,
)
