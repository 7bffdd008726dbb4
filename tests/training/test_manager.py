"""CheckpointManager: what it saves and when, what it restores, and what it says when it cannot."""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ckptstore
from ckptstore import (
    CheckoutMismatchError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    Repository,
    StorageError,
    UnsupportedValueError,
)
from ckptstore.retention import KeepAll, KeepBest, KeepSteps, MaxToKeep
from ckptstore.storage import MemoryStorage
from ckptstore.training import CheckpointManager
from tests.helpers.children import do_in_child
from tests.helpers.root import ROOT
from tests.helpers.waiting import until


def model(width: int = 4, layers: int = 1) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def manager(store: Any = "memory://", **options: Any) -> CheckpointManager:
    options.setdefault("model", model())
    return CheckpointManager(store, **options)


def steps(found: CheckpointManager) -> list[int | None]:
    return [checkpoint.step for checkpoint in found.checkpoints]


@pytest.fixture(params=[True, False], ids=["async", "sync"])
def saving(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_what_was_saved_is_restored(saving: bool) -> None:
    one = model()
    optimizer = torch.optim.AdamW(one.parameters())
    one(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    first = manager(model=one, optimizer=optimizer, async_save=saving)
    assert first.restore_or_initialize() == 0
    assert first.save(7, metrics={"loss": torch.tensor(0.5)}, message="hello", epoch=2, batch=3)
    first.wait()
    other = model()
    moments = torch.optim.AdamW(other.parameters())
    second = manager(first.repository, model=other, optimizer=moments)
    assert second.restore_or_initialize() == 7
    assert (second.epoch, second.batch) == (2, 3)
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    assert torch.equal(
        moments.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert second.latest is not None
    assert (second.latest.metrics, second.latest.message) == ({"loss": 0.5}, "hello")


def test_what_is_done_to_the_model_after_save_returned_is_not_stored() -> None:
    net = model(256, 4)
    found = manager(model=net)
    for step in range(8):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(step)
        found.save(step)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(-1)
    found.wait()
    for checkpoint in found.checkpoints:
        state = found.repository.checkout(checkpoint.id)["model"]
        assert all(bool((value == checkpoint.step).all()) for value in state.values())


def test_tied_strided_and_numpy_arrays_are_staged_bit_for_bit() -> None:
    class Odd:
        def __init__(self) -> None:
            weight = torch.randn(300, 400)
            self.state: dict[str, Any] = {
                "weight": weight,
                "tied": weight,
                "turned": weight.t(),
                "part": weight[::3, 5:],
                "half": weight.to(torch.bfloat16),
                "complex": torch.randn(40, dtype=torch.complex64).conj(),
                "empty": torch.empty(0, 3),
                "scalar": torch.tensor(3),
                "numpy": np.arange(30_000)[::2],
                "small": np.float32([1, 2]),
                "list": [1, "two", None, (3.5, True)],
            }

        def state_dict(self) -> dict[str, Any]:
            return self.state

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.state = state

    odd = Odd()
    found = manager(model=odd)
    found.save(1)
    found.wait()
    state = found.repository.checkout("main")["model"]
    assert state["tied"] is state["weight"]
    for name, value in odd.state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(state[name], value), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(state[name], value), name
        else:
            assert state[name] == value


def test_staging_memory_is_used_again() -> None:
    found = manager(model=model(64, 3))
    found.save(1)
    found.wait()
    assert found._staging is not None
    room = found._staging._room.data_ptr()
    size = found._staging.nbytes
    for step in range(2, 6):
        found.save(step)
    found.wait()
    assert (found._staging._room.data_ptr(), found._staging.nbytes) == (room, size)
    assert size < 3 * 64 * 65 * 4 + 40_000


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({}, list(range(1, 13))),
        ({"save_interval_steps": 4}, [4, 8, 12]),
        ({"save_interval_minutes": 3}, [3, 6, 9, 12]),
        ({"save_interval_steps": 5, "save_interval_minutes": 3}, [3, 5, 8, 10]),
    ],
    ids=str,
)
def test_save_saves_when_it_is_due(options: dict[str, Any], saved: list[int]) -> None:
    now = [0.0]
    found = manager(clock=lambda: now[0], **options)
    did = []
    for step in range(1, 13):
        now[0] += 60
        assert found.should_save(step) == (step in saved)
        if found.save(step):
            did.append(step)
    found.wait()
    assert did == steps(found) == saved
    assert found.save(13, force=True)


def test_steps_that_jump_over_a_multiple_are_saved() -> None:
    found = manager(save_interval_steps=10)
    assert [step for step in range(0, 60, 7) if found.save(step)] == [14, 21, 35, 42, 56]


def test_after_a_restore_intervals_go_on_from_there() -> None:
    first = manager(save_interval_steps=10)
    first.save(10)
    first.wait()
    second = manager(first.repository, save_interval_steps=10)
    assert second.restore_or_initialize() == 10
    assert [step for step in range(11, 32) if second.save(step)] == [20, 30]


def test_policies_are_joined_and_only_this_branch_is_collected(saving: bool) -> None:
    repo = ckptstore.init("memory://")
    for step in range(4):
        repo.commit({"w": np.full(3, step)}, step=step, branch="other")
    found = manager(repo, branch="run", max_to_keep=2, keep_best="loss:min", async_save=saving)
    for step, loss in enumerate([5.0, 1.0, 4.0, 3.0, 2.0]):
        found.save(step, metrics={"loss": loss})
    found.wait()
    assert steps(found) == [1, 3, 4]
    assert found.best is not None
    assert (found.best.step, found.latest.step if found.latest else None) == (1, 4)
    assert [c.step for c in repo.log("other") if not c.expired] == [3, 2, 1, 0]


def test_nothing_expires_for_want_of_a_metric_that_may_still_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = manager(max_to_keep=1, keep_best="val_los:min")
    for step in range(3):
        found.save(step, metrics={"val_loss": 0.5 - step / 10})
    found.wait()
    assert steps(found) == [0, 1, 2]
    assert found.best is None
    said = [record.getMessage() for record in caplog.records if "val_los" in record.getMessage()]
    assert len(said) == 1
    assert "Branch main: No checkpoint has the metric 'val_los' yet" in said[0]
    assert said[0].endswith("Known metrics: val_loss. Did you mean val_loss?")
    found.save(3, metrics={"val_los": 0.5})
    for step in (4, 5, 6):
        found.save(step)
    found.wait()
    assert steps(found) == [3, 5, 6]


def test_a_branch_has_a_best_of_its_own_and_keeps_its_seed() -> None:
    """Of two tasks, the first of which has the better values."""
    first = manager(max_to_keep=1, keep_best="val_acc:max")
    for step, value in enumerate([0.5, 0.99]):
        first.save(step, metrics={"val_acc": value})
    first.wait()
    repo = first.repository
    repo.branch("task-b")
    second = manager(repo, branch="task-b", max_to_keep=1, keep_best="val_acc:max")
    for step, value in enumerate([0.60, 0.71, 0.65], start=2):
        second.save(step, metrics={"val_acc": value})
    second.wait()
    assert second.best is not None
    assert second.best.metrics == {"val_acc": 0.71}
    assert repo.resolve("task-b@best:val_acc").step == 3
    for step in (7, 8):
        first.save(step, metrics={"val_acc": 0.1})
    first.wait()
    assert [found.step for found in repo.log(expired=False)] == [8, 4, 3, 1]
    reasons = {v.manifest.step: tuple(map(str, v.reasons)) for v in repo.plan_gc().verdicts}
    assert reasons[1][0] == "seed of task-b"


@pytest.fixture
def resumed(saving: bool) -> tuple[CheckpointManager, CheckpointManager]:
    """A run on main that saved step 1 and keeps the newest, and one on b that restored it."""
    first = manager(max_to_keep=1, async_save=saving)
    first.save(1)
    first.wait()
    second = manager(first.repository, branch="b", max_to_keep=1, async_save=saving)
    assert second.restore("main").step == 1
    assert list(first.repository.branches()) == ["main"]  # a restore only reads
    return first, second


def save(found: CheckpointManager, *steps: int) -> None:
    for step in steps:
        found.save(step)
        found.wait()


def live(repo: Repository) -> dict[int | None, tuple[str, ...]]:
    """The steps of what did not expire, each with the reasons."""
    return {v.manifest.step: tuple(map(str, v.reasons)) for v in repo.plan_gc().verdicts}


def test_what_a_run_on_a_new_branch_was_resumed_from_stays_as_its_seed(resumed: Any) -> None:
    first, second = resumed
    repo = first.repository
    save(second, 2, 3)
    save(first, 4, 5)
    assert live(repo).keys() == {1, 3, 5}
    assert live(repo)[1] == ("seed of b",)
    assert [c.step for c in repo.log("b")] == [3, 2, 1]
    repo.delete_branch("b")
    save(first, 6)
    assert live(repo).keys() == {3, 6}  # that of b stays for the grace time


def test_gc_runs_after_the_first_save_and_every_nth(saving: bool) -> None:
    found = manager(max_to_keep=2, gc_every=3, async_save=saving)
    listed = []
    for step in range(8):
        save(found, step)
        listed.append(steps(found))
    assert listed[:4] == [[0], [0, 1], [0, 1, 2], [2, 3]]
    assert listed[4:] == [[2, 3, 4], [2, 3, 4, 5], [5, 6], [5, 6, 7]]
    again = manager(found.repository, max_to_keep=2, gc_every=3, async_save=saving)
    again.restore_or_initialize()
    save(again, 8)
    assert steps(again) == [7, 8]  # in a run that is killed before its third save too


def test_a_manager_may_leave_seeds_to_its_policy(resumed: Any) -> None:
    first, second = resumed
    repo = first.repository
    save(second, 2, 3)
    save(first, 4)
    assert live(repo).keys() == {1, 3, 4}
    save(manager(repo, branch="b", keep_seeds=False), 5)  # the seed is not on its branch
    assert live(repo).keys() == {1, 4, 5}
    save(manager(repo, keep_seeds=False), 6)
    assert live(repo).keys() == {5, 6}
    second.restore()


def test_a_branch_that_was_deleted_since_begins_without_what_it_had(resumed: Any) -> None:
    _, second = resumed
    save(second, 2)
    second.restore()
    second.repository.delete_branch("b")
    save(second, 3)
    assert [c.step for c in second.repository.log("b")] == [3]


def test_a_run_goes_on_where_what_it_restored_has_expired(resumed: Any) -> None:
    first, second = resumed
    save(first, 2)
    save(second, 3, 4)
    assert live(first.repository).keys() == {2, 4}
    assert [c.step for c in first.repository.log("b")] == [4, 3]


def test_what_a_branch_with_checkpoints_was_resumed_from_is_superseded_by_the_next(
    resumed: Any,
) -> None:
    first, second = resumed
    save(manager(first.repository, branch="b", max_to_keep=1), 7)
    with pytest.raises(ConflictError, match="newer manager of this process"):
        save(second, 8)
    save(first, 2)
    assert live(first.repository).keys() == {2, 7}
    for step in (9, 10):  # each restart of a run
        again = manager(first.repository, branch="b", max_to_keep=1)
        again.restore_or_initialize()
        save(again, step)
    assert live(first.repository).keys() == {2, 10}


def test_a_manager_whose_branch_was_renamed_saves_its_policy_again() -> None:
    found = manager(branch="run", max_to_keep=2)
    found.save(0)
    found.wait()
    repo = found.repository
    repo.set_retention(MaxToKeep(1))
    repo.rename_branch("run", "old")
    for step in range(1, 5):
        found.save(step)
        found.wait()
    assert repo.retention("run") == repo.retention("old") == MaxToKeep(2)
    assert steps(found) == [3, 4]


def test_the_policy_of_a_manager_is_saved_for_its_branch_and_obeyed_by_any_gc() -> None:
    found = manager(branch="run", max_to_keep=2, keep_best="loss:min")
    repo = found.repository
    repo.commit({"w": 0}, branch="other", metrics={"loss": 0.0})
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.0, 2.0]):
        found.save(step, metrics={"loss": loss})
        found.wait()
    assert repo.retention("run") == MaxToKeep(2) | KeepBest("loss", "min")
    assert (repo.retention(), repo.retention("other")) == (None, None)
    assert ckptstore.open(repo.url).gc(grace=0).expired == ()
    assert steps(found) == [1, 3, 4]
    operations = [key.key for key in repo._storage.list("ops/")]
    again = manager(repo, branch="run", max_to_keep=2, keep_best="loss:min")
    again.save(5, metrics={"loss": 9.0})
    again.wait()
    assert len(list(repo._storage.list("ops/"))) == len(operations) + 3  # a commit and a gc
    repo.delete_branch("run")
    assert repo.retention("run") is None
    repo.undo()
    assert repo.retention("run") == MaxToKeep(2) | KeepBest("loss", "min")


@pytest.mark.parametrize("saving", [False, True])
def test_a_gc_that_fails_fails_no_save_and_is_told_once_for_each_kind(
    saving: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = manager(max_to_keep=1, async_save=saving)
    found.save(1)
    found.wait()
    errors = iter(
        [
            StorageError("As if full."),
            CorruptError("As if bad."),
            StorageError("Full."),
            MemoryError("As if out of it"),
        ]
    )

    def fail(*_: object, **__: object) -> None:
        raise next(errors)

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "gc", fail)
        for step in (2, 3, 4, 5):
            found.save(step)
            found.wait()
    assert steps(found) == [1, 2, 3, 4, 5]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3
    for message, error in zip(
        said, ["As if full.", "As if bad.", "MemoryError: As if out of it."], strict=True
    ):
        assert f"the gc after it failed: {error}" in message
        assert message.endswith(f"ckptstore -r {found.repository.url} gc")
    assert [record.exc_info is not None for record in caplog.records] == [False, False, True]
    found.save(6)
    found.wait()
    assert steps(found) == [6]


@pytest.mark.parametrize("saving", [False, True])
def test_a_run_that_begins_anew_on_a_branch_expires_nothing_of_the_one_before(
    saving: bool,
) -> None:
    first = manager(max_to_keep=2, async_save=saving)
    for step in (1000, 2000, 3000):
        first.save(step)
    first.wait()
    again = manager(first.repository, max_to_keep=2, async_save=saving)
    with pytest.warns(UserWarning, match=r"step 3000\).*restore_or_initialize"):
        again.save(1)
    for step in (2, 3):  # without another warning
        again.save(step)
    again.wait()
    assert steps(again) == [2000, 3000, 1, 2, 3]
    again.restore_or_initialize("main@step=3000", reset=True)
    again.save(4000)
    again.wait()
    assert steps(again) == [3000, 4000]


@pytest.mark.parametrize("way", ["restored", "later", "another branch"])
def test_a_run_that_goes_on_expires_as_ever(way: str) -> None:
    first = manager(max_to_keep=1)
    first.save(3000)
    first.wait()
    if way == "another branch":
        first.repository.branch("fine-tuned")
    branch = "fine-tuned" if way == "another branch" else "main"
    again = manager(first.repository, branch=branch, max_to_keep=1)
    if way == "restored":
        again.restore_or_initialize()
    for step in {"restored": (1, 2), "later": (3001, 3002), "another branch": (1, 2)}[way]:
        again.save(step)
    again.wait()
    live = [found.step for found in again.checkpoints]
    assert live == ([3000, 2] if way == "another branch" else live[-1:])


def test_a_saved_policy_is_not_replaced_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    repo = ckptstore.init("memory://")
    repo.commit({"n": 0})
    repo.set_retention(KeepAll(), branch="main")
    run = manager(repo, max_to_keep=1)
    for step in (1, 2):
        run.save(step)
        run.wait()
    (told,) = caplog.messages
    assert told == (
        "The policy of branch main was: Keep every checkpoint of every branch. "
        "This run has replaced it: Keep the newest of each branch."
    )
    manager(repo, max_to_keep=1).save(3)
    assert len(caplog.messages) == 1


def test_the_saved_policy_is_applied_unless_one_is_given() -> None:
    repo = ckptstore.init("memory://")
    repo.set_retention(MaxToKeep(2))
    saved, own = manager(repo, branch="a"), manager(repo, branch="b", policy=KeepSteps([0, 1]))
    for step in range(5):
        own.save(step)
    own.wait()
    assert steps(own) == [0, 1, 4]
    for step in range(5):
        saved.save(step)
    saved.wait()
    assert steps(saved) == [3, 4]


def test_without_any_policy_everything_stays() -> None:
    found = manager()
    for step in range(5):
        found.save(step)
    found.wait()
    assert steps(found) == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidInputError, match="keep_best"):
        _ = found.best


@pytest.mark.parametrize(
    ("given", "best"),
    [
        ("loss", KeepBest("loss")),
        ("acc:max", KeepBest("acc", "max")),
        ("acc:max:3", KeepBest("acc", "max", 3)),
        (KeepBest("x", "min", n=2), KeepBest("x", "min", n=2)),
    ],
    ids=str,
)
def test_keep_best_is_told_in_short(given: Any, best: KeepBest) -> None:
    assert manager(keep_best=given)._gc.policy == best


def test_the_best_by_a_metric_that_revisions_quote() -> None:
    found = manager(keep_best='"mAP@.5:.95":max', max_to_keep=1)
    for step, value in enumerate((0.2, 0.9, 0.3), start=1):
        found.save(step, metrics={"mAP@.5:.95": value})
    found.wait()
    assert found.best is not None
    assert found.best.step == 2
    assert [checkpoint.step for checkpoint in found.checkpoints] == [2, 3]


@pytest.mark.parametrize(
    "options",
    [
        {"save_interval_steps": 0},
        {"save_interval_steps": 2.5},
        {"save_interval_minutes": 0},
        {"save_interval_minutes": float("nan")},
        {"when_busy": "never"},
        {"max_to_keep": 0},
        {"keep_best": "loss:best"},
        {"keep_best": "depth"},
        {"keep_best": "loss:min:many"},
        {"keep_best": 3},
        {"branch": ""},
        {"model": 3},
        {"rng_state": object()},
        {"progress": model()},
        {"optimizer": torch.optim.AdamW},
    ],
    ids=[str(number) for number in range(15)],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        manager(**options)


def test_nothing_is_made_when_the_arguments_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        manager(tmp_path / "store", max_to_keep=-1)
    assert not (tmp_path / "store").exists()


def test_a_model_that_changed_is_an_error_that_lists_every_difference() -> None:
    first = manager(model=model(4, 2))
    first.save(1)
    first.wait()
    second = manager(first.repository, model=model(5, 3))
    before = {name: value.clone() for name, value in second.tracked["model"].state_dict().items()}
    with pytest.raises(CheckoutMismatchError) as caught:
        second.restore_or_initialize(init_fn=lambda: pytest.fail("it began anew"))
    found = caught.value.incompatible
    assert len(found.mismatched) == 4
    assert sorted(found.missing) == ["model/2.bias", "model/2.weight"]
    assert "include=" in caught.value.__notes__[0]
    for name, value in second.tracked["model"].state_dict().items():
        assert torch.equal(value, before[name])


def test_what_fits_is_restored_when_that_is_asked_for() -> None:
    first = manager(model=model(4, 2))
    first.save(3)
    first.wait()
    net = model(4, 3)
    second = manager(first.repository, model=net)
    with pytest.warns(UserWarning, match=r"missing from the checkpoint: model/2\.weight"):
        assert second.restore_or_initialize(strict=False) == 3
    assert torch.equal(net[0].weight, first.tracked["model"].state_dict()["0.weight"])
    other = model(4, 2)
    manager(first.repository, model=other).restore(include="model/0.*")
    assert torch.equal(other[0].weight, net[0].weight)
    assert not torch.equal(other[1].weight, net[1].weight)


def test_something_new_to_track_is_a_difference_too() -> None:
    first = manager()
    first.save(3)
    first.wait()
    net = model()
    both = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), momentum=0.9)}
    with pytest.raises(CheckoutMismatchError, match="optimizer"):
        manager(first.repository, **both).restore_or_initialize()


def test_a_checkpoint_that_is_damaged_is_no_fresh_start(tmp_path: Path) -> None:
    first = manager(tmp_path / "store", model=model(200))
    first.save(3)
    first.wait()
    largest = max((tmp_path / "store" / "objects").rglob("*"), key=lambda path: path.stat().st_size)
    largest.chmod(0o600)
    largest.write_bytes(bytes(largest.stat().st_size))
    with pytest.raises(ckptstore.CorruptError):
        manager(tmp_path / "store", model=model(200)).restore_or_initialize(
            init_fn=lambda: pytest.fail("it began anew")
        )


def test_a_branch_without_checkpoints_is_initialized() -> None:
    called = []
    assert manager().restore_or_initialize(init_fn=lambda: called.append(1)) == 0
    assert called == [1]


def test_a_seed_can_be_started_from() -> None:
    first = manager(model=model(4, 2), optimizer=torch.optim.SGD(model().parameters()))
    first.save(9)
    first.wait()
    first.repository.branch("task", "main", include=["model/0.*"])
    net = model(4, 3)
    second = manager(first.repository, branch="task", model=net)
    assert second.restore_or_initialize(strict=False) == 0
    assert torch.equal(net[0].weight, first.tracked["model"].state_dict()["0.weight"])
    second.save(1)
    second.wait()
    assert second.latest is not None
    assert [c.step for c in first.repository.log("task")] == [1, None, 9]


class Slow(MemoryStorage):
    """Lets a put through when it is told to, or fails."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def put(self, key: str, data: Any, **options: Any) -> None:
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error
        super().put(key, data, **options)


def slow() -> tuple[Slow, ckptstore.Repository]:
    from ckptstore.documents.marker import Marker

    storage, marker = Slow(), Marker(store="0" * 32)
    storage.create("ckptstore.json", marker.encode())
    return storage, ckptstore.Repository(storage, marker)


def test_save_returns_before_anything_is_stored_and_wait_waits() -> None:
    storage, repo = slow()
    found = manager(repo)
    storage.go.clear()
    assert found.save(1)
    assert found.latest is None
    storage.go.set()
    made = found.wait()
    assert made is not None
    assert found.latest is not None
    assert made.id == found.latest.id


def test_a_second_save_waits_for_the_first_or_is_skipped() -> None:
    storage, repo = slow()
    skipping = manager(repo, when_busy="skip")
    storage.go.clear()
    assert skipping.save(1)
    assert not skipping.save(2)
    threading.Timer(0.05, storage.go.set).start()
    assert skipping.save(3, force=True)
    skipping.wait()
    assert steps(skipping) == [1, 3]
    waiting = manager(repo, branch="waiting")
    storage.go.clear()
    waiting.save(1)
    threading.Timer(0.05, storage.go.set).start()
    assert waiting.save(2)
    waiting.wait()
    assert steps(waiting) == [1, 2]


def busy(**options: Any) -> tuple[Any, CheckpointManager, nn.Sequential]:
    """A manager whose save at step 1 is in flight until `storage.go` is set."""
    storage, repo = slow()
    net = model()
    found = manager(repo, model=net, when_busy="skip", **options)
    storage.go.clear()
    assert found.save(1)
    return storage, found, net


def fill(net: nn.Sequential, value: float) -> None:
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)


@pytest.mark.parametrize("leave", [CheckpointManager.close, lambda m: m.__exit__(None, None, None)])
def test_the_end_makes_up_for_a_skipped_save(leave: Any) -> None:
    storage, found, net = busy()
    assert not found.save(2)
    fill(net, 3.0)
    assert not found.save(3, metrics={"loss": torch.tensor(0.5)}, message="last", epoch=7)
    storage.go.set()
    leave(found)
    assert steps(found) == [1, 3]
    assert found.latest is not None
    assert (found.latest.metrics, found.latest.message) == ({"loss": 0.5}, "last")
    restored = model()
    other = manager(found.repository, model=restored)
    assert (other.restore_or_initialize(), other.epoch) == (3, 7)
    assert all((parameter == 3).all() for parameter in restored.parameters())
    leave(found)
    assert steps(found) == [1, 3]


def test_nothing_is_made_up_for_once_a_later_save_was_made() -> None:
    storage, found, _ = busy()
    assert not found.save(2)
    storage.go.set()
    found.wait()
    assert found.save(3)
    found.close()
    assert steps(found) == [1, 3]


def test_a_skipped_save_is_not_made_after_an_error_and_the_error_says_so() -> None:
    storage, found, _ = busy()

    def train() -> None:
        with found:
            assert not found.save(2)
            storage.go.set()
            raise KeyError("mine")

    with pytest.raises(KeyError) as raised:
        train()
    assert "The save at step 2 was skipped" in raised.value.__notes__[0]
    assert steps(found) == [1]


def test_a_skipped_save_is_forgotten_with_its_state_when_another_is_restored() -> None:
    storage, found, _ = busy()
    assert not found.save(2)
    storage.go.set()
    found.restore()
    found.close()
    assert steps(found) == [1]


def test_a_child_does_not_make_up_for_what_its_parent_skipped() -> None:
    storage, found, _ = busy()
    assert not found.save(2)

    def leave() -> None:
        storage.go.set()
        found.close()
        assert steps(found) == []

    do_in_child(leave)
    storage.go.set()
    found.close()
    assert steps(found) == [1, 2]


@pytest.mark.parametrize("call", ["save", "should_save", "wait", "close", "exit", "restore"])
def test_an_error_in_the_background_is_raised_at_the_next_call_and_once(call: str) -> None:
    storage, repo = slow()
    found = manager(repo)
    storage.error = OSError("the disk is gone")
    found.save(1)
    until(lambda: not found._background.is_busy)
    calls = {
        "save": lambda: found.save(2),
        "should_save": lambda: found.should_save(2),
        "wait": found.wait,
        "close": found.close,
        "exit": lambda: found.__exit__(None, None, None),
        "restore": found.restore,
    }
    with pytest.raises(OSError, match="the disk is gone"):
        calls[call]()
    storage.error = None
    found.save(3)
    found.wait()
    assert steps(found) == [3]


def test_an_error_in_the_background_does_not_hide_that_of_the_loop() -> None:
    storage, repo = slow()
    found = manager(repo)

    def loop() -> None:
        with found:
            storage.error = OSError("the disk is gone")
            found.save(1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        loop()
    assert "the disk is gone" in caught.value.__notes__[0]


def test_a_state_that_cannot_be_stored_is_told_at_once() -> None:
    class Bad:
        def state_dict(self) -> object:
            return {"f": print}

        def load_state_dict(self, state: object) -> None: ...

    with pytest.raises(UnsupportedValueError, match="model/f"):
        manager(model=Bad()).save(1)


def test_random_numbers_go_on_where_they_were() -> None:
    generators = {"a": random.Random(1), "b": np.random.default_rng(2), "c": torch.Generator()}
    generators["d"] = np.random.RandomState(4)
    found = manager(**generators)

    def draw() -> list[float]:
        own = [generators["a"].random(), generators["b"].random(), generators["d"].rand()]
        own.append(torch.rand(1, generator=generators["c"]).item())
        return [*own, random.gauss(0, 1), np.random.randn(), torch.randn(1).item()]

    draw()
    found.save(1)
    found.wait()
    first = draw()
    found.restore()
    assert draw() == first
    silent = manager(found.repository, rng=False, **generators)
    silent.save(2)
    silent.wait()
    state = random.getstate()
    silent.restore()
    assert random.getstate() == state


def test_compiled_and_plain_models_have_the_same_names() -> None:
    net = model()
    found = manager(model=torch.compile(net, backend="eager"))
    found.save(1)
    found.wait()
    state = found.repository.checkout("main")["model"]
    assert state.keys() == net.state_dict().keys()


def test_sigterm_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with manager(save_on_signal=True) as found:
        assert signal.getsignal(signal.SIGTERM) is not before
        signal.raise_signal(signal.SIGTERM)
        assert found.preempted
        assert found.should_save(1)
        with pytest.raises(SystemExit) as caught:
            found.save(1)
    assert caught.value.code == 143
    assert steps(found) == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_belong_to_the_main_thread() -> None:
    caught: list[BaseException] = []

    def make() -> None:
        try:
            manager(save_on_signal=True)
        except InvalidInputError as error:
            caught.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


AT_EXIT = """
import sys, torch
from ckptstore.training import CheckpointManager
net = torch.nn.Linear(2000, 500)
manager = CheckpointManager(sys.argv[1], model=net)
manager.save(1)
if sys.argv[2] == "again":
    manager.save(2)
if sys.argv[2] == "raise":
    raise ValueError("the loop failed")
if sys.argv[2] == "break":
    import shutil
    manager.wait()
    shutil.rmtree(sys.argv[1])
    open(sys.argv[1], "w").close()
    manager.save(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "again", "raise"])
def test_the_interpreter_waits_for_a_save_when_it_ends(tmp_path: Path, how: str) -> None:
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(store), how], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode == 0) == (how != "raise"), done.stderr
    repo = ckptstore.open(store)
    assert repo.resolve("main").step == (2 if how == "again" else 1)
    assert repo.verify().ok


@pytest.mark.slow
def test_an_error_that_nobody_can_catch_any_more_is_printed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AT_EXIT, str(tmp_path / "store"), "break"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert "the last save failed" in done.stderr
    assert "ckptstore.errors." in done.stderr


def test_a_manager_that_nobody_holds_is_freed() -> None:
    found = manager()
    found.save(1)
    found.wait()
    background = found._background
    import weakref

    gone = weakref.ref(background)
    del found, background
    until(lambda: gc.collect() >= 0 and gone() is None)


def test_everything_is_kept_when_that_is_asked_for() -> None:
    found = manager(policy=KeepAll(), max_to_keep=1)
    for step in range(3):
        found.save(step)
    found.wait()
    assert steps(found) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torch's DataLoader calls it
def test_a_stateful_data_loader_goes_on_in_the_middle_of_an_epoch() -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    def world() -> tuple[Any, Any, CheckpointManager]:
        torch.manual_seed(1)
        loader = StatefulDataLoader(torch.arange(20.0).reshape(20, 1), batch_size=3, shuffle=True)
        net = nn.Sequential(nn.Dropout(0.5), nn.Linear(1, 1))
        return loader, net, manager(repo, model=net, loader=loader, async_save=False)

    def train(loader: Any, net: Any, found: CheckpointManager, stop: int | None) -> list[float]:
        step, seen = found.restore_or_initialize(), []
        while step < 20:
            for batch in loader:
                seen += [*batch.flatten().tolist(), net(batch).sum().item()]
                step += 1
                if step == stop:
                    found.save(step)
                    return seen
                if step == 20:
                    break
        return seen

    for stop in (4, 7, 12):
        repo = ckptstore.init("memory://")
        whole = train(*world(), None)
        first = train(*world(), stop)
        torch.manual_seed(99)
        rest = train(*world(), None)
        assert first + rest == whole, stop


def test_what_a_seed_holds_has_to_fit_and_the_rest_stays() -> None:
    first = manager(model=model(4, 2), optimizer=torch.optim.SGD(model().parameters()))
    first.save(9)
    first.wait()
    first.repository.branch("task", "main", include=["model/0.*"])
    net = model(4, 3)
    head = net[2].weight.clone()
    task = manager(
        first.repository, branch="task", model=net, optimizer=torch.optim.SGD(net.parameters())
    )
    assert task.restore_or_initialize() == 0
    assert torch.equal(net[0].weight, first.tracked["model"].state_dict()["0.weight"])
    assert torch.equal(net[2].weight, head)
    with pytest.raises(CheckoutMismatchError, match="2 mismatched: model/0"):
        manager(first.repository, branch="task", model=model(5)).restore_or_initialize()
    task.save(1)
    task.wait()
    with pytest.raises(CheckoutMismatchError, match="missing"):
        manager(first.repository, branch="task", model=model(4, 4)).restore_or_initialize()


def test_a_mistyped_option_is_recognised() -> None:
    with pytest.raises(InvalidInputError, match="Did you mean max_to_keep"):
        manager(max_to_kep=3)


def test_what_was_not_asked_for_stays() -> None:
    net = model()
    first = manager(model=net, optimizer=torch.optim.SGD(net.parameters(), lr=0.5))
    first.save(2)
    first.wait()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    second = manager(first.repository, model=net, optimizer=optimizer)
    assert second.restore_or_initialize(exclude="optimizer/**") == 2
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_long_list_of_names_is_told_in_short() -> None:
    net = model(4, 30)
    first = manager(model=net, optimizer=torch.optim.AdamW(net.parameters()))
    first.save(1)
    first.wait()
    with pytest.raises(CheckoutMismatchError, match=r"optimizer/… \(\d+ names\)") as caught:
        manager(first.repository, model=model(4, 30)).restore()
    assert len(caught.value.incompatible.unexpected) > 60


@pytest.mark.parametrize(
    "options",
    [
        {"gc_every": 0},
        {"gc_every": True},
        {"gc_every": 2.0},
        {"policy": True},
        {"policy": "max_to_keep"},
        {"clock": None},
        {"when_busy": ["wait"]},
    ],
)
def test_an_option_of_another_type_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        manager(**options)


def test_the_run_is_recorded_unless_turned_off() -> None:
    saved = manager(async_save=False)
    saved.save(1, meta={"program": "mine", "seed": 4})
    meta = saved.repository.resolve("main").meta
    assert meta.keys() >= {"host", "argv"}
    assert (meta["program"], meta["seed"]) == ("mine", 4)
    silent = manager(async_save=False, record_run=False)
    silent.save(1, meta={"seed": 4})
    assert silent.repository.resolve("main").meta == {"seed": 4}
    with pytest.raises(InvalidInputError, match="meta is a list"):
        silent.save(2, meta=[1])  # type: ignore[arg-type]
