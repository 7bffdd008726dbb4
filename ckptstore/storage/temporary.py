"""Temporary files: names that are never used twice, and which files dead writers left.

A writer holds the flock of its temporary file while the file has that name. The kernel releases the
lock when the process ends, whichever way. So a file that is not locked was left by a dead writer
and can be removed, without waiting and without trusting process ids, which containers repeat.

A lock is only visible to processes on the same kernel, so the name carries the kernel's boot id.
Files of other hosts, of earlier boots, and of releases that did not lock are removed once they have
not been written to for `UNTOUCHED_SECONDS` (ADR 0027).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

TEMPORARY = "tmp"  # their folder, below the root
UNTOUCHED_SECONDS = 86_400.0  # a write that takes a day has died
UNLOCKED_SECONDS = 60.0  # a new file is not locked yet
_PROBE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def new_name() -> str:
    """Return a name that is not in use and never was; a process id alone may be reused."""
    return f"{_boot()}{os.getpid()}-{secrets.token_hex(12)}"


def hold(fd: int) -> None:
    """Lock a temporary file that was just made, until it is closed."""
    with suppress(OSError):  # the file system has no locks: then nobody can take this one either
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_left(name: str, *, within: int, age: float) -> bool:
    """Return True for a file that no living process is writing.

    Args:
        name: Its name.
        within: Descriptor of its folder.
        age: Seconds since it was last written to, by the clock of its file system.
    """
    return age >= UNTOUCHED_SECONDS or (age >= UNLOCKED_SECONDS and is_free(name, within=within))


def is_free(name: str, *, within: int, prefix: str = "") -> bool:
    """Return True for a file or folder of this run of the kernel that no living process holds.

    Args:
        name: Its name.
        within: Descriptor of its folder.
        prefix: The part of the name before that of `new_name`.
    """
    if not _boot() or not name.startswith(f"{prefix}{_boot()}"):
        return False
    try:
        fd = os.open(name, _PROBE, dir_fd=within)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its writer holds it, or the file system has no locks
        return False
    finally:
        os.close(fd)
    return True


@cache
def _boot() -> str:
    """Return the prefix of the names that are given under this run of the kernel, or ""."""
    try:
        return f"{_BOOT_ID.read_text()[:8]}-"
    except OSError:
        return ""
