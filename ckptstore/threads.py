"""Threads: many independent jobs on a few threads, and the buffers that the jobs need.

The first error ends all jobs (ADR 0010).
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ckptstore.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

Result = TypeVar("Result")
Other = TypeVar("Other")

# Queued jobs for each thread, so that a slow job does not leave the other threads idle.
AHEAD = 64
ALIGNMENT = 64  # bytes: a cache line, and a multiple of every element
POLL_SECONDS = 0.2  # how soon a thread that waits notices that its owner was interrupted


class Workers:
    """A few threads that take jobs one by one while the caller prepares the next.

    After a job has failed no further one is started, and the futures of those raise its error.
    With one thread, the caller does each job at once, unless `is_ahead` lets that thread work while
    the caller does something else. Where the system starts no more threads, as in a container with
    a limit, those that run go on, and the caller does jobs itself.
    """

    def __init__(self, threads: int, *, is_ahead: bool = False) -> None:
        self._pool = ThreadPoolExecutor(threads, "ckptstore") if threads > 1 or is_ahead else None
        self._has_thread = False
        self._is_abandoned = False
        self._outer = _current.workers  # if a job of theirs makes these
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the jobs that have started; after an error of the caller others are dropped.

        After an interrupt, jobs that ask `is_abandoned` end early.
        """
        if error is not None:
            self._is_abandoned = not isinstance(error, Exception)
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=error is not None)

    def submit(self, job: Callable[[], Result]) -> Future[Result]:
        """Queue a job; the future gets its result, or the first error of any job."""
        future: Future[Result] = Future()
        queued: list[tuple[Callable[[], Any], Future[Any]]] = [(job, future)]
        if self._pool is None:
            self._do(queued)
            return future
        try:
            self._pool.submit(self._do, queued)
            self._has_thread = True
        except RuntimeError:  # no thread can be started
            if not self._has_thread and _current.workers is not self:  # no thread at all
                self._pool = None
            self._do(queued)  # no other one: jobs that submit jobs would be nested endlessly
        return future

    def _do(self, queued: list[tuple[Callable[[], Any], Future[Any]]]) -> None:
        """Do the one job of a list, unless another thread has taken it."""
        try:
            job, future = queued.pop()
        except IndexError:
            return
        try:
            future.set_result(self._result(job))
        except BaseException as error:
            self._error = self._error or error
            future.set_exception(error)
            raise
        finally:
            del job, future  # the error's traceback would hold them, and they the error

    def _result(self, job: Callable[[], Result]) -> Result:
        if self._error is not None:
            raise self._error
        outer, _current.workers = _current.workers, self
        try:
            return job()
        finally:
            _current.workers = outer

    def abandon(self) -> None:
        """Let jobs that ask `is_abandoned` end early; the caller waits for no result any more."""
        self._is_abandoned = True

    @property
    def is_abandoned(self) -> bool:
        """True once the caller was interrupted and waits only for the jobs to end."""
        return self._is_abandoned or (self._outer is not None and self._outer.is_abandoned)


class _Current(threading.local):
    """The workers that the current thread does a job for."""

    workers: Workers | None = None


_current = _Current()


def is_abandoned() -> bool:
    """True in a job whose result is not wanted any more, because its caller was interrupted."""
    return _current.workers is not None and _current.workers.is_abandoned


def results(futures: Iterable[Future[Result]]) -> list[Result]:
    """Return the results of jobs, in their order, once all are done."""
    return [future.result() for future in futures]


def gather(jobs: Iterable[Callable[[], Result]], *, threads: int) -> list[Result]:
    """Return the results of all jobs, in order; the first error ends them and is raised.

    Jobs are taken from the iterable only as threads become free: a queued job takes 2 KB, and there
    may be a million.
    """
    left = iter(jobs)
    first = list(islice(left, threads))
    done: list[Result] = []
    waiting: deque[Future[Result]] = deque()
    with Workers(len(first)) as workers:
        for job in chain(first, left):
            if len(waiting) >= AHEAD * threads:
                done.append(waiting.popleft().result())
            waiting.append(workers.submit(job))
        done.extend(results(waiting))
    return done


def ahead(jobs: Iterable[Callable[[], Result]], *, threads: int) -> Iterator[Result]:
    """Yield the results of jobs in order, while other threads do the next ones.

    As many jobs as there are threads are taken from the iterable before their turn, so that few
    results are in memory at once. With one thread, each job is done when its result is asked for.
    """
    left = iter(jobs)
    first = list(islice(left, threads))
    if len(first) <= 1:
        yield from (job() for job in chain(first, left))
        return
    with Workers(len(first)) as workers:
        waiting = deque(workers.submit(job) for job in first)
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(workers.submit(job) for job in islice(left, 1))
            yield result


def beside(job: Callable[[], Result], other: Callable[[], Other]) -> tuple[Result, Other]:
    """Return the results of two jobs, of which another thread does the second meanwhile."""
    with Workers(1, is_ahead=True) as workers:
        waiting = workers.submit(other)
        result = job()
        return result, waiting.result()


class Room:
    """A number of bytes in memory that jobs on several threads share."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max, self._used = bytes_max, 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is room for so many bytes, or nothing else takes any, and take it.

        Raises:
            StorageError: The caller that this job works for was interrupted.
        """
        with self._changed:
            while self._used and self._used + size > self._bytes_max:
                if is_abandoned():
                    raise StorageError("The operation was interrupted.")
                self._changed.wait(POLL_SECONDS)
            self._used += size

    def give(self, size: int) -> None:
        """Give back so many bytes."""
        with self._changed:
            self._used -= size
            self._changed.notify_all()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Take so many bytes, and give them back afterwards."""
        self.take(size)
        try:
            yield
        finally:
            self.give(size)


class Buffers(threading.local):
    """One buffer for each thread, as large as the largest it has asked for.

    Fresh memory for each job would be slower, and allocators keep much of it: a commit of one
    transposed array of 600 MB was measured to hold 230 MB of copies that it had long freed.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def of(self, size: int) -> memoryview:
        """Return a writable buffer of this size, valid until the thread asks again."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]


class Ring:
    """Memory that the caller fills part by part, each for a job of another thread.

    It is used again once the job is done, so that little of it takes the time of its first touch.
    """

    def __init__(self, size: int) -> None:
        self._memory = memoryview(bytearray(size))
        self._start = self._stop = 0  # of the newest part
        self._lent: deque[tuple[int, int, Future[Any]]] = deque()

    def of(self, size: int) -> memoryview:
        """Return the next part, of at most the ring's size, once no job needs its memory."""
        after = -(-self._stop // ALIGNMENT) * ALIGNMENT
        self._start = after if after + size <= len(self._memory) else 0
        self._stop = self._start + size
        while any(start < self._stop and self._start < stop for start, stop, _ in self._lent):
            self._lent.popleft()[2].result()
        return self._memory[self._start : self._stop]

    def lend(self, job: Future[Any]) -> None:
        """Leave the newest part to a job until that is done."""
        self._lent.append((self._start, self._stop, job))
