"""RankGroup: values are exchanged, and a rank that is gone is named within a bounded time."""

from __future__ import annotations

import os
import pickle
import signal
import time
from contextlib import suppress
from typing import Any

import pytest
import torch.distributed as dist

from ckptstore import InvalidInputError, RankError, rank_group
from ckptstore.rank_group import PIECE_BYTES, RankGroup
from tests.helpers.children import fork
from tests.helpers.ranks import DiedError, checked, on_ranks

pytestmark = [pytest.mark.concurrency, pytest.mark.slow]

TIMEOUT = 5.0  # seconds: a rank may wait long for a processor that others share


def test_one_process_needs_no_other():
    group = RankGroup("x")
    with group.meeting("save") as meeting:
        assert meeting.agree(lambda: 1) == [1]
        assert meeting.agree(lambda: 1, sum) == 1
        assert meeting.divide(lambda: 1, lambda values: [value + 1 for value in values]) == 2
        with pytest.raises(ZeroDivisionError):
            meeting.agree(lambda: 1 // 0)
    group.close()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), 10**400, "5", None, True])
def test_a_timeout_is_above_zero(timeout):
    with pytest.raises(InvalidInputError, match="timeout"):
        RankGroup("x", timeout=timeout)


def error_of(group: RankGroup, work: Any, join: Any = None) -> RankError:
    with pytest.raises(RankError) as caught, group.meeting("save of step 5") as meeting:
        meeting.agree(work, join)
    return pickle.loads(pickle.dumps(caught.value))


def test_an_attempt_reads_nothing_of_the_one_before():
    """As when torchrun starts the ranks again, whose store keeps the keys of the former ones."""

    def work() -> list[int]:
        rank = dist.get_rank()
        group = RankGroup("x", timeout=TIMEOUT)
        with suppress(RankError, ZeroDivisionError), group.meeting("save") as meeting:
            if rank:
                raise ZeroDivisionError
            meeting.agree(lambda: rank)
        dist.barrier()
        group.close()
        rank_group._numbers.clear()
        with RankGroup("x", timeout=TIMEOUT).meeting("save") as meeting:
            found: list[int] = meeting.agree(lambda: rank)
        return found

    assert checked(on_ranks(2, work)) == [[0, 1]] * 2


def test_values_and_errors_reach_all_ranks():
    large = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"

    class LocalError(Exception):
        """It cannot be pickled."""

    def work() -> None:
        rank = dist.get_rank()
        group, other = RankGroup("x"), RankGroup("y", group=dist.new_group([0, 1, 2]))
        assert (group.rank, group.size) == (rank, 3)
        for every in (group, other):
            with every.meeting("exchange") as meeting:
                assert meeting.agree(lambda: rank) == [0, 1, 2]
                assert meeting.agree(lambda: rank, sum) == 3
                part = meeting.divide(lambda: rank, lambda ranks: [10 * one for one in ranks])
                assert part == 10 * rank
                assert meeting.agree(lambda: large if rank == 1 else b"")[1] == large
                assert meeting.divide(lambda: large, lambda values: values) == large

        error = error_of(group, lambda: [][0] if rank else 1)
        assert list(error.failures) == [1, 2]
        assert isinstance(error.__cause__, IndexError)
        assert "test_rank_group" in error.__cause__.__notes__[0]
        assert "The save of step 5 has failed on all 3 ranks: rank 1 raised IndexErr" in str(error)
        error = error_of(group, lambda: 1, lambda _: 1 // 0)
        assert list(error.failures) == [0]

        def fail() -> None:
            raise LocalError("no\x1b[31m color")

        error = error_of(group, fail)
        assert "LocalError: no\\x1b[31m color" in str(error)
        error = error_of(group, lambda: lambda: 1)  # cannot be pickled
        assert list(error.failures) == [0, 1, 2]
        expected = KeyError if rank == 1 else RankError  # one leaves outside of an exchange
        with pytest.raises(expected, match="mine"), group.meeting("save") as meeting:
            meeting.agree(lambda: rank) if rank != 1 else {}["mine"]
        with group.meeting("exchange") as meeting:  # and all go on
            assert meeting.agree(lambda: rank, sum) == 3

    checked(on_ranks(3, work))


def gone(how: str) -> None:
    """Lose this rank: it dies, stops for a while, or is slow."""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stopped":
        rank = os.getpid()

        def wake() -> None:
            time.sleep(2 * TIMEOUT)
            os.kill(rank, signal.SIGCONT)

        fork(wake)
        os.kill(rank, signal.SIGSTOP)
    else:
        time.sleep(2 * TIMEOUT)


LOSSES = [("killed", 1), ("slow", 1)]  # each in a group of three


def lose() -> None:
    """Lose a rank of each group, all at once."""
    number, rank = divmod(dist.get_rank(), 3)
    groups = [dist.new_group(list(range(3 * n, 3 * n + 3))) for n in range(len(LOSSES))]
    how, lost = LOSSES[number]
    group = RankGroup("x", group=groups[number], timeout=TIMEOUT)
    with group.meeting("exchange") as meeting:
        meeting.agree(lambda: 1)
    error = error_of(group, lambda: gone(how) if rank == lost else None)
    assert list(error.failures) == [lost]
    assert isinstance(error.__cause__, TimeoutError)
    expected = "has made no progress for" if how == "slow" else "has given no sign of life for"
    assert f"rank {lost} {expected} {TIMEOUT:g} s" in str(error)
    assert "start it again" in str(error)
    if how != "killed":
        with group.meeting("exchange") as meeting:  # it has come back, and raised the same
            assert meeting.agree(lambda: 1, sum) == 3


@pytest.mark.crash
def test_a_rank_that_is_gone_is_named_on_all_others():
    answers = on_ranks(3 * len(LOSSES), lose)
    for number, (how, lost) in reversed(list(enumerate(LOSSES))):
        if how == "killed":
            died = answers.pop(3 * number + lost)
            assert isinstance(died, DiedError)
            assert died.code == -signal.SIGKILL
    checked(answers)


def test_a_rank_that_never_comes_is_named():
    def work() -> None:
        group = RankGroup("x", timeout=1) if dist.get_rank() else None
        if group is None:
            time.sleep(4)
        else:
            assert "rank 0 has not come within 1 s" in str(error_of(group, lambda: 1))

    checked(on_ranks(2, work))
