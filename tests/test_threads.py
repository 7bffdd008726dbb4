"""Many jobs on a few threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.threads import Buffers, Ring, Workers, ahead, gather, results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_the_order_of_the_jobs(threads: int, count: int) -> None:
    jobs = [partial(pow, number, 2) for number in range(count)]
    assert gather(jobs, threads=threads) == [number**2 for number in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_comes_out_and_jobs_that_wait_are_never_begun(threads: int) -> None:
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise ZeroDivisionError(number)
        time.sleep(0.01)  # so that all of them would take seconds

    with pytest.raises(ZeroDivisionError):
        gather([partial(job, number) for number in range(1000)], threads=threads)
    assert len(begun) < 1000
    assert threads > 1 or begun == [0, 1]


def test_each_thread_keeps_one_buffer_and_makes_it_larger_when_it_must() -> None:
    buffers = Buffers()
    first = buffers.of(10)
    first[:] = b"0123456789"
    assert bytes(buffers.of(4)) == b"0123"
    assert len(buffers.of(1000)) == 1000
    with ThreadPoolExecutor(1) as pool:
        assert bytes(pool.submit(buffers.of, 4).result()) == bytes(4)


def test_jobs_run_at_once_and_on_no_more_threads_than_said() -> None:
    barrier = threading.Barrier(3)
    names: set[str] = set()

    def job() -> None:
        names.add(threading.current_thread().name)
        barrier.wait(10)

    gather([job] * 9, threads=3)
    assert len(names) == 3


@pytest.fixture(params=[0, 1, 2])
def thread_limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many threads can be started before the system refuses."""
    left = iter(range(request.param))
    start = threading.Thread.start

    def start_within_limit(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_within_limit)
    return int(request.param)


def test_jobs_are_done_once_each_by_as_many_threads_as_can_be_started(thread_limit: int) -> None:
    names: list[str] = []

    def job(number: int) -> int:
        names.append(threading.current_thread().name)
        return number

    jobs = (partial(job, number) for number in range(1000))
    assert gather(jobs, threads=8) == list(range(1000))
    assert len(names) == 1000
    assert len(set(names)) <= thread_limit + 1


def test_the_first_error_ends_jobs_where_no_thread_can_be_started(thread_limit: int) -> None:
    begun: list[int] = []

    def job(number: int) -> None:
        begun.append(number)
        raise ZeroDivisionError(number)

    with pytest.raises(ZeroDivisionError):
        gather([partial(job, number) for number in range(1000)], threads=4)
    assert len(begun) <= thread_limit + 1


def test_jobs_that_submit_jobs_are_not_nested_where_no_thread_can_be_started(
    thread_limit: int,
) -> None:
    here = threading.local()
    depths: list[int] = []

    def job(then: int) -> int:
        here.depth = getattr(here, "depth", 0) + 1
        depths.append(here.depth)
        if then:
            inner.append(workers.submit(partial(job, then - 1)))
        here.depth -= 1
        return then

    inner: list[Future[int]] = []
    with Workers(8) as workers:
        outer = [workers.submit(partial(job, 1)) for _ in range(500)]
        assert results(outer) == [1] * 500
    assert results(inner) == [0] * 500
    assert max(depths) == 2


def test_a_thread_works_ahead_of_its_caller() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def job() -> bool:
        begun.set()
        return go_on.wait(10)

    with Workers(1, is_ahead=True) as workers:
        future = workers.submit(job)
        assert begun.wait(10)
        go_on.set()
        assert future.result()


@pytest.mark.parametrize("threads", [1, 3])
def test_workers_take_jobs_one_by_one(threads: int) -> None:
    with Workers(threads) as workers:
        first = workers.submit(partial(pow, 3, 2))
        assert first.result() == 9
        assert results([first, workers.submit(partial(pow, 3, 3))]) == [9, 27]


def test_the_error_of_one_job_is_what_every_later_one_says() -> None:
    with Workers(2) as workers:
        failed = workers.submit(lambda: 1 // 0)
        assert isinstance(failed.exception(10), ZeroDivisionError)
        later = workers.submit(partial(pow, 3, 2))
        assert later.exception(10) is failed.exception()


def test_jobs_that_wait_are_dropped_when_the_caller_fails() -> None:
    go_on, begun = threading.Event(), threading.Event()
    done: list[int] = []

    def job(number: int) -> None:
        begun.set()
        go_on.wait(10)
        done.append(number)

    def fail_amid_jobs() -> None:
        with Workers(2) as workers:
            for number in range(100):
                workers.submit(partial(job, number))
            begun.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        fail_amid_jobs()
    assert len(done) <= 2


class Job:
    """A job on a part of a ring, done when something waits for it."""

    def __init__(self, part: memoryview) -> None:
        self.part, self.expected, self.is_done = part, bytes(part), False

    def result(self) -> None:
        assert bytes(self.part) == self.expected
        self.is_done = True


@given(st.integers(0, 1000), st.lists(st.integers(0, 1000), max_size=30))
def test_a_ring_lends_memory_again_only_after_the_jobs_that_need_it(
    capacity: int, sizes: list[int]
) -> None:
    ring = Ring(capacity)
    jobs: list[Job] = []
    for number, size in enumerate(min(size, capacity) for size in sizes):
        part = ring.of(size)
        assert len(part) == size
        part[:] = bytes([number]) * size
        jobs.append(Job(part))
        ring.lend(jobs[-1])  # type: ignore[arg-type] - the part of a future that it needs
        assert all(bytes(job.part) == job.expected for job in jobs if not job.is_done)


def test_a_ring_waits_for_no_job_while_it_has_room() -> None:
    ring = Ring(1000)
    for size in (400, 500):
        ring.of(size)
        ring.lend(Future())  # never done


@pytest.mark.parametrize("threads", [1, 4])
def test_results_read_ahead_come_in_order_and_few_are_taken_before_their_turn(threads: int) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(20):
            taken.append(number)
            yield partial(int, number)

    found = ahead(jobs(), threads=threads)
    assert next(found) == 0
    assert len(taken) <= threads + 1
    assert list(found) == list(range(1, 20))


def test_reading_ahead_ends_with_its_reader() -> None:
    begun: list[int] = []
    found = ahead((partial(begun.append, number) for number in range(100)), threads=3)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert len(begun) <= 5


def test_an_error_met_ahead_comes_at_a_turn() -> None:
    found = ahead((partial(divmod, 1, number) for number in (1, 1, 0, 1)), threads=2)
    with pytest.raises(ZeroDivisionError):
        list(found)
