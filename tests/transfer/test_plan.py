"""What a transfer copies: all of the history, nothing twice, and no settings."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

import ckptstore
from ckptstore.errors import ConflictError, CorruptError, InvalidInputError, NotFoundError
from ckptstore.retention import KeepBest, MaxToKeep
from ckptstore.storage import MemoryStorage
from ckptstore.testing.s3_server import S3Server
from tests.helpers.equality import difference
from tests.helpers.transfers import (
    assert_sound,
    keys_of,
    log_of,
    planned,
    repository_in,
    state,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Place = Callable[[str], str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with S3Server() as server:
        yield server


@pytest.fixture(params=["disk", "s3", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The URL of a place of a name."""
    if request.param == "s3":
        return request.getfixturevalue("server").url  # type: ignore[no-any-return]
    if request.param == "memory":
        return lambda name: f"memory://{tmp_path}-{name}"
    return lambda name: f"file://{tmp_path / name}"


def _run(url: str | Path) -> ckptstore.Repository:
    """A run whose oldest checkpoint has expired, with a branch, a tag and notes."""
    repo = ckptstore.init(url)
    for number in range(4):
        repo.commit(state(number), step=number, metrics={"loss": 1.0 / (number + 1)})
    repo.branch("fine", at="main~1")
    repo.commit(state(9), branch="fine", step=9)
    repo.tag("v1", at="main~2")
    repo.annotate("main~1", metrics={"acc": 0.5}, message="good")
    repo.annotate("main~3", metrics={"acc": 0.1})
    repo.expire("main~3").execute()
    return repo


def _assert_same(one: ckptstore.Repository, other: ckptstore.Repository) -> None:
    assert one.ref_names() == other.ref_names()
    for name in one.ref_names()[0]:
        assert log_of(one, name) == log_of(other, name)
        assert difference(one.checkout(name), other.checkout(name)) is None


def test_a_run_goes_to_any_place_and_comes_back(tmp_path: Path, place: Place) -> None:
    repo = _run(tmp_path / "run")
    there = ckptstore.init(place("backup"))
    report = repo.push(there.url)
    there = ckptstore.open(place("backup"))
    _assert_same(repo, there)
    assert_sound(there)
    assert len(report.checkpoints) == 4
    assert list(report.expired) == [repo.resolve("main~3").id]
    assert there.resolve("main~3").expired
    back = ckptstore.clone(place("backup"), tmp_path / "back")
    _assert_same(repo, back)
    assert_sound(back)
    back.commit(state(20), step=20)
    back.push()
    assert repo.pull(place("backup")).moves[0].after == back.resolve("main").id
    _assert_same(repo, back)


def test_an_expired_checkpoint_keeps_the_reason(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    assert copy.why("main~3").reasons == repo.why("main~3").reasons


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    changed = state(3)
    changed["model"]["bias"] = np.full(3, 17, "f4")
    repo.commit(changed, step=10)
    plan = copy.plan_pull()
    assert plan.objects == 2  # the bundle and the page
    assert plan.bytes < 3000
    assert copy.pull().bytes == plan.bytes
    assert copy.plan_pull().objects == 0


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    other = ckptstore.init(tmp_path / "other")
    before = keys_of(repo), keys_of(other)
    plan = repo.plan_push(other.url)
    assert plan.objects > 0
    assert (keys_of(repo), keys_of(other)) == before
    assert plan.execute().objects == plan.objects


def test_the_refs_move_by_one_operation(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    other = ckptstore.init(tmp_path / "other")
    repo.push(other.url)
    moved = [info for info in other.operations() if info.moves]
    assert len(moved) == 1
    assert "fine, main, v1" in moved[0].description
    other.undo()
    assert other.ref_names() == ({}, {})


def test_branches_tags_and_revisions_are_chosen(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    other = ckptstore.init(tmp_path / "other")
    repo.push(other.url, branches="fine", tags=False)
    assert other.ref_names() == ({"fine": repo.resolve("fine").id}, {})
    repo.push(other.url, branches={"main~1": "older", "fine": "theirs/fine"}, tags="v1")
    heads, tags = other.ref_names()
    assert heads["older"] == repo.resolve("main~1").id
    assert heads["theirs/fine"] == heads["fine"]
    assert tags == {"v1": repo.resolve("v1").id}
    assert_sound(other)


def test_a_tag_goes_alone_with_its_history(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    other = ckptstore.init(tmp_path / "other")
    repo.push(other.url, branches=["v1"], tags=False)
    assert other.ref_names() == ({}, {"v1": repo.resolve("v1").id})
    assert_sound(other)


def test_tags_follow_only_with_their_branch(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    repo.tag("v2", at="fine")
    other = ckptstore.init(tmp_path / "other")
    repo.push(other.url, branches="main")
    assert set(other.ref_names()[1]) == {"v1"}
    repo.push(other.url, branches="main", tags=True)
    assert set(other.ref_names()[1]) == {"v1", "v2"}


def test_a_lease_stays_at_home(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    repo.tag("reading", at="main", ttl="6h")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    assert set(copy.ref_names()[1]) == {"v1"}


@pytest.mark.parametrize("depth", [1, 2])
def test_older_checkpoints_are_left_behind_as_history(depth: int, tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy", branches="main", depth=depth)
    assert log_of(copy, "main") == log_of(repo, "main")
    assert [c.step for c in copy.log("main") if not c.expired] == [3, 2, 1][: max(depth, 1)] + (
        [1] if depth < 3 else []
    )  # v1 is at step 1
    assert_sound(copy)
    if depth == 1:
        assert str(copy.why("main~1").reasons[0]).endswith(
            "left behind by a transfer with depth 1."
        )


def test_what_was_left_behind_comes_with_a_greater_depth(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy", branches="main", depth=1)
    assert copy.pull(branches="main").checkpoints == ()
    assert len(copy.pull(branches="main", depth=5).checkpoints) == 1
    assert not copy.resolve("main~1").expired
    assert copy.resolve("main~3").expired
    assert_sound(copy)
    fresh = ckptstore.open(copy.url)
    fresh.gc(grace=0)
    assert not fresh.resolve("main~1").expired
    assert not list((tmp_path / "copy/expired").glob(f"{copy.resolve('main~1').id}*"))


def test_what_a_gc_of_the_source_expired_before_is_no_reason_to_expire_at_the_target(
    tmp_path: Path,
) -> None:
    repo = ckptstore.init(tmp_path / "run")
    mirror = ckptstore.init(tmp_path / "mirror")
    repo.commit(state(0), step=0)
    repo.push(mirror.url)
    for number in range(1, 4):
        repo.commit(state(number), step=number)
        repo.gc(MaxToKeep(1), grace=0)
    repo.push(mirror.url)
    mirror = ckptstore.open(mirror.url)
    mirror.gc(grace=0)
    assert [c.step for c in mirror.log() if not c.expired] == [3, 0]
    assert_sound(mirror)


def test_a_checkpoint_that_expired_here_is_not_fetched_again(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy", branches="main", depth=9)
    copy.delete_tag("v1")
    copy.gc(MaxToKeep(1), grace=0)
    repo.commit(state(7), step=7)
    assert len(copy.pull(branches="main", tags=False).checkpoints) == 1
    assert [c.step for c in copy.log("main") if not c.expired] == [7, 3]


def test_settings_stay_at_home(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    repo.set_retention(MaxToKeep(2))
    repo.set_retention(KeepBest("loss", "min", 1), branch="fine")
    repo.set_grace(60)
    repo.set_remote("evil", tmp_path / "elsewhere")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    assert copy.remotes == {"origin": repo.url}
    assert copy.retention() is None
    assert copy.retention(branch="fine") is None
    assert copy.grace() == 86400
    assert "origin" not in repo.remotes
    copy.commit(state(30))
    copy.push(repo.url)
    assert repo.remotes == {"evil": str(tmp_path / "elsewhere")}


def _with_policies(path: Path) -> ckptstore.Repository:
    repo = _run(path)
    repo.set_retention(MaxToKeep(2))
    repo.set_retention(KeepBest("loss", "min", 1), branch="fine")
    return repo


def test_policies_go_along_when_asked_for(tmp_path: Path) -> None:
    repo = _with_policies(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy", policies=True)
    assert copy.retention() == MaxToKeep(2)
    assert copy.retention("fine") == KeepBest("loss", "min", 1)
    assert copy.retention("main") is None
    copy.set_retention(None)
    copy.set_retention(MaxToKeep(7), branch="fine")
    plan = repo.plan_push(copy.url, policies=True)
    assert (plan.policies, plan.moves, plan.objects) == (2, (), 0)
    plan.execute()
    assert copy.retention() == MaxToKeep(2)
    assert copy.retention("fine") == KeepBest("loss", "min", 1)
    assert copy.operations()[0].description == "received policies"
    assert repo.push(copy.url, policies=True).policies == 0
    copy.undo()
    assert copy.retention("fine") == MaxToKeep(7)
    repo.push(copy.url)
    assert copy.retention("fine") == MaxToKeep(7), "not asked for"


def test_named_branches_get_the_policy_that_applies_to_each(tmp_path: Path) -> None:
    repo = _with_policies(tmp_path / "run")
    copy = ckptstore.init(tmp_path / "copy")
    copy.set_retention(MaxToKeep(9))
    copy.pull(repo.url, branches={"main": "theirs", "fine": "fine"}, policies=True)
    assert copy.retention("theirs") == MaxToKeep(2)
    assert copy.retention("fine") == KeepBest("loss", "min", 1)
    assert copy.retention() == MaxToKeep(9), "other branches keep theirs"
    repo.set_retention(None)
    repo.set_retention(None, branch="fine")
    assert copy.pull(repo.url, branches="fine", policies=True).policies == 0
    assert copy.retention("fine") == KeepBest("loss", "min", 1), "there is none to take its place"


def test_the_own_checkpoints_of_a_renamed_branch_stay_its_own(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    repo.rename_branch("main", "baseline")
    repo.branch("again", at="baseline~1")
    repo.reset_branch("fine", "baseline")
    repo.commit(state(40), branch="fine", step=40)
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    for name in repo.branches():
        found = [side.plan_gc(MaxToKeep(1), branches=[name]) for side in (repo, copy)]
        verdicts = [
            [(v.id, v.kept, v.branches) for v in plan.verdicts if v.branches] for plan in found
        ]
        assert verdicts[0] == verdicts[1], name


def test_a_mirror_has_exactly_the_refs_of_the_source(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    mirror = ckptstore.clone(repo.url, tmp_path / "mirror")
    mirror.commit(state(50), branch="other")
    mirror.commit(state(51))
    mirror.tag("main2", at="other")
    repo.delete_branch("fine")
    repo.commit(state(52), branch="main2", step=52)
    report = repo.push(mirror.url, mirror=True)
    assert {move.name for move in report.moves if move.after is None} == {"other", "fine", "main2"}
    _assert_same(repo, mirror)
    assert_sound(mirror)


def test_a_mirror_of_nothing_deletes_nothing(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    with pytest.raises(InvalidInputError, match="has no branch"):
        ckptstore.init(tmp_path / "empty").push(repo.url, mirror=True)
    assert set(repo.ref_names()[0]) == {"fine", "main"}


def test_a_fetch_leaves_the_own_branches_alone(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    copy.commit(state(60), step=60)
    repo.commit(state(61), step=61)
    copy.fetch()
    assert copy.resolve("origin/main").id == repo.resolve("main").id
    assert copy.resolve("main").step == 60
    repo.reset_branch("main", "main~2")
    copy.fetch("origin", branches="main")
    assert copy.resolve("origin/main").id == repo.resolve("main").id
    other = ckptstore.init(tmp_path / "other")
    copy.push(other.url)
    assert set(other.ref_names()[0]) == {"fine", "main"}


def test_notes_that_came_are_seen_by_handles_that_were_open(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    handle = ckptstore.open(copy.url)
    assert handle.resolve("main").metrics == {"loss": 0.25}
    for number in range(3):
        repo.annotate("main", metrics={f"acc{number}": number})
    assert copy.pull().notes == 3
    assert log_of(handle, "main") == log_of(repo, "main")
    copy.annotate("main", message="seen")
    assert repo.pull(copy.url).notes == 1
    assert log_of(handle, "main") == log_of(repo, "main")


def test_arrays_of_zarr_move_too(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    repo = ckptstore.init(tmp_path / "run")
    with repo.session() as session:
        group = zarr.open_group(session.store)
        group["x"] = np.arange(300_000.0)
        session.commit(step=1)
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    assert_sound(copy)
    assert np.array_equal(copy.resolve("main").array("x")[:], np.arange(300_000.0))


@pytest.mark.hostile
@pytest.mark.parametrize("part", ["chunk", "page", "structure", "manifest", "missing"])
def test_a_damaged_source_is_refused_and_nothing_is_published(part: str, tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    other = ckptstore.init(tmp_path / "other")
    manifest = repo.resolve("main")._manifest
    sizes = planned(repo, other)._work._lacking.objects
    digest = {
        "page": manifest.pages[0].digest,
        "structure": manifest.structure,
    }.get(part, max(sizes, key=lambda digest: sizes[digest]))
    path = tmp_path / "run/objects" / digest[:2] / digest[2:]
    if part == "manifest":
        path = tmp_path / f"run/checkpoints/{repo.resolve('main').id}.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    os.chmod(path, 0o600)
    path.write_bytes(data)
    if part == "missing":
        path.unlink()
    with pytest.raises(CorruptError):
        ckptstore.open(repo.url).push(other.url)
    assert other.ref_names() == ({}, {})
    assert not list((tmp_path / "other/checkpoints").glob("*"))
    assert not list((tmp_path / "other/objects").glob(f"{digest[:2]}/{digest[2:]}"))
    assert_sound(other)


def test_a_repository_is_no_remote_of_itself(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    with pytest.raises(InvalidInputError, match="the repository itself"):
        repo.push(repo.url)


def test_there_has_to_be_a_repository(tmp_path: Path) -> None:
    repo = _run(tmp_path / "run")
    with pytest.raises(NotFoundError, match="is not a repository"):
        repo.push(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="is not a repository"):
        ckptstore.clone(tmp_path / "nothing", tmp_path / "copy")
    with pytest.raises(NotFoundError, match="no branch 'mian'"):
        ckptstore.clone(repo.url, tmp_path / "copy", branches="mian")
    assert not (tmp_path / "copy").exists()


def test_a_clone_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = _run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("ckptstore.transfer.plan.copy_objects", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            ckptstore.clone(repo.url, tmp_path / "copy")
    copy = ckptstore.clone(repo.url, tmp_path / "copy")
    _assert_same(repo, copy)
    with pytest.raises(ConflictError, match="already a repository"):
        ckptstore.clone(repo.url, tmp_path / "copy")


def _interrupted(*args: object) -> None:
    raise KeyboardInterrupt


def test_a_transfer_is_planned_again_when_the_target_moves_meanwhile() -> None:
    source = repository_in(MemoryStorage("source"))
    target = repository_in(MemoryStorage("target"))
    source.commit(state(0))
    planned(source, target).execute()
    source.commit(state(1))
    plan, other, third = (planned(source, target) for _ in range(3))
    source.commit(state(2))
    assert plan.execute().moves[0].after == source.resolve("main~1").id  # as planned
    assert other.execute().moves[0].after == source.resolve("main").id  # as it is by now
    target.commit(state(5))
    source.commit(state(6))
    with pytest.raises(ConflictError, match="non-fast-forward"):
        third.execute()


def test_a_ref_that_moves_while_objects_are_copied_is_a_conflict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = repository_in(MemoryStorage("source"))
    target = repository_in(MemoryStorage("target"))
    source.commit(state(0))
    planned(source, target).execute()
    source.commit(state(1))
    plan = planned(source, target)
    made = []

    def beside(*args: object) -> None:
        made.append(target.commit(state(7)))

    monkeypatch.setattr("ckptstore.transfer.plan.copy_objects", beside)
    with pytest.raises(ConflictError, match="non-fast-forward"):
        plan.execute()
    assert target.resolve("main").id == made[-1].id
    assert len(made) == 1


def test_a_checkpoint_that_expires_at_the_source_meanwhile_is_planned_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = repository_in(MemoryStorage("source"))
    target = repository_in(MemoryStorage("target"))
    for number in range(3):
        source.commit(state(number), step=number)
    plan = planned(source, target)
    assert len(plan.checkpoints) == 3
    source.gc(MaxToKeep(1), grace=0)
    report = plan.execute()
    assert len(report.checkpoints) == 1
    assert len(report.expired) == 2
    assert_sound(target)


def test_what_a_gc_of_the_target_condemns_meanwhile_is_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ckptstore.transfer import plan as module

    source = repository_in(MemoryStorage("source"))
    target = repository_in(MemoryStorage("target"))
    source.commit(state(0))
    planned(source, target).execute()
    shared = target.commit(state(1), branch="other")
    target.delete_branch("other")
    source.commit(state(1))
    plan = planned(source, target)
    assert plan.objects < 3  # the rest is there, of the deleted branch
    copy, gcs = module.copy_objects, []

    def beside(*args: object) -> None:
        if not gcs:
            gcs.append(target.gc(grace=0))
        copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "copy_objects", beside)
    plan.execute()
    assert gcs[0].objects > 0
    assert shared.id in gcs[0].expired
    assert_sound(target)
    assert difference(target.checkout("main"), source.checkout("main")) is None
