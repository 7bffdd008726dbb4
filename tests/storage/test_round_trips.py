"""The requests that operations on an object store make, as budgets.

Round trips, not bytes, are the time that a far repository takes. The state has 40 arrays of 1.6 MB
and 40 small ones; `docs/how-to/object-stores.md` says what the numbers mean for other states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import ckptstore
from ckptstore.store import oplog
from ckptstore.testing.s3_server import S3Server

LARGE = 40  # arrays, each an object of its own
DOCUMENTS = 4  # bundle, pages and structure of this state


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    # However busy the machine is, the operations of a test are a moment apart.
    monkeypatch.setattr(oplog, "CONFIRM_SECONDS", 1e9)
    with S3Server() as server:
        yield server


def _state() -> dict[str, torch.Tensor]:
    large = {f"large.{number}": torch.full((400_000,), float(number)) for number in range(LARGE)}
    return large | {f"small.{number}": torch.full((9,), float(number)) for number in range(LARGE)}


def _requests(server: S3Server, call: Callable[[], object]) -> int:
    server.counts.clear()
    call()
    return sum(server.counts.values())


def test_each_operation_stays_within_its_budget(server: S3Server) -> None:
    """Of one handle, which knows the newest operation."""
    url, state = server.url("run"), _state()
    repo = ckptstore.open(url, create=True)
    total = _requests(server, lambda: repo.commit(state, step=1))
    assert total <= 2 * server.counts["put"] + 10  # a look and a put for each object
    assert server.counts["put"] <= LARGE + DOCUMENTS + 1
    assert _requests(server, lambda: repo.commit(state, step=2)) <= 5
    state["large.3"] = state["large.3"] + 1
    assert _requests(server, lambda: repo.commit(state, step=3)) <= 5 + 2 * (1 + 1)
    assert _requests(server, lambda: repo.branch("other", "main")) <= 6
    assert _requests(server, lambda: repo.tag("first", "main~2")) <= 6
    assert _requests(server, lambda: repo.annotate("main", metrics={"acc": 0.5})) <= 7
    assert _requests(server, lambda: repo.resolve("main")) <= 2


def test_a_new_handle_needs_few_more(server: S3Server) -> None:
    url, state = server.url("run"), _state()
    ckptstore.open(url, create=True).commit(state, step=1)
    new = [ckptstore.open(url) for _ in range(2)]
    assert _requests(server, lambda: new[0].commit(state, step=2)) <= 11
    assert _requests(server, lambda: new[1].checkout("main")) <= LARGE + DOCUMENTS + 6


def test_a_poll_of_a_follower_that_finds_nothing_is_one_request(server: S3Server) -> None:
    repo = ckptstore.open(server.url("run"), create=True)
    repo.commit(_state(), step=1)
    reader = ckptstore.open(server.url("run"))
    follower = reader.follow("main")
    assert follower.poll() is not None
    assert _requests(server, follower.poll) == 1
