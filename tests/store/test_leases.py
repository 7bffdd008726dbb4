"""A lease is a tag that is gone after a time, for gc and for everybody else."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore import InvalidInputError, NotFoundError
from ckptstore.documents.operation import Operation
from ckptstore.retention import MaxToKeep
from ckptstore.store.oplog import Oplog

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore import Repository

HOUR = 3600


class Clock:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_767_225_600.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repo(tmp_path: Path, clock: Clock) -> Repository:
    made = ckptstore.init(tmp_path / "store", clock=clock)
    for step in range(3):
        made.commit({"n": step}, step=step)
    return made


def live(repo: Repository) -> list[int | None]:
    return [checkpoint.step for checkpoint in repo.log() if not checkpoint.expired]


def test_a_lease_keeps_its_checkpoint_until_its_time_and_no_longer(
    repo: Repository, clock: Clock
) -> None:
    repo.tag("reading", "main~2", ttl="2h")
    clock.seconds += 2 * HOUR - 1
    repo.gc(MaxToKeep(1), grace=0)
    assert live(repo) == [2, 0]
    clock.seconds += 1
    assert repo.tags() == {}
    repo.gc(MaxToKeep(1), grace=0)
    assert live(repo) == [2]
    with pytest.raises(NotFoundError):
        repo.resolve("reading")


def test_the_first_gc_after_the_end_frees_it_and_drops_it_for_good(
    repo: Repository, clock: Clock
) -> None:
    repo.tag("reading", "main~2", ttl=HOUR)
    clock.seconds += HOUR
    assert len(repo.gc(MaxToKeep(1), grace=0).expired) == 2
    newest = Oplog(repo._storage).newest()  # as a reader sees it that knows no leases
    assert (newest.tags, newest.settings) == ({}, {})
    assert repo.verify().ok


def test_a_lease_lasts_for_a_block_and_longer_only_if_the_process_dies(
    repo: Repository, clock: Clock
) -> None:
    with repo.lease("main~1", ttl="10min") as checkpoint:
        (name,) = repo.tags()
        assert repo.tags()[name].id == checkpoint.id
        assert repo.leases()[name].timestamp() == clock.seconds + 600
        repo.gc(MaxToKeep(1), grace=0)
        assert repo.checkout(checkpoint.id) == {"n": 1}
    assert repo.ref_names()[1] == {}
    with repo.lease("main", ttl=60):
        clock.seconds += 61  # it has ended on its own
    assert repo.ref_names()[1] == {}


def test_any_operation_drops_what_has_ended_and_a_new_tag_of_the_name_stays(
    repo: Repository, clock: Clock
) -> None:
    repo.tag("v", "main~2", ttl=HOUR)
    clock.seconds += HOUR
    repo.tag("v", "main~2")
    clock.seconds += 100 * HOUR
    assert list(repo.tags()) == ["v"]
    assert repo.leases() == {}


def test_of_many_tags_on_pages_an_ended_lease_is_gone_and_the_others_stay(
    repo: Repository, clock: Clock
) -> None:
    id = repo.resolve("main").id
    many = {f"t{number:03}": id for number in range(600)}
    repo._oplog.append(lambda newest: replace(newest, tags=many))
    repo.tag("t1234", ttl=HOUR)
    clock.seconds += HOUR
    other = ckptstore.open(repo.url, clock=clock)
    other.tag("zzz")
    raw: Operation = Oplog(repo._storage).newest()
    assert raw.tags == {**many, "zzz": id}
    assert raw.settings == {}


def test_undo_brings_a_lease_back_with_its_end(repo: Repository, clock: Clock) -> None:
    repo.tag("v", ttl=HOUR)
    until = repo.leases()
    repo.delete_tag("v")
    assert repo.leases() == {}
    repo.undo()
    assert repo.leases() == until
    clock.seconds += HOUR
    assert repo.tags() == {}


def test_what_an_earlier_version_does_to_the_tag_of_a_lease_counts(repo: Repository) -> None:
    """It carries the setting along, and knows nothing of it."""
    repo.tag("v", "main~1", ttl=HOUR)
    other = repo.resolve("main").id
    repo._oplog.append(lambda newest: replace(newest, tags={"v": other}))
    assert repo.leases() == {}
    assert repo.tags()["v"].id == other


@pytest.mark.parametrize(
    "leases",
    [5, [], {"v": 5}, {"v": {"id": "x", "until": 1}}, {"v": {"id": None}}, {"w": {"until": 1}}],
)
def test_a_lease_in_no_known_form_is_a_tag(repo: Repository, leases: object) -> None:
    repo.tag("v")
    repo._oplog.append(lambda newest: replace(newest, settings={"leases": leases}))
    assert list(repo.tags()) == ["v"]
    repo.commit({"n": 9})
    assert list(repo.tags()) == ["v"]


def test_a_ttl_that_is_no_time_is_refused_before_anything_is_done(repo: Repository) -> None:
    with pytest.raises(InvalidInputError, match="6h"):
        repo.tag("v", ttl="soon")
    assert repo.tags() == {}


def test_the_reason_of_a_lease_names_its_end(repo: Repository, clock: Clock) -> None:
    repo.tag("reading", "main~2", ttl="2h")
    repo.tag("v1", "main~2")
    (verdict,) = [item for item in repo.plan_gc(MaxToKeep(1)).kept if item.manifest.step == 0]
    assert tuple(map(str, verdict.reasons)) == (
        "lease reading until 2026-01-01 02:00 UTC",
        "tag v1",
    )
