"""Children: forks of the running test, while other threads of it are held where that matters."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.repository import Repository
from ckptstore.storage import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any

DEADLINE_SECONDS = 30  # of a child; only one that waits for ever needs so long


@contextmanager
def held_by_thread(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Have another thread stay inside a context."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with context:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    try:
        yield
    finally:
        leave.set()
        thread.join()


def fork(job: Callable[[], object], *, seconds: int = DEADLINE_SECONDS) -> int:
    """Fork a child that does a job and exits with 0; one that waits for ever is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads are the point
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        job()
        code = 0
    except BaseException:  # noqa: BLE001 - no test may go on in the child
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(pid: int) -> int:
    """Wait for a child; -14 for one that waited for ever."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def do_in_child(job: Callable[[], object]) -> None:
    """Do a job in a forked child; an error if it fails or waits for ever."""
    code = exit_code(fork(job))
    assert code != -signal.SIGALRM, "the child waits for ever"
    assert code == 0


@contextmanager
def living_child() -> Iterator[int]:
    """A forked child that has begun, and does nothing until the end."""
    reader, writer = os.pipe()
    begun, begin = os.pipe()

    def wait() -> None:
        os.close(writer)
        os.write(begin, b"!")
        os.read(reader, 1)

    pid = fork(wait)
    os.read(begun, 1)
    for descriptor in (reader, begun, begin):
        os.close(descriptor)
    try:
        yield pid
    finally:
        os.close(writer)
        exit_code(pid)


class HeldStorage(LocalStorage):
    """A folder in which the writes of this process, and not of its children, wait for `go_on`.

    Attributes:
        has_begun: Set once a write waits.
        go_on: Lets all writes through.
    """

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.has_begun, self.go_on = threading.Event(), threading.Event()
        self._process = os.getpid()

    def repository(self) -> Repository:
        """A handle on the repository that is there."""
        marker = Marker.decode(self.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
        return Repository(self, marker)

    def put(self, key: str, data: Any) -> None:
        self._wait()
        super().put(key, data)

    def stage(self, data: Any, **options: Any) -> Any:
        self._wait()
        return super().stage(data, **options)

    def _wait(self) -> None:
        if os.getpid() == self._process:
            self.has_begun.set()
            self.go_on.wait()
