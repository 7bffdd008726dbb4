"""Repositories and checkpoints pickle as the place where they are."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import time
from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore import InvalidInputError
from ckptstore.training import CheckpointManager

if TYPE_CHECKING:
    from pathlib import Path


def test_a_repository_is_opened_where_it_is(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    made = repo.commit({"n": 1}, step=3)
    again = pickle.loads(pickle.dumps(repo))
    assert again.url == repo.url
    assert again.resolve("main") == made
    assert copy.deepcopy(repo).checkout() == {"n": 1}


def test_a_handle_by_hand_stays_one_and_keeps_its_clock(tmp_path: Path) -> None:
    ckptstore.init(tmp_path / "store")
    repo = pickle.loads(
        pickle.dumps(ckptstore.open(tmp_path / "store", by_hand=True, clock=time.monotonic))
    )
    made = repo.commit({"n": 1})
    assert made.created.year == 1970
    assert repo.operations()[0].role == "hand"


def test_a_checkpoint_is_found_where_it_is_with_notes_that_came_later(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    data = pickle.dumps(repo.commit({"w": 1}, step=3, metrics={"loss": 0.5}))
    assert len(data) < 500
    repo.annotate("main", metrics={"acc": 0.9})
    found = pickle.loads(data)
    assert (found.step, found.metrics) == (3, {"loss": 0.5, "acc": 0.9})
    assert found.values == {"w": 1}
    assert found.why == repo.resolve("main").why


def test_they_reach_a_process_that_was_spawned(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store")
    made = repo.commit({"w": 1}, step=3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(ckptstore.Repository.branches, [repo]) == [{"main": made}]


@pytest.mark.parametrize("name", ["", "named-for-pickle"])
def test_what_is_in_memory_says_so(name: str) -> None:
    repo = ckptstore.init(f"memory://{name}")
    made = repo.commit({"n": 1})
    for thing in (repo, made):
        with pytest.raises(InvalidInputError, match=r"memory://.* cannot be pickled"):
            pickle.dumps(thing)


def test_a_manager_says_in_one_line_why_not(tmp_path: Path) -> None:
    with (
        CheckpointManager(tmp_path / "store", rng=False) as manager,
        pytest.raises(InvalidInputError, match="cannot be pickled: it tracks objects") as error,
    ):
        pickle.dumps(manager)
    assert "\n" not in str(error.value)
