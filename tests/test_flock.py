"""A process that waits for the lock of a folder says for whom."""

from __future__ import annotations

import fcntl
import logging
import os
import pwd
import threading
from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore import flock
from ckptstore.retention import MaxToKeep
from tests.helpers.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("locks", ["/proc/locks", "/nowhere"])
def test_a_gc_that_waits_says_for_whom(
    scratch: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    """By process and user, where the system tells; then it goes on."""
    monkeypatch.setattr(flock, "NOTICE_SECONDS", 0)
    monkeypatch.setattr(flock, "_LOCKS", locks)
    repo = ckptstore.init(scratch / "store")
    for step in range(2):
        repo.commit({"step": step}, step=step)
    held = os.open(scratch / "store", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    expired: list[int] = []
    collecting = threading.Thread(
        target=lambda: expired.append(len(repo.gc(MaxToKeep(1)).expired)), daemon=True
    )
    with caplog.at_level(logging.WARNING):
        collecting.start()
        until(lambda: caplog.messages)
        assert expired == []
        os.close(held)
        collecting.join(60)
    assert expired == [1]
    user = pwd.getpwuid(os.getuid()).pw_name
    who = f"process {os.getpid()} of user {user}" if locks == "/proc/locks" else "another process"
    assert caplog.messages[0] == f"Waiting for the lock of {repo.url}, which {who} holds."


def test_a_lock_that_is_free_is_taken_without_a_word(
    scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fd = os.open(scratch, os.O_RDONLY)
    flock.acquire(fd, "here")
    os.close(fd)
    assert caplog.messages == []
