"""How many requests a transfer makes: as many as are new, and a few for each operation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore.testing.s3_server import S3Server
from tests.helpers.transfers import assert_sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ARRAYS = 300
NOTHING_NEW = 3  # the marker, and the newest operation: LIST, GET
COMMIT = 30  # 2 % of the arrays, of which each is an object
PULL = 12
MARGIN = 40  # requests of a first push beside its objects


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with S3Server() as server:
        yield server


def _state() -> dict[str, Any]:
    """Arrays of one chunk each."""
    random = np.random.default_rng(0)
    return {f"w{number:03}": random.random((150, 150), "f4") for number in range(ARRAYS)}


def test_a_transfer_makes_few_requests(server: S3Server, tmp_path: Path) -> None:
    def counted(act: Callable[[], Any]) -> tuple[int, Any]:
        server.counts.clear()
        result = act()
        return sum(server.counts.values()), result

    repo = ckptstore.init(tmp_path / "run", chunk_size=128 << 10)
    ckptstore.init(server.url("run"))
    repo.set_remote("origin", server.url("run"))
    state = _state()
    for step in range(3):
        state["w000"] = state["w000"] + 1
        repo.commit(state, step=step)

    requests, report = counted(repo.push)
    assert requests <= report.objects + MARGIN
    assert counted(repo.push)[0] <= NOTHING_NEW

    for number in range(ARRAYS // 50):
        state[f"w{number:03}"] = state[f"w{number:03}"] + 1
    repo.commit(state, step=10)
    requests, report = counted(repo.push)
    assert requests <= COMMIT
    assert report.bytes < 0.04 * ARRAYS * 90_000

    requests, copy = counted(lambda: ckptstore.clone(server.url("run"), tmp_path / "copy"))
    assert requests <= len(list((tmp_path / "copy/objects").glob("*/*"))) + MARGIN
    assert_sound(copy)

    state["w007"] = state["w007"] + 1
    repo.commit(state, step=11)
    repo.push()
    assert counted(copy.pull)[0] <= PULL
    assert counted(copy.pull)[0] <= NOTHING_NEW + 2  # notes are listed; a look behind the newest


def test_a_push_that_is_repeated_sends_nothing_again(server: S3Server, tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "run", chunk_size=128 << 10)
    repo.commit(_state())
    ckptstore.init(server.url("run"))
    plan = repo.plan_push(server.url("run"))
    left = 150

    def fault(request: object) -> str | None:
        nonlocal left
        left -= request.kind == "put"  # type: ignore[attr-defined]
        return "error" if left < 0 else None

    server.fault = fault
    with pytest.raises(ckptstore.StorageError):
        plan.execute()
    server.fault = lambda request: None
    there = len([key for key in server.objects if "/objects/" in key])
    assert 100 < there < plan.objects
    again = repo.plan_push(server.url("run"))
    assert again.objects == plan.objects - there
    again.execute()
    assert_sound(ckptstore.open(server.url("run")))
