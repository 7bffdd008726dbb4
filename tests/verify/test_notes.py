"""Verify reports what is no damage as a note, and the exit code stays 0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ckptstore
from ckptstore.retention import MaxToKeep
from tests.helpers.damage import world as worlds
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from pathlib import Path

    from tests.helpers.damage.world import World

FOLDERS = ("objects", "objects/ab", "ops", "refs", "checkpoints", "history", "expired")
NAMES = (
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._000000000003.json",
    ".nfs000000001",
    ".000000000003.json.Xa3b9Q",  # of rsync
    ".syncthing.000000000003.json.tmp",
    "000000000003.sync-conflict-20260101-000000-ABCDEFG.json",
    "000000000003 (conflicted copy).json",
    "000000000003.json~",
    ".000000000003.json.swp",
    "#000000000003.json#",
    "3.json",
    "a" * 61,
    "A" * 62,
)
INSIDE = ("lost+found/file", ".snapshot/hourly.0/000000000001.json", "@eaDir/thumb.jpg")


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_of_other_programs_are_a_note_and_stop_nothing(world: World, folder: str) -> None:
    foreign = {f"{folder}/{name}" for name in NAMES}
    for key in (*foreign, *(f"{folder}/{inside}" for inside in INSIDE)):
        path = world.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    repo = world.open()
    report = repo.verify()
    assert report.ok
    assert foreign <= set(report.foreign)
    assert len(report.foreign) == len(foreign) + len(INSIDE)
    for id, truth in world.states.items():
        assert difference(truth, repo.checkout(id)) is None
    made = repo.commit(worlds.state(50))
    assert repo.usage().objects == repo.verify().objects
    assert repo.gc(MaxToKeep(1), grace=0).expired
    assert difference(worlds.state(50), repo.checkout(made.id)) is None
    assert repo.verify().ok
    assert set(report.foreign) == set(repo.verify().foreign)


def test_a_link_of_another_name_is_not_followed(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"x")
    (world.root / "objects/link").symlink_to(tmp_path / "elsewhere")
    report = world.open().verify()
    assert (report.ok, report.foreign) == (True, ("objects/link",))


def test_what_no_ref_reaches_is_counted_and_named(world: World) -> None:
    repo = world.open()
    assert repo.verify().unreachable == ckptstore.Unreachable()
    made = [repo.commit(worlds.state(number), branch="lost", step=number) for number in (60, 61)]
    before = repo.verify()
    assert not before.unreachable.objects
    repo.delete_branch("lost")
    (world.root / "objects/ab").mkdir(exist_ok=True)
    orphan = ckptstore.Digest.of(b"orphan")
    (world.root / "objects" / orphan[:2]).mkdir(exist_ok=True)
    (world.root / "objects" / orphan[:2] / orphan[2:]).write_bytes(b"orphan")
    report = repo.verify()
    assert report.ok
    assert report.unreachable.checkpoints == (made[1].id, made[0].id)
    plan = repo.plan_gc(MaxToKeep(9), grace=0)
    assert report.unreachable.bytes == plan.bytes
    assert plan.execute().objects == report.unreachable.objects
    assert repo.verify().unreachable == ckptstore.Unreachable()


def test_operations_that_are_missing_are_counted(world: World) -> None:
    second = sorted((world.root / "ops").iterdir())[1]
    assert world.open().verify().missing_operations == 0
    second.unlink()
    report = world.open().verify()
    assert (report.ok, report.missing_operations) == (True, 1)
