"""A callback's state is complete: restored at any moment, its decisions are the same."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchdata.stateful_dataloader import StatefulDataLoader

import ckptstore
from ckptstore.training.callbacks import (
    BackupAndRestore,
    Callback,
    CallbackList,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
)

pytestmark = pytest.mark.slow

values = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf])


def make(repository, arguments, rate):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    callbacks = [
        EarlyStopping("loss", **arguments["stop"]),
        ReduceLROnPlateau("loss", **arguments["plateau"]),
        ModelCheckpoint(repository, monitor="loss", save_best_only=True, message="best {epoch}"),
        ModelCheckpoint(repository, save_freq=arguments["save_freq"], message="often {step}"),
    ]
    return CallbackList(callbacks, model=model, optimizer=optimizer, epochs=12)


def go(callbacks, losses, decisions, until=None):
    callbacks.on_train_begin()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for epoch in callbacks.epochs():
            if epoch in (until, len(losses)):
                return
            callbacks.on_epoch_begin(epoch)
            for batch in range(3):
                callbacks.on_train_batch_end(batch, {})
            callbacks.on_epoch_end(epoch, {"loss": losses[epoch]})
            decisions.append((epoch, callbacks.training.learning_rate, callbacks.stop_training))
    callbacks.on_train_end()


@given(
    st.lists(values, max_size=9),
    st.integers(0, 9),
    st.fixed_dictionaries(
        {
            "stop": st.fixed_dictionaries(
                {"patience": st.integers(0, 3), "min_delta": st.sampled_from([0, 0.25])}
            ),
            "plateau": st.fixed_dictionaries(
                {"patience": st.integers(0, 2), "cooldown": st.integers(0, 2)}
            ),
            "save_freq": st.integers(1, 5),
        }
    ),
)
@settings(max_examples=max(20, settings().max_examples // 2))
def test_a_run_taken_over_between_any_two_epochs_decides_the_same(losses, cut, arguments):
    whole, parts = ckptstore.init("memory://"), ckptstore.init("memory://")
    expected: list[object] = []
    go(make(whole, arguments, 1.0), losses, expected)
    found: list[object] = []
    first = make(parts, arguments, 1.0)
    go(first, losses, found, until=cut)
    second = make(parts, arguments, first.training.learning_rate)
    second.load_state_dict(first.state_dict())
    go(second, losses, found)
    assert found == expected
    assert [made.message for made in parts.log()] == [made.message for made in whole.log()]


class EndError(Exception):
    pass


class End(Callback):
    turn = 9

    def __init__(self, step):
        self.left = step

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise EndError


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize(
    ("step", "save_freq", "workers"),
    [(3, 1, 0), (5, 1, 0), (5, 1, 1), (8, 3, 0), (10, 5, 0), (12, "epoch", 0)],
)
def test_a_stateful_loader_goes_on_where_it_was(tmp_path, workers, step, save_freq):
    """torchdata's loader, shuffled: the same batches after a resume."""

    def train(callbacks, seed=0):
        torch.manual_seed(seed)
        model = torch.nn.Linear(1, 1)
        loader = StatefulDataLoader(
            torch.arange(20), batch_size=4, shuffle=True, num_workers=workers
        )
        found = CallbackList(callbacks, model=model, loader=loader, epochs=3, steps=len(loader))
        found.on_train_begin()
        for epoch in found.epochs():
            found.on_epoch_begin(epoch)
            for batch, items in found.batches(loader):
                seen.append((epoch, batch, *items.tolist(), torch.rand(1).item()))
                found.on_train_batch_end(batch)
            found.on_epoch_end(epoch)
        found.on_train_end()

    seen: list[tuple[float, ...]] = []
    train([])
    whole = list(seen)
    with pytest.raises(EndError):
        train([BackupAndRestore(tmp_path, save_freq=save_freq), End(step)])
    seen.clear()
    train([BackupAndRestore(tmp_path, save_freq=save_freq)], seed=1)
    assert seen
    assert seen == whole[len(whole) - len(seen) :]
