"""The exclusive flock of an open file or folder, with a warning that says for whom a process waits.

A process that may read a folder may also lock it, and hold the lock for hours, so a wait is logged.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import time

NOTICE_SECONDS = 1.0  # shorter waits are not reported
POLL_SECONDS = 0.02
_LOCKS = "/proc/locks"
_log = logging.getLogger(__name__)


def acquire(descriptor: int, path: str) -> None:
    """Take the lock, waiting for it; the kernel releases it when the process ends.

    Args:
        descriptor: The open folder, which the lock belongs to.
        path: Its name, for the warning.

    Raises:
        OSError: The folder cannot be locked.
    """
    noticed = time.monotonic() + NOTICE_SECONDS
    while not try_to_acquire(descriptor):
        if time.monotonic() >= noticed:
            _log.warning("Waiting for the lock of %s, which %s holds.", path, holder(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return
        time.sleep(POLL_SECONDS)


def try_to_acquire(descriptor: int) -> bool:
    """Take the lock if it is free, and return whether it was."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(descriptor: int) -> str:
    """Return who holds the lock, as far as the system tells."""
    status = os.fstat(descriptor)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    try:
        with open(_LOCKS, encoding="ascii") as lines:
            for line in lines:  # 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == f"{device}:{status.st_ino}":
                    return _process(int(fields[4]))
    except (OSError, ValueError, IndexError):
        pass
    return "another process"


def _process(id: int) -> str:
    """Return a process and its user in words."""
    try:
        user = os.stat(f"/proc/{id}").st_uid
    except FileNotFoundError:  # of another container, or the parent of one that keeps the lock
        return f"process {id}" if id else "a process that is not visible here"
    try:
        name = pwd.getpwuid(user).pw_name
    except KeyError:
        name = str(user)
    return f"process {id} of user {name}"
