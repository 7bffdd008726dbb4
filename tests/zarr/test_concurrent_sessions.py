"""Several processes, and threads, write through sessions at once, and beside a gc."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import cpu

import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore.zarr import CheckpointStore
from tests.helpers import session_worker
from tests.helpers.root import ROOT
from tests.helpers.session_worker import common
from tests.helpers.workers import collect, join, release

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from pathlib import Path

    from ckptstore.zarr import SessionStore

pytestmark = pytest.mark.concurrency

COMMITS = 4


def begin(url: Path, branch: str, first: int) -> subprocess.Popen[str]:
    """Start a worker; it waits for the word."""
    numbers = [str(first), str(first + COMMITS - 1)]
    return subprocess.Popen(
        [sys.executable, session_worker.__file__, str(url), branch, *numbers],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit({"state": np.arange(30_000.0)}, branch="main")
    return repo


def check(repo: ckptstore.Repository, id: str, n: int) -> None:
    state = repo.checkout(id)
    np.testing.assert_array_equal(state["common"], common(n))
    np.testing.assert_array_equal(state["own"][str(n)], np.arange(n))


def test_of_sessions_on_one_branch_each_lands_whole_or_is_a_conflict(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    said = join([begin(tmp_path / "store", "main", 100 * k) for k in (1, 2)])
    assert len(said.acks) + len(said.conflicts) == 2 * COMMITS
    history = repo.log("main")
    assert {found.id: found.step for found in history[:-1]} == said.acks
    for found in history[:-1]:
        assert found.parents == (history[history.index(found) + 1].id,)
        check(repo, found.id, said.acks[found.id])
    state = repo.checkout("main")
    assert {int(n) for n in state["own"]} == set(said.acks.values())
    np.testing.assert_array_equal(state["state"], np.arange(30_000.0))
    assert repo.verify().ok


def test_of_two_sessions_that_began_together_exactly_one_wins(repo: ckptstore.Repository) -> None:
    for n in range(5):
        with repo.session() as one, ckptstore.open(repo.url).session() as other:
            sessions = [one, other]
            with ThreadPoolExecutor(2) as pool:
                ended = [
                    pool.submit(session_worker.commit, s, 10 * n + i)
                    for i, s in enumerate(sessions)
                ]
            errors = [found.exception() for found in ended]
        assert [type(error) for error in errors if error] == [ckptstore.ConflictError]
    assert len(repo.log("main")) == 6
    assert repo.verify().ok


def test_sessions_on_different_branches_are_never_in_each_others_way(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    said = join([begin(tmp_path / "store", f"b{k}", 100 * k) for k in (1, 2)])
    assert not said.conflicts
    assert len(said.acks) == 2 * COMMITS
    for id, n in said.acks.items():
        check(repo, id, n)
    assert repo.verify().ok


def test_beside_a_gc_without_grace_a_session_is_a_conflict_or_a_whole_checkpoint(
    repo: ckptstore.Repository, tmp_path: Path
) -> None:
    workers = [begin(tmp_path / "store", f"b{k}", 100 * k) for k in (1, 2)]
    release(workers)
    collected = 0
    while any(process.poll() is None for process in workers):
        other = ckptstore.open(repo.url)
        other.gc(MaxToKeep(1), grace=0)
        assert other.verify().ok
        collected += 1
    said = collect(workers)
    assert len(said.acks) + len(said.conflicts) == 2 * COMMITS
    assert collected
    assert repo.verify().ok
    for name, head in repo.branches().items():
        if name != "main":
            check(repo, head.id, head.step or 0)
    repo.gc(MaxToKeep(1), grace=0)
    assert ckptstore.open(repo.url).verify().ok


def test_a_session_that_goes_on_after_its_commit_does_not_take_over_what_others_commit_then(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = ckptstore.Repository._publish_session

    def and_another(self: ckptstore.Repository, *args: Any, **options: Any) -> Any:
        made = publish(self, *args, **options)
        repo.commit({"state": np.zeros(3)}, step=50)
        return made

    monkeypatch.setattr(ckptstore.Repository, "_publish_session", and_another)
    with repo.session() as session:
        group = zarr.open_group(session.store)
        session.commit(step=1)
        np.testing.assert_array_equal(group["state"][:], np.arange(30_000.0))
        group["state"][5] = 0
        with pytest.raises(ckptstore.ConflictError, match="moved"):
            session.commit(step=2)
    assert repo.resolve("main").step == 50


def test_what_a_thread_writes_while_the_session_is_committed_is_refused_and_never_lost(
    repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = ckptstore.Repository._publish_session
    stores: list[SessionStore] = []

    def beside_a_writer(self: ckptstore.Repository, *args: Any, **options: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            for act in (
                lambda: stores[0].set_sync("late", cpu.Buffer.from_bytes(b"x")),
                lambda: stores[0].set_sync("large", cpu.Buffer.from_bytes(bytes(70_000))),
                lambda: stores[0].delete_sync("state/zarr.json"),
                lambda: stores[0]._session.commit(),
            ):
                with pytest.raises(ckptstore.InvalidInputError, match="being committed"):
                    pool.submit(act).result()
        return publish(self, *args, **options)

    monkeypatch.setattr(ckptstore.Repository, "_publish_session", beside_a_writer)
    with repo.session() as session:
        stores.append(session.store)
        with pytest.raises(ckptstore.InvalidInputError, match="step"):
            session.commit(step="x")
        session.store.set_sync("early", cpu.Buffer.from_bytes(b"x"))  # it was not committed
        session.commit()
        session.store.set_sync("next", cpu.Buffer.from_bytes(b"x"))
        session.commit()
    kept = [key for key in CheckpointStore(repo.url)._view().sorted_keys if "/" not in key]
    assert kept == ["early", "next", "zarr.json"]


def write_in_child(store: SessionStore, said: SimpleQueue[str]) -> None:
    try:
        store.set_sync("child", cpu.Buffer.from_bytes(b"x"))
        said.put("written")
    except ckptstore.InvalidInputError as error:
        said.put(str(error))


def test_a_forked_process_is_refused_the_session_of_its_parent(repo: ckptstore.Repository) -> None:
    """What it set would be in its own memory, and lost without a word."""
    fork = get_context("fork")
    said = fork.SimpleQueue()
    with repo.session() as session:
        child = fork.Process(target=write_in_child, args=(session.store, said))
        child.start()
        child.join()
        assert "in the process that opened" in said.get()


def test_threads_write_one_store_at_once(repo: ckptstore.Repository) -> None:
    data = np.random.default_rng(0).normal(size=(64, 3_000))
    with repo.session("threads") as session:
        group = zarr.open_group(session.store)
        whole = group.create_array("whole", shape=data.shape, chunks=(1, 3_000), dtype="f8")

        def write(row: int) -> None:
            whole[row] = data[row]
            group.create_array(f"g{row % 5}/a{row}", data=data[row], chunks=(700,))
            if row % 3 == 0:
                del group[f"g{row % 5}/a{row}"]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(len(data))))
        session.commit()
    state = repo.checkout("threads")
    np.testing.assert_array_equal(state["whole"], data)
    for row in range(len(data)):
        found = state.get(f"g{row % 5}", {}).get(f"a{row}")
        assert (found is None) == (row % 3 == 0)
        if found is not None:
            np.testing.assert_array_equal(found, data[row])
    assert repo.verify().ok
