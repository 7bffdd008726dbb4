"""Requests: waits for the answers of an object store so that a waiting caller can give up.

A blocking call of the client would end with its answer only, up to minutes later, whatever Ctrl-C
says. So requests run on the event loop of one thread, and callers wait here. A caller that is
interrupted cancels its request, and so do the threads of `Workers` whose owner was interrupted.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.errors import StorageError
from ckptstore.forks import free_in_child
from ckptstore.threads import is_abandoned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Answer = TypeVar("Answer")

END_SECONDS = 2.0  # in which the thread of the loop ends at exit
SETTLE_SECONDS = 0.1  # then, for the threads of the client, which nothing can wait for
POLL_SECONDS = 0.2  # how soon a thread of `Workers` notices that its owner was interrupted


class RefusedError(StorageError):
    """A request that fails however often it is repeated."""


class _Loop:
    """The event loop of this process, on a thread that ends with it."""

    def __init__(self) -> None:
        self._lock = free_in_child(threading.Lock())
        self._process: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self) -> None:
        """Raise RefusedError in a child of a process that has made requests."""
        if self._process not in (None, os.getpid()):
            raise RefusedError(
                "An object store cannot be used in a forked process whose parent has used one: the "
                "threads of its client do not exist here. Start the process by spawn or forkserver."
            )

    def get(self) -> asyncio.AbstractEventLoop:
        """The loop, which runs."""
        self.check()
        with self._lock:
            if self._loop is None:
                self._process = os.getpid()
                self._loop = loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="ckptstore-io", daemon=True)
                thread.start()
                atexit.register(self._end, os.getpid(), loop, thread)
            return self._loop

    @staticmethod
    def _end(process: int, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        """End the thread with the interpreter, which aborts if it is cut off in the client."""
        if process == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(END_SECONDS)
            loop.close()
            time.sleep(SETTLE_SECONDS)  # the threads of the client may be about to need Python


_loop = _Loop()


def check_process() -> None:
    """Raise RefusedError where no request can be made."""
    _loop.check()


def wait(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return the answer of a request of the client.

    Args:
        call: Makes the request. It is called on the event loop.

    Raises:
        RefusedError: The process was forked from one that has made requests, or the operation that
            this thread works for was interrupted.
    """

    async def run() -> Answer:
        return await call()

    future = asyncio.run_coroutine_threadsafe(run(), _loop.get())
    try:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
                _check_wanted()
    finally:
        future.cancel()


def sleep(seconds: float) -> None:
    """Wait for a time.

    Raises:
        RefusedError: The operation that this thread works for was interrupted.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        _check_wanted()
        time.sleep(min(left, POLL_SECONDS))


def _check_wanted() -> None:
    if is_abandoned():
        raise RefusedError("The operation was interrupted.") from None


def parts_of(stream: Any) -> Any:
    """Yield what an asynchronous iterator of the client yields."""
    end = object()
    iterator = aiter(stream)
    while (part := wait(lambda: anext(iterator, end))) is not end:
        yield part
