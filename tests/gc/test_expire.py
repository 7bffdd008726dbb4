"""Chosen checkpoints expire, and nothing else; what a name or a branch needs is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.retention import MaxToKeep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore import Repository


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    for step in range(5):
        made.commit({"w": np.arange(30_000.0) + step, "same": np.ones(30_000)}, step=step)
    return made


def live(repo: Repository) -> list[int | None]:
    return [found.step for found in repo.log() if not found.expired]


def test_chosen_ones_expire_and_free_what_only_they_reach(repo: Repository) -> None:
    plan = repo.expire(["main~1", "main@step=1"])
    assert [verdict.manifest.step for verdict in plan.expired] == [3, 1]
    assert {tuple(map(str, verdict.reasons)) for verdict in plan.expired} == {("expired by hand",)}
    assert live(repo) == [4, 3, 2, 1, 0]
    report = plan.execute()
    assert report.bytes == plan.bytes >= 2 * 30_000 * 8
    assert live(repo) == [4, 2, 0]
    for step in (4, 2, 0):
        assert repo.checkout(f"main@step={step}")["w"][0] == step
    with pytest.raises(ExpiredError, match="expired by hand"):
        repo.checkout("main~1")
    assert repo.verify().ok


def test_nothing_else_goes_with_them(repo: Repository) -> None:
    """No policy applies, and what a deleted branch left stays for a gc."""
    repo.set_retention(MaxToKeep(1))
    left = repo.commit({"w": np.zeros(30_000)}, branch="gone").id
    repo.delete_branch("gone")
    before = repo.usage().unreached_objects
    repo.expire("main~1").execute()
    assert live(repo) == [4, 2, 1, 0]
    assert np.array_equal(repo.checkout(left)["w"], np.zeros(30_000))
    assert repo.usage().unreached_objects == before


def test_one_that_no_branch_reaches_can_be_chosen(repo: Repository) -> None:
    left = repo.commit({"w": np.zeros(30_000)}, branch="gone").id
    repo.delete_branch("gone")
    assert repo.expire(left).execute().expired == (left,)
    assert live(repo) == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "rev", "said"),
    [
        (lambda repo: None, "main", "head of main"),
        (lambda repo: repo.tag("v1", "main~2"), "main~2", "tag v1"),
        (lambda repo: repo.tag("r", "main~2", ttl="1h"), "main~2", "lease r until"),
        (lambda repo: repo.branch("b", "main~2"), "main~2", "head of b"),
    ],
)
def test_what_is_named_is_refused_with_the_way_out(
    repo: Repository, name: Callable[[Repository], object], rev: str, said: str
) -> None:
    name(repo)
    with pytest.raises(ConflictError, match=f"expire: .*{said}.*reset or delete the branch"):
        repo.expire(["main@step=1", rev])
    assert live(repo) == [4, 3, 2, 1, 0]


def test_the_seed_of_a_branch_is_refused(repo: Repository) -> None:
    repo.branch("b", "main~2")
    repo.commit({"w": np.zeros(3)}, branch="b")
    with pytest.raises(ConflictError, match="seed of b"):
        repo.expire("main~2")


def test_what_is_not_there_or_has_expired_is_refused(repo: Repository) -> None:
    repo.expire("main~1").execute()
    with pytest.raises(ExpiredError):
        repo.expire("main~1")
    with pytest.raises(NotFoundError):
        repo.expire(["nowhere"])
    with pytest.raises(InvalidInputError):
        repo.expire([5])  # type: ignore[list-item]


def test_a_tag_made_after_the_plan_keeps_its_checkpoint(repo: Repository) -> None:
    plan = repo.expire(["main~1", "main~2"])
    repo.tag("v1", "main~1")
    plan.execute()
    assert live(repo) == [4, 3, 1, 0]
    assert repo.verify().ok


def test_a_branch_started_after_the_plan_keeps_its_seed(repo: Repository) -> None:
    plan = repo.expire(["main~1", "main~2"])
    repo.branch("b", "main~2")
    repo.commit({"w": np.zeros(3)}, branch="b", step=9)
    plan.execute()
    assert live(repo) == [9, 4, 2, 1, 0]
    assert repo.verify().ok
