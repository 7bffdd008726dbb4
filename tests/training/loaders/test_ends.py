"""A run with a data loader sees the same samples, wherever it was interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import ckptstore
from ckptstore.training import CheckpointManager
from ckptstore.training.callbacks import CallbackList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.repository import Repository

    Run = Callable[["Loop", int | None], list[float]]

EPOCHS, SAMPLES = 3, 7

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata calls it


class Loop:
    """A run of a few epochs over a shuffled loader, which saves after each batch."""

    def __init__(
        self,
        repository: Repository,
        *,
        seed: int,
        size: int,
        kind: type[Any] = StatefulDataLoader,
        **options: object,
    ) -> None:
        torch.manual_seed(seed)
        self.loader = kind(torch.arange(float(SAMPLES)), batch_size=size, shuffle=True, **options)
        self.batches = len(self.loader)
        self.manager = CheckpointManager(repository, loader=self.loader, async_save=False)


def by_step(loop: Loop, last: int | None) -> list[float]:
    """The epoch follows from the step."""
    seen: list[float] = []
    step = loop.manager.restore_or_initialize()
    for _ in range(step // loop.batches, EPOCHS):
        for batch in loop.loader:
            seen += [*batch.tolist(), torch.rand(1).item()]
            step += 1
            loop.manager.save(step)
            if step == last:
                return seen
    return seen


def by_epoch(loop: Loop, last: int | None) -> list[float]:
    """The epoch is the one of the last batch."""
    seen: list[float] = []
    step = loop.manager.restore_or_initialize()
    for epoch in range(loop.manager.epoch or 0, EPOCHS):
        for batch in loop.loader:
            seen += [*batch.tolist(), torch.rand(1).item()]
            step += 1
            loop.manager.save(step, epoch=epoch)
            if step == last:
                return seen
    return seen


def by_next_batch(loop: Loop, last: int | None) -> list[float]:
    """The epoch and the batch are those of the next batch."""
    seen: list[float] = []
    step = loop.manager.restore_or_initialize()
    for _ in range(loop.manager.epoch or 0, EPOCHS):
        for batch in loop.loader:
            seen += [*batch.tolist(), torch.rand(1).item()]
            step += 1
            loop.manager.save(step, epoch=step // loop.batches, batch=step % loop.batches)
            if step == last:
                return seen
    return seen


def by_manager_of_callbacks(loop: Loop, last: int | None) -> list[float]:
    """Callbacks that the manager was given to keep the epoch."""
    return with_callbacks(loop, CallbackList(manager=loop.manager), last)


def by_tracked_callbacks(loop: Loop, last: int | None) -> list[float]:
    """A list of callbacks that the manager tracks keeps the epoch."""
    callbacks = CallbackList(loader=loop.loader)
    loop.manager.tracked["list"] = callbacks
    return with_callbacks(loop, callbacks, last)


def with_callbacks(loop: Loop, callbacks: CallbackList, last: int | None) -> list[float]:
    callbacks.params = {**callbacks.params, "epochs": EPOCHS}
    callbacks.on_train_begin()
    loop.manager.restore_or_initialize()
    return [item for batch in batches(loop, callbacks, last) for item in batch]


def batches(loop: Loop, callbacks: CallbackList, last: int | None) -> Iterator[list[float]]:
    for epoch in callbacks.epochs():
        callbacks.on_epoch_begin(epoch)
        for number, batch in callbacks.batches(loop.loader):
            yield [epoch, number, *batch.tolist(), torch.rand(1).item()]
            callbacks.on_train_batch_end(number)
            loop.manager.save(callbacks.training.step)
            if callbacks.training.step == last:
                return
        callbacks.on_epoch_end(epoch)


def check(run: Run, *, size: int = 3, **options: object) -> None:
    """Interrupt a run after each of its batches, and resume it once."""
    with Loop(ckptstore.init("memory://"), seed=1, size=size, **options).manager as manager:
        count = len(manager.tracked["loader"])  # type: ignore[arg-type]
    whole = run(Loop(ckptstore.init("memory://"), seed=1, size=size, **options), None)
    assert len(set(whole)) > SAMPLES
    for last in range(1, count * EPOCHS + 1):
        repository = ckptstore.init("memory://")
        first = run(Loop(repository, seed=1, size=size, **options), last)
        rest = run(Loop(repository, seed=99, size=size, **options), None)
        assert first + rest == whole, last


RUNS = [by_step, by_epoch, by_next_batch, by_manager_of_callbacks, by_tracked_callbacks]
KINDS = pytest.mark.parametrize("kind", [StatefulDataLoader, DataLoader])


@KINDS
@pytest.mark.parametrize("run", RUNS)
def test_an_interruption_after_any_batch_changes_no_sample(run: Run, kind: type[Any]) -> None:
    check(run, kind=kind)


@KINDS
@pytest.mark.parametrize("run", [by_step, by_epoch, by_manager_of_callbacks])
def test_an_epoch_of_one_batch_has_a_boundary_after_each(run: Run, kind: type[Any]) -> None:
    check(run, size=SAMPLES, kind=kind)


@KINDS
@pytest.mark.parametrize("run", [by_step, by_epoch])
def test_the_samples_of_an_incomplete_batch_may_be_left_out(run: Run, kind: type[Any]) -> None:
    check(run, drop_last=True, kind=kind)


def by_step_with_epochs(loop: Loop, last: int | None) -> list[float]:
    """The epoch of the last batch is saved, and the run resumes by the step."""
    seen: list[float] = []
    step = loop.manager.restore_or_initialize()
    for epoch in range(step // loop.batches, EPOCHS):
        for batch in loop.loader:
            seen += [*batch.tolist(), torch.rand(1).item()]
            step += 1
            loop.manager.save(step, epoch=epoch)
            if step == last:
                return seen
    return seen


def test_a_plain_loader_goes_by_what_the_program_reads() -> None:
    check(by_step_with_epochs, kind=DataLoader)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (StatefulDataLoader, {}),
        (StatefulDataLoader, {"snapshot_every_n_steps": 2}),
        (StatefulDataLoader, {"persistent_workers": True}),
        (DataLoader, {}),
        (DataLoader, {"persistent_workers": True}),
    ],
)
@pytest.mark.parametrize("run", [by_step, by_manager_of_callbacks])
def test_workers_change_nothing(run: Run, kind: type[Any], options: dict[str, Any]) -> None:
    check(run, num_workers=2, kind=kind, **options)


@KINDS
def test_a_run_may_be_interrupted_after_every_batch(kind: type[Any]) -> None:
    whole = by_step(Loop(ckptstore.init("memory://"), seed=1, size=3, kind=kind), None)
    repository, seen = ckptstore.init("memory://"), list[float]()
    for last in range(1, 3 * EPOCHS + 1):
        seen += by_step(Loop(repository, seed=last, size=3, kind=kind), last)
    # The first seed is that of the whole run; the others are replaced by the restored states.
    assert seen == whole


def test_a_loader_of_unknown_length_is_saved_as_it_is() -> None:
    class Numbers(torch.utils.data.IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    loader = StatefulDataLoader(Numbers(), batch_size=2)
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    manager = CheckpointManager("memory://", loader=loader, async_save=False)
    manager.save(1)
    state = manager.repository.checkout("main")["loader"]
    assert (state["_num_yielded"], state["_iterator_finished"]) == (2, False)
