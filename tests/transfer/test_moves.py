"""Branches of the other side move forward only, unless they are forced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore.errors import ConflictError
from tests.helpers.transfers import assert_sound, keys_of, state

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ckptstore.Repository, ckptstore.Repository]:
    """Two repositories whose branch main has moved on in each."""
    one = ckptstore.init(tmp_path / "one")
    one.commit(state(0), step=0)
    other = ckptstore.clone(one.url, tmp_path / "other")
    one.commit(state(1), step=1)
    other.commit(state(2), step=2)
    return one, other


def test_a_push_that_would_lose_a_checkpoint_is_refused(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    before = keys_of(one)
    with pytest.raises(ConflictError) as caught:
        other.push()
    message = str(caught.value)
    assert "non-fast-forward" in message
    for way in ("Pull first", "branches={'main': 'NAME'}", "force=True"):
        assert way in message
    assert keys_of(one) == before


def test_a_pull_that_would_lose_a_checkpoint_is_refused(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    _, other = pair
    before = keys_of(other)
    with pytest.raises(ConflictError, match=r"non-fast-forward.*Pull it under another name"):
        other.pull()
    assert keys_of(other) == before


def test_one_refused_branch_stops_all(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    other.branch("fine", at="main")
    with pytest.raises(ConflictError):
        other.push()
    assert set(one.ref_names()[0]) == {"main"}


def test_a_forced_push_lets_the_old_head_go_for_the_grace_time(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    old = one.resolve("main").id
    (move,) = other.push(force=True).moves
    assert (move.before, move.is_forced) == (old, True)
    assert one.resolve("main").step == 2
    one.gc()
    assert not one.resolve(old).expired
    assert_sound(one)
    one.undo()
    assert one.resolve("main").id == old


def test_another_name_needs_no_force(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    other.push(branches={"main": "theirs"})
    assert (one.resolve("main").step, one.resolve("theirs").step) == (1, 2)
    other.pull(branches={"main": "upstream"})
    assert (other.resolve("main").step, other.resolve("upstream").step) == (2, 1)
    assert other.pull(branches={"main": "upstream"}).moves == ()


def test_a_branch_behind_is_a_conflict_to_push_and_nothing_to_pull(tmp_path: Path) -> None:
    one = ckptstore.init(tmp_path / "one")
    one.commit(state(0))
    other = ckptstore.clone(one.url, tmp_path / "other")
    other.commit(state(1))
    assert other.pull().moves == ()
    with pytest.raises(ConflictError):
        one.push(other.url)
    assert other.push().moves[0].after == other.resolve("main").id


def test_a_tag_does_not_move_unless_it_is_forced(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    one.tag("v1", at="main")
    other.tag("v1", at="main")
    assert other.plan_push(branches={"main": "theirs"}).moves[0].name == "theirs"
    with pytest.raises(ConflictError, match="Tag 'v1'"):
        other.push(branches={"main": "theirs"}, tags="v1")
    other.push(branches={"main": "theirs"}, tags="v1", force=True)
    assert one.resolve("v1").step == 2


def test_a_name_is_never_a_branch_and_a_tag(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    one.tag("mine", at="main")
    with pytest.raises(ConflictError, match="'mine' is a tag"):
        other.push(branches={"main": "mine"})
    other.tag("fine", at="main")
    one.branch("fine", at="main")
    with pytest.raises(ConflictError, match="'fine' is a branch"):
        other.push(branches=[], tags=["fine"])
    assert [move.name for move in other.push(branches={"main": "x"}).moves] == ["x"]


def test_a_name_that_is_the_beginning_of_an_id_is_refused(
    pair: tuple[ckptstore.Repository, ckptstore.Repository],
) -> None:
    one, other = pair
    name = one.resolve("main").id[:8]
    with pytest.raises(ConflictError, match="names checkpoint"):
        other.push(branches={"main": name})
