"""Sessions beside a gc: their objects are there at commit, or it raises ConflictError."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr

import ckptstore
from ckptstore.retention import MaxToKeep
from ckptstore.zarr import publish

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ckptstore.store.reach import Written
    from ckptstore.zarr import Session
    from ckptstore.zarr.staged_contents import StagedContents

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("one_thread")]

BIG = np.arange(100_000.0)


@pytest.fixture
def repo(tmp_path: Path) -> ckptstore.Repository:
    repo = ckptstore.init(tmp_path / "store", chunk_size=64 << 10)
    repo.commit({"old": BIG}, step=1)
    return repo


def replace_branch(repo: ckptstore.Repository) -> None:
    repo.commit({"other": np.zeros(3)}, step=2)


def delete_branch(repo: ckptstore.Repository) -> None:
    repo.delete_branch("main")


def write_one(session: Session) -> None:
    zarr.open_group(session.store).create_array("new", data=np.arange(3))


def write_over(session: Session) -> None:
    zarr.open_group(session.store)["old"][5] = 0


def delete_one(session: Session) -> None:
    """Then of the beginning only chunks are needed, and neither a page nor the structure."""
    del zarr.open_group(session.store)["old"]


def write_nothing(session: Session) -> None:
    del session


@pytest.mark.parametrize("write", [write_one, write_over, write_nothing])
@pytest.mark.parametrize("lose", [replace_branch, delete_branch])
def test_a_session_whose_beginning_expired_is_a_conflict_and_never_a_checkpoint_without_arrays(
    lose: Callable[[ckptstore.Repository], None],
    write: Callable[[Session], None],
    repo: ckptstore.Repository,
) -> None:
    with repo.session() as session:
        write(session)
        lose(repo)
        repo.gc(MaxToKeep(1), grace=0)
        with pytest.raises(ckptstore.ConflictError, match="expired"):
            session.commit(retry=True)
    assert repo.verify().ok
    with repo.session() as session:
        write_one(session)
        session.commit()
    assert repo.verify().ok


@pytest.mark.parametrize("write", [write_one, write_over, delete_one, write_nothing])
def test_a_gc_between_what_is_stored_and_what_is_published_is_a_conflict(
    write: Callable[[Session], None], repo: ckptstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"old": BIG, "kept": BIG + 1}, step=2)
    stored = publish.write
    other = ckptstore.open(repo.url)

    def and_gc(staged: StagedContents) -> Written:
        written = stored(staged)
        replace_branch(other)
        other.gc(MaxToKeep(1))  # with its grace: what was just stored stays
        return written

    monkeypatch.setattr(publish, "write", and_gc)
    with repo.session() as session:
        write(session)
        with pytest.raises(ckptstore.ConflictError):
            session.commit(retry=True)
    assert repo.verify().ok


def test_what_a_session_reads_after_its_beginning_expired_says_so(
    repo: ckptstore.Repository,
) -> None:
    with repo.session() as session:
        group = zarr.open_group(session.store)
        replace_branch(repo)
        repo.gc(MaxToKeep(1), grace=0)
        with pytest.raises(ckptstore.ExpiredError):
            _ = group["old"][:]


def test_a_session_that_lost_its_objects_to_a_gc_that_ran_to_its_end_is_a_conflict(
    repo: ckptstore.Repository,
) -> None:
    with repo.session("other") as session:
        zarr.create_array(session.store, name="big", data=BIG, chunks=(50_000,), compressors=None)
        repo.gc(MaxToKeep(1), grace=0)
        with pytest.raises(ckptstore.ConflictError, match="gc deleted"):
            session.commit(retry=True)
    assert repo.verify().ok


def test_chunks_that_a_session_found_in_a_checkpoint_that_then_expires_are_not_lost(
    repo: ckptstore.Repository,
) -> None:
    """Equal chunks are not written again, so a session may rely on another checkpoint's."""
    whole = BIG[: 12 * 8_192]  # of 100,000: no chunk is padded, so all of them are there already
    before = len(list(repo._objects.list()))
    with repo.session("other") as session:
        group = zarr.open_group(session.store)
        group.create_array("same", data=whole, chunks=(8_192,), compressors=None)
        assert len(list(repo._objects.list())) == before
        replace_branch(repo)
        repo.gc(MaxToKeep(1), grace=0)
        with pytest.raises(ckptstore.ConflictError, match="gc deleted"):
            session.commit()
    with repo.session("other") as session:
        group = zarr.open_group(session.store)
        group.create_array("same", data=whole, chunks=(8_192,), compressors=None)
        session.commit()
    np.testing.assert_array_equal(repo.checkout("other")["same"], whole)
    assert repo.verify().ok
