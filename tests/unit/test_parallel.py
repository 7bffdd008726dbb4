"""Many jobs on a few threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from ckptstore.parallel import Buffers, gather


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
