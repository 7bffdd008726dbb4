"""Many jobs on a few threads."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from ckptstore.parallel import gather


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_the_order_of_the_jobs(threads: int, count: int) -> None:
    jobs = [partial(pow, number, 2) for number in range(count)]
    assert gather(jobs, threads=threads) == [number**2 for number in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_comes_out_and_no_further_job_is_begun(threads: int) -> None:
    begun: list[int] = []
    failed = threading.Event()

    def job(number: int) -> None:
        begun.append(number)
        if number == 1:
            failed.set()
            raise ZeroDivisionError(number)
        failed.wait(10)

    with pytest.raises(ZeroDivisionError):
        gather([partial(job, number) for number in range(500)], threads=threads)
    assert 1 in begun
    assert len(begun) < 250


def test_jobs_run_at_once_and_on_no_more_threads_than_said() -> None:
    barrier = threading.Barrier(3)
    names: set[str] = set()

    def job() -> None:
        names.add(threading.current_thread().name)
        barrier.wait(10)

    gather([job] * 9, threads=3)
    assert len(names) == 3
