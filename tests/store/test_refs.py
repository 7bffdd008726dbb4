"""Refs: the way back from a newest operation that cannot be read, beside a gc that died."""

from __future__ import annotations

import os
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError, CorruptError, ExpiredError
from ckptstore.documents import ref_page
from ckptstore.retention import MaxToKeep
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ckptstore import Repository
    from ckptstore.digest import Digest

LARGE = np.arange(40_000.0)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_another(path: Path) -> None:
    path.write_bytes(path.with_name("000000000001.json").read_bytes())


def cut_off(path: Path) -> None:
    os.truncate(path, 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES: tuple[Callable[[Path], object], ...] = (
    empty,
    flip,
    replace_by_folder,
    cut_off,
    replace_by_another,
)


def newest_of(repo: Repository) -> Path:
    return max((Path(repo.url) / "ops").iterdir())


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return ckptstore.init(tmp_path / "store", chunk_size=64 << 10)


def test_an_undo_without_operations_says_that_they_are_missing(repo: Repository) -> None:
    for step in range(3):
        repo.commit({"n": step}, step=step)
    for path in (Path(repo.url) / "ops").iterdir():
        path.unlink()
    with pytest.raises(CorruptError, match="none of the operations"):
        repo.undo()


def test_an_undo_that_needs_an_expired_checkpoint_says_that_it_failed_and_the_way_out(
    repo: Repository,
) -> None:
    first = repo.commit({"n": 1}, metrics={"val_loss": 0.1})
    second = repo.commit({"n": 2}, metrics={"val_loss": 0.2})
    repo.gc(MaxToKeep(1), grace=0)
    with pytest.raises(ExpiredError) as raised:
        repo.undo()
    told = str(raised.value)
    assert told.startswith(f"Operation 2 (committed {second.id.short} to main) cannot be undone.")
    assert f"{first.id.short} expired" in told
    repo.tag("v")
    repo.undo()
    assert repo.tags() == {}


def test_a_best_checkpoint_that_expired_is_named_with_the_best_that_is_stored(
    repo: Repository,
) -> None:
    losses = (0.1, 0.3, 0.2, 0.4)
    made = [repo.commit({"n": loss}, metrics={"val_loss": loss}) for loss in losses]
    repo.gc(MaxToKeep(2), grace=0)
    uses: tuple[Callable[[str], object], ...] = (
        repo.checkout,
        partial(repo.branch, "x"),
        partial(repo.tag, "x"),
        partial(repo.branch, "x", include="n"),
        partial(repo.diff, "main"),
    )
    for use in uses:
        with pytest.raises(ExpiredError) as raised:
            use("main@best:val_loss")
        told = str(raised.value)
        assert told.startswith(
            f"'main@best:val_loss' cannot be used. Checkpoint {made[0].id.short}"
        )
        assert told.endswith(f"The best one that is stored is {made[2].id.short}.")
        with pytest.raises(ExpiredError, match=r"'main~3' cannot be used.*remain\.$"):
            use("main~3")
    assert sorted(repo.branches()) == ["main"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_operation_names_itself_and_undo_goes_back(
    repo: Repository, damage: Callable[[Path], object]
) -> None:
    for step in range(3):
        lost = repo.commit({"n": step}, step=step)
    path = newest_of(repo)
    damage(path)
    for act in (repo.log, repo.checkout, partial(repo.commit, {"n": 4}), repo.usage):
        with pytest.raises(CorruptError, match=r"ops/000000000003\.json.*undo goes back"):
            act()
    undone = repo.undo()
    assert undone.operation == 3
    assert lost.id.short in undone.description
    assert [made.step for made in repo.log()] == [1, 0]
    assert path.exists()
    repo.branch("again", lost.id)
    assert repo.checkout("again") == {"n": 2}
    assert repo.commit({"n": 5}).parents == (repo.resolve("main~1").id,)
    assert {problem.key for problem in repo.verify().problems} == {key_of(3)}


def test_later_undos_pass_over_the_damaged_operation(repo: Repository) -> None:
    for step in range(3):
        repo.commit({"n": step}, step=step)
    empty(newest_of(repo))
    repo.undo()
    repo.tag("v")
    assert repo.undo().description.startswith("made tag v")
    assert repo.undo().operation == 2
    assert [made.step for made in repo.log()] == [0]


def test_many_refs_are_restored_with_pages_of_their_own(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of an operation are pruned by what the next one has."""
    monkeypatch.setattr(ref_page, "REFS_INLINE_MAX", 2)
    monkeypatch.setattr(ref_page, "PAGE_REFS_MAX", 2)
    repo.commit({})
    for number in range(5):
        repo.tag(f"v{number}")
    before = repo._oplog.newest()
    repo.delete_tag("v1")
    empty(newest_of(repo))
    repo.undo()
    restored = repo._oplog.newest()
    assert restored.tags == before.tags
    assert len(restored.tag_pages) > 1
    assert not {*restored.tag_pages} & {*before.tag_pages}


def test_several_damaged_operations_are_passed_over_at_once(repo: Repository) -> None:
    for step in range(4):
        repo.commit({"n": step}, step=step)
    for seq in (3, 4):
        empty(newest_of(repo).with_name(f"{seq:012}.json"))
    assert repo.undo().operation == 4
    assert [made.step for made in repo.log()] == [1, 0]


def test_without_any_operation_to_go_back_to_nothing_is_appended(repo: Repository) -> None:
    for step in range(2):
        repo.commit({"n": step})
        empty(newest_of(repo))
        if not step:
            repo.undo()
    for path in newest_of(repo).parent.iterdir():
        empty(path)
    with pytest.raises(CorruptError, match="None of the operations"):
        repo.undo()
    assert newest_of(repo).name == "000000000003.json"


def test_an_operation_of_a_newer_version_is_no_damage(repo: Repository) -> None:
    from ckptstore.documents import sealed

    repo.commit({})
    newer = sealed.seal("operation", {"format": 99, "seq": 2})
    newest_of(repo).with_name("000000000002.json").write_bytes(newer)
    with pytest.raises(ckptstore.InvalidInputError, match="newer"):
        repo.undo()
    assert len(list(newest_of(repo).parent.iterdir())) == 2


def test_of_two_processes_that_go_back_one_does(repo: Repository) -> None:
    repo.commit({})
    repo.commit({})
    empty(newest_of(repo))
    now = lambda: 1  # noqa: E731
    assert repo._oplog.step_over(now=now)[0] == 2
    with pytest.raises(ConflictError, match="not damaged any more"):
        repo._oplog.step_over(now=now)
    assert newest_of(repo).name == "000000000003.json"


class DiedError(Exception):
    """The process ended there."""


def die_in_gc(repo: Repository, monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """Run a gc that dies in its first round of deletes, after so many objects."""
    whole = ObjectStore.delete

    def delete(self: ObjectStore, digests: Iterable[Digest]) -> None:
        whole(self, islice(digests, after))
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "delete", delete)
        with pytest.raises(DiedError):
            repo.gc(MaxToKeep(1), grace=0)
    condemned = repo._oplog.newest().condemned
    assert condemned is not None
    assert condemned.digests


@pytest.mark.parametrize("after", [0, 1, 100])
def test_a_gc_that_died_beside_the_damage_has_left_every_live_checkpoint_whole(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    for step in range(3):
        repo.commit({"w": LARGE + step, "n": step}, step=step)
    die_in_gc(repo, monkeypatch, after=after)
    empty(newest_of(repo))
    repo.undo()
    assert repo.verify().problems[0].key.startswith("ops/")
    assert len(repo.verify().problems) == 1
    assert repo.checkout()["n"] == 2
    made = repo.commit({"w": LARGE, "n": 0})  # what the gc may have deleted
    assert np.array_equal(repo.checkout(made.id)["w"], LARGE)
    repo.gc(MaxToKeep(1), grace=0)
    assert [problem.key[:4] for problem in repo.verify().problems] == ["ops/"]


def test_what_a_gc_that_died_had_condemned_is_still_condemned(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(2):
        repo.commit({"w": LARGE + step})
    die_in_gc(repo, monkeypatch, after=0)
    condemned = repo._oplog.newest().condemned
    repo.tag("v")
    empty(newest_of(repo))
    repo.undo()
    assert repo._oplog.newest().condemned == condemned
    made = repo.commit({"w": LARGE})  # which the gc is finished for
    assert repo._oplog.newest().condemned is None
    assert np.array_equal(repo.checkout(made.id)["w"], LARGE)


def test_a_commit_that_began_before_the_damage_puts_again_what_a_gc_deleted(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation that condemned it is the one that was lost."""
    repo.commit({"w": LARGE}, branch="old")
    repo.commit({"n": 1})
    repo.delete_branch("old")
    die_in_gc(repo, monkeypatch, after=0)
    lost = newest_of(repo)
    condemned = repo._oplog.newest().condemned
    assert condemned is not None

    def clock() -> float:
        """Come between the puts of the commit and its operation."""
        if lost.stat().st_size:
            repo._objects.delete(condemned.digests)
            empty(lost)
            repo.undo()
        return 1.0

    made = ckptstore.open(repo.url, clock=clock).commit({"w": LARGE})
    assert not lost.stat().st_size
    assert np.array_equal(repo.checkout(made.id)["w"], LARGE)
    assert [problem.key for problem in repo.verify().problems] == [f"ops/{lost.name}"]


def test_no_new_name_is_the_beginning_of_an_id() -> None:
    """It would hide the checkpoint that log shows by these digits."""
    repo = ckptstore.init("memory://")
    made = repo.commit({"w": 0})
    repo.branch("other")
    for digits in (6, 8, 64):
        name = made.id[:digits]
        for act in (
            lambda name=name: repo.branch(name),
            lambda name=name: repo.branch(name, exclude="nothing"),
            lambda name=name: repo.tag(name),
            lambda name=name: repo.rename_branch("other", name),
            lambda name=name: repo.commit({"w": 1}, branch=name),
        ):
            with pytest.raises(ConflictError, match=f"names checkpoint {made.id.short}"):
                act()
    unused = next(name for name in ("abcdef", "fedcba") if not made.id.startswith(name))
    assert repo.branch(unused).id == made.id
    assert repo.tag(made.id[:5]).id == made.id
