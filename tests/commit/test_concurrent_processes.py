"""Several processes commit to one branch at once."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

import ckptstore
from ckptstore import NotFoundError
from tests.helpers import commit_worker
from tests.helpers.crash.checker import equal
from tests.helpers.crash.victim import state
from tests.helpers.root import ROOT
from tests.helpers.workers import collect, join, release

pytestmark = pytest.mark.concurrency

COMMITS = 6


@pytest.mark.parametrize("writers", [2, 8])
def test_a_loser_gets_a_conflict_and_no_acknowledged_commit_is_lost(
    writers: int, tmp_path: Path
) -> None:
    url = tmp_path / "store"
    ckptstore.init(url)
    said = join([begin(url, 1000 * k, COMMITS) for k in range(1, writers + 1)])
    assert len(said.acks) + len(said.conflicts) == writers * COMMITS
    assert_one_line_of(said.acks, ckptstore.open(url))


@pytest.mark.parametrize("writers", [2, 8])
def test_with_retry_every_commit_lands_in_one_line_even_when_all_make_the_repository(
    writers: int, tmp_path: Path
) -> None:
    url = tmp_path / "above" / "store"
    said = join([begin(url, 1000 * k, COMMITS, "--retry") for k in range(1, writers + 1)])
    assert not said.conflicts
    assert len(said.acks) == writers * COMMITS
    assert_one_line_of(said.acks, ckptstore.open(url))


def test_a_process_forked_after_use_goes_on_with_the_same_handle(tmp_path: Path) -> None:
    url = tmp_path / "store"
    said = join([begin(url, 1000, 7, "--retry", "--fork")])
    assert len(said.acks) == 7
    assert_one_line_of(said.acks, ckptstore.open(url))


def test_a_reader_beside_committers_sees_whole_checkpoints_and_no_step_back(
    tmp_path: Path,
) -> None:
    url = tmp_path / "store"
    workers = [begin(url, 1000 * k, 2 * COMMITS, "--retry") for k in (1, 2)]
    release(workers)
    seen: list[str] = []
    reads = 0
    while any(process.poll() is None for process in workers) or not seen:
        try:
            repo = ckptstore.open(url)
            head = repo.resolve("main")
        except NotFoundError:  # not made yet
            continue
        assert equal(repo.checkout(head.id), state(head.step or 0))
        history = [found.id for found in reversed(repo.log("main"))]
        assert history[: len(seen)] == seen
        seen = history
        reads += 1
    said = collect(workers)
    assert reads
    assert_one_line_of(said.acks, ckptstore.open(url))


def begin(url: Path, first: int, commits: int, *options: str) -> subprocess.Popen[str]:
    """Start a worker; it waits for the word."""
    return subprocess.Popen(
        [
            sys.executable,
            commit_worker.__file__,
            str(url),
            str(first),
            str(first + commits - 1),
            *options,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def assert_one_line_of(acks: dict[str, int], repo: ckptstore.Repository) -> None:
    """The branch is one line of exactly what was acknowledged, each whole."""
    history = repo.log("main")
    assert {found.id: found.step for found in history} == acks
    for found, older in pairwise(history):
        assert found.parents == (older.id,)
    for found in history:
        assert equal(repo.checkout(found.id), state(found.step or 0))
    assert repo.verify().ok
