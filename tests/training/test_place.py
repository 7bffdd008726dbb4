"""The parent of a save is what was restored, and runs do not interleave on one branch."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch

import ckptstore
from ckptstore import ConflictError, InvalidInputError, NotFoundError
from ckptstore.training import CheckpointManager
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SAVES = [False, True]  # async_save


def manager(store: Any = "memory://", **options: Any) -> CheckpointManager:
    return CheckpointManager(store, **{"rng": False, "model": torch.nn.Linear(2, 2), **options})


def save(run: CheckpointManager, *steps: int) -> None:
    for step in steps:
        run.save(step)
        run.wait()


def steps(run: CheckpointManager, rev: str | None = None) -> list[int | None]:
    return [checkpoint.step for checkpoint in run.repository.log(rev or run.branch)]


@pytest.fixture(params=SAVES, ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> CheckpointManager:
    """A run that has saved steps 500, 600 and 700."""
    made = manager(async_save=request.param)
    save(made, 500, 600, 700)
    return made


def test_a_rewind_is_refused_with_the_two_ways(run: CheckpointManager) -> None:
    back = run.restore("main~1")
    with pytest.raises(ConflictError, match=r"step 600.*step 700.*reset=True.*'main-2'") as error:
        save(run, 650)
    assert back.id.short in str(error.value)
    assert steps(run) == [700, 600, 500]


def test_a_reset_gives_up_what_came_after_until_an_undo(run: CheckpointManager) -> None:
    newest = run.latest
    assert newest is not None
    back = run.restore("main~1", reset=True)
    assert steps(run) == [700, 600, 500]  # a restore only reads
    save(run, 650, 660)
    assert steps(run) == [660, 650, 600, 500]
    assert run.repository.resolve("main~2").id == back.id
    reset = next(op for op in run.repository.operations() if op.description.startswith("reset"))
    assert reset.moves is not None
    assert reset.moves[0].before == newest.id
    assert not run.repository.resolve(newest.id).expired


def test_another_branch_begins_at_the_restored_one(run: CheckpointManager) -> None:
    back = run.restore("main~1")
    run.branch = "main-2"
    save(run, 650, 660)
    assert steps(run) == [660, 650, 600, 500]
    assert steps(run, "main") == [700, 600, 500]
    (seed,) = [v for v in run.repository.plan_gc().verdicts if v.id == back.id]
    assert "seed of main-2" in map(str, seed.reasons)


def test_another_branch_with_checkpoints_is_no_place_for_what_was_restored_elsewhere(
    run: CheckpointManager,
) -> None:
    other = manager(run.repository, branch="other")
    save(other, 1)
    other.restore("main")
    with pytest.raises(ConflictError, match="'other-2'"):
        save(other, 701)
    other.restore("main", reset=True)
    save(other, 701)
    assert steps(other) == [701, 700, 600, 500]


def test_a_part_of_another_checkpoint_does_not_move_a_run(run: CheckpointManager) -> None:
    run.repository.branch("teacher", at="main~2")
    run.restore()
    run.epoch = 3
    report = run.restore("teacher", include="model/weight")
    assert report.restored == ("model/weight",)
    assert run.epoch == 3
    save(run, 701)
    assert steps(run) == [701, 700, 600, 500]


def test_a_newer_manager_takes_over_and_the_earlier_one_says_so(run: CheckpointManager) -> None:
    newer = manager(run.repository)
    assert newer.restore_or_initialize() == 700
    save(newer, 800)
    with pytest.raises(ConflictError, match=r"newer manager of this process.*step 700"):
        save(run, 800)
    save(newer, 900)
    run.restore()
    save(run, 1000)  # as asked for
    assert steps(run)[:4] == [1000, 900, 800, 700]


def test_a_writer_that_moves_the_branch_is_an_error_and_both_lines_can_be_kept(
    run: CheckpointManager,
) -> None:
    run.repository.commit({"n": 1}, step=1)
    with pytest.raises(ConflictError, match=r"another writer.*Nothing was saved.*'main-2'"):
        save(run, 800)
    run.branch = "main-2"
    save(run, 800, 900)
    assert steps(run) == [900, 800, 700, 600, 500]


def test_a_writer_that_comes_between_the_look_and_the_commit_is_one_too(
    run: CheckpointManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, commit = run.repository, run.repository.commit

    def late(*args: Any, **options: Any) -> Any:
        commit({"n": 1}, step=1)
        return commit(*args, **options)

    monkeypatch.setattr(repo, "commit", late)
    with pytest.raises(ConflictError, match="another writer"):
        save(run, 800)


def test_a_fresh_run_warns_names_a_free_branch_and_expires_nothing(tmp_path: Path) -> None:
    """Whatever its first step is: the branch is another process's."""
    script = (
        "import sys, torch; from ckptstore.training import CheckpointManager\n"
        "with CheckpointManager(sys.argv[1], model=torch.nn.Linear(2, 2)) as run: run.save(3)"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "store"], check=True, cwd=ROOT)
    fresh = manager(tmp_path / "store", max_to_keep=1)
    with pytest.warns(UserWarning, match=r"step 3\).*step 10 without.*'main-2'.*expires"):
        save(fresh, 10)
    save(fresh, 11)
    assert [checkpoint.step for checkpoint in fresh.checkpoints] == [3, 10, 11]


def test_a_run_that_goes_on_in_one_process_does_not_warn(run: CheckpointManager) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(manager(run.repository), 800)


def test_a_run_that_must_resume() -> None:
    repo = ckptstore.init("memory://")
    with pytest.raises(NotFoundError, match="'main' has no checkpoint to resume from"):
        manager(repo, resume="must")
    save(manager(repo), 1)
    forgetful = manager(repo, resume="must")
    with pytest.raises(InvalidInputError, match="Restore first"):
        save(forgetful, 2)
    forgetful.restore()
    save(forgetful, 2)
    assert steps(forgetful) == [2, 1]


def test_a_run_that_must_be_new_names_a_free_branch(run: CheckpointManager) -> None:
    run.repository.tag("main-2")
    with pytest.raises(InvalidInputError, match=r"newest checkpoint .* \(step 700\).*'main-3'"):
        manager(run.repository, resume="never")
    new = manager(run.repository, branch="main-3", resume="never")
    new.restore("main", include="model")
    save(new, 1)
    assert steps(new) == [1, 700, 600, 500]


def test_a_new_run_may_save_to_a_branch_that_was_made_for_it(run: CheckpointManager) -> None:
    run.repository.branch("task")
    run.repository.branch("part", include="model")
    for branch in ("task", "part"):
        save(manager(run.repository, branch=branch, resume="never"), 1)


def test_a_new_run_that_another_one_was_faster_than_saves_nothing() -> None:
    repo = ckptstore.init("memory://")
    late = manager(repo, resume="never")
    save(manager(repo), 1)
    with pytest.raises(InvalidInputError, match="resume='never'"):
        save(late, 2)


def test_names_of_parts_begin_anew() -> None:
    model = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    run = manager(model=model, optimizer=sgd)
    save(run, 1)
    sgd.param_groups[0]["lr"] = 0.5
    with torch.no_grad():
        model.weight.fill_(9.0)
    report = run.restore(reset=("optimizer",))
    assert sgd.param_groups[0]["lr"] == 0.5
    assert not (model.weight == 9.0).any()
    assert all(path.startswith("optimizer/") for path in report.left_out)
    assert report.left_out
    with pytest.raises(InvalidInputError, match=r"'sched', which is not tracked.*optimizer"):
        run.restore(reset="sched")


def damage(folder: Path, id: str) -> None:
    path = folder / "checkpoints" / f"{id}.json"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("part", ["manifest", "objects"])
def test_a_fallback_restores_the_newest_whole_checkpoint_and_says_so(
    tmp_path: Path, part: str
) -> None:
    model = torch.nn.Linear(40, 400)
    run = manager(tmp_path / "store", model=model, async_save=False)
    for step in (1, 2, 3):
        before = set((tmp_path / "store/objects").rglob("*"))
        with torch.no_grad():
            model.weight.fill_(step)
        save(run, step)
    newest = run.latest
    assert newest is not None
    run.close()
    if part == "manifest":
        damage(tmp_path / "store", newest.id)
    else:
        for path in set((tmp_path / "store/objects").rglob("*")) - before:
            if path.is_file():
                path.write_bytes(bytes(path.stat().st_size))
    again = manager(tmp_path / "store", model=model, async_save=False)
    with pytest.raises(ckptstore.CorruptError) as error:
        again.restore()
    assert "fallback=True" in error.value.__notes__[0]
    with pytest.warns(UserWarning, match=r"is damaged .*step=2.* was restored instead"):
        report = again.restore(fallback=True)
    assert report.step == 2
    assert report.damaged == (newest.id,)
    assert (model.weight == 2).all()
    assert f"passed over: {newest.id.short}" in str(report)
    save(again, 3)
    assert steps(again) == [3, 2, 1]


def test_a_fallback_without_a_whole_checkpoint_is_the_first_error(tmp_path: Path) -> None:
    run = manager(tmp_path / "store", async_save=False)
    save(run, 1)
    assert run.latest
    damage(tmp_path / "store", run.latest.id)
    run.close()
    again = manager(tmp_path / "store")
    with pytest.raises(ckptstore.CorruptError, match=r"damaged|not what|digest"):
        again.restore(fallback=True)


def reasons(repo: ckptstore.Repository) -> dict[int | None, tuple[str, ...]]:
    plan = repo.plan_gc(grace=0)
    return {v.manifest.step: tuple(map(str, v.reasons)) for v in plan.verdicts if v.kept}


def test_what_a_run_went_back_to_stays_while_its_branch_lives(run: CheckpointManager) -> None:
    repo = run.repository
    again = manager(repo, max_to_keep=1)
    again.restore("main~1", reset=True)
    save(again, 650, 660)
    assert reasons(repo)[600] == ("resumed from by the run on main",)
    repo.gc(grace=0)
    assert reasons(repo).keys() == {600, 660}
    with pytest.raises(ConflictError, match="resumed from by the run on main"):
        repo.expire("main@step=600")
    repo.rename_branch("main", "done")
    assert reasons(repo)[600] == ("resumed from by the run on done",)
    repo.tag("v1", "done")
    repo.delete_branch("done")
    assert 600 not in reasons(repo)


def test_what_a_run_took_a_part_of_stays_without_its_branch(run: CheckpointManager) -> None:
    repo = run.repository
    teacher = manager(repo, branch="teacher")
    save(teacher, 1, 2)
    run.restore()
    run.restore("teacher", include="model/weight")
    save(run, 800)
    repo.set_retention(ckptstore.retention.MaxToKeep(1))
    repo.delete_branch("teacher")
    repo.gc(grace=0)
    assert reasons(repo) == {
        800: ("head of main", "newest 1 of 1 on main"),
        2: ("resumed from by the run on main",),
    }
    assert repo.verify().ok
    run.restore("main")
    run.restore("main@step=800", include="model/bias")
    save(run, 900)
    repo.gc(grace=0)
    assert reasons(repo).keys() == {900, 800}


def test_a_run_that_goes_on_from_its_newest_keeps_nothing_more(run: CheckpointManager) -> None:
    for step in (800, 900):
        again = manager(run.repository, max_to_keep=1)
        again.restore_or_initialize()
        save(again, step)
    assert reasons(run.repository).keys() == {900}
