"""Callback and CallbackList: the hooks of a training loop, and those who are called at them, for plain PyTorch loops.

callbacks = CallbackList([BackupAndRestore("runs/store"), EarlyStopping(patience=3)],
                         model=model, optimizer=optimizer, epochs=20)
callbacks.on_train_begin()
for epoch in callbacks.epochs():
    callbacks.on_epoch_begin(epoch)
    for batch, data in callbacks.batches(loader):
        callbacks.on_train_batch_begin(batch)
        …
        callbacks.on_train_batch_end(batch, {"loss": loss})
    callbacks.on_epoch_end(epoch, {"loss": …, "val_loss": …})
callbacks.on_train_end()
"""

from __future__ import annotations

import itertools
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.errors import InvalidInputError
from ckptstore.training.callbacks.monitor import plain
from ckptstore.training.training import CALLBACKS, CallbackStates, Training, remember, training_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.training.manager import CheckpointManager

    Logs = Mapping[str, Any] | None

Data = TypeVar("Data")


class Callback:
    """What is called at the hooks of a training; subclasses do what they want at some of them.

    The same object works in a CallbackList and in the callbacks of Keras' fit. epoch and batch count from 0. Where there
    is state to keep, `state_dict` and `load_state_dict` make it part of each checkpoint; it is loaded after on_train_begin.
    """

    turn = 0  # who saves comes after those whose decisions it saves: the greater one comes later
    params: Mapping[str, Any] = MappingProxyType({})
    model: Any = None
    _training: Training | None = None

    @property
    def training(self) -> Training:
        """The training that it takes part in."""
        if self._training is None:
            raise InvalidInputError(
                f"{type(self).__name__} takes part in no training yet. Pass it to CallbackList or to fit."
            )
        return self._training

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Learn epochs, steps and the like."""
        self.params = params

    def set_model(self, model: Any) -> None:
        """Learn the model, and take part in its training."""
        self.model = model
        known = self._training
        self.set_training(known if known and known.model is model else training_of(model))

    def set_training(self, training: Training) -> None:
        """Take part in a training."""
        self._training = training
        training.join(self)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs of this callback: plain values and arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins."""

    def on_train_end(self, logs: Logs = None) -> None:
        """Training ended."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """An epoch begins."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """An epoch ended; logs hold its metrics."""

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of training begins."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of training ended."""
        self.on_batch_end(batch, logs)

    def on_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Another name of on_train_batch_begin."""

    def on_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Another name of on_train_batch_end."""

    def on_test_begin(self, logs: Logs = None) -> None:
        """Evaluation begins."""

    def on_test_end(self, logs: Logs = None) -> None:
        """Evaluation ended."""

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of evaluation begins."""

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of evaluation ended."""

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Prediction begins."""

    def on_predict_end(self, logs: Logs = None) -> None:
        """Prediction ended."""

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of prediction begins."""

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of prediction ended."""

    def on_checkpoint(self, checkpoint: Checkpoint, branch: str) -> None:
        """A callback of the same training made a checkpoint, and it is durable."""


class CallbackList(Callback):
    """Calls all its callbacks at each hook.

    model, optimizer and whatever else has state_dict and load_state_dict (scheduler=…, loader=…): what checkpoints hold.
    manager: a CheckpointManager that tracks them; it then saves the callbacks' states as well.
    epochs, steps: how many epochs, and batches in each, when it is known. initial_epoch: where to begin, unless a
    restored training says otherwise. verbose: for ProgbarLogger.
    It is stateful itself, so a CheckpointManager can track it in place of `BackupAndRestore`.
    """

    def __init__(
        self,
        callbacks: Sequence[Any] = (),
        *,
        model: Any = None,
        epochs: int | None = None,
        steps: int | None = None,
        initial_epoch: int = 0,
        verbose: int = 1,
        manager: CheckpointManager | None = None,
        **tracked: Any,
    ) -> None:
        of_manager = manager.tracked if manager is not None else {}
        if model is None:
            model = of_manager.get("model")
        training = Training(model, {**of_manager, **tracked})
        training.manager = manager
        if manager is not None:
            manager.tracked[CALLBACKS] = training.tracked[CALLBACKS]
        self.callbacks: list[Any] = []
        self._training = training
        self._initial_epoch = initial_epoch
        self.set_params({"epochs": epochs, "steps": steps, "verbose": verbose})
        self.set_model(model)
        for callback in callbacks:
            self.append(callback)

    def append(self, callback: Any) -> None:
        """Add a callback."""
        self.callbacks.append(callback)
        if hasattr(callback, "set_training"):
            callback.set_training(self.training)
        else:
            self.training.join(callback)
        if self.model is not None:
            callback.set_model(self.model)
        callback.set_params(self.params)

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Tell all of epochs, steps and the like."""
        self.params = params
        for callback in self.callbacks:
            callback.set_params(params)

    def set_model(self, model: Any) -> None:
        """Make this the training of a model."""
        self.model = model
        if model is not None:
            remember(model, self.training)
            for callback in self.callbacks:
                callback.set_model(model)

    @property
    def stop_training(self) -> bool:
        """Whether a callback wants the loop to end."""
        return self.training.stop_training

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self.training.stop_training = stops

    def epochs(self) -> Iterator[int]:
        """The epochs to do, from 0 or from where a restored training goes on, until somebody stops it."""
        if not self._states.has_begun:
            raise InvalidInputError("Call on_train_begin before epochs.")
        count = self.params["epochs"]
        for epoch in itertools.count(self.training.initial_epoch):
            if self.stop_training or (count is not None and epoch >= count):
                return
            yield epoch

    def batches(self, data: Iterable[Data]) -> Iterator[tuple[int, Data]]:
        """The numbered batches of one epoch, until somebody stops the training.

        After a training was restored in the middle of an epoch, those that are done are passed over, unless the data itself
        is tracked and so has gone to its position already.
        """
        done = self.training.batch
        is_there = any(data is item for item in self.training.tracked.values())
        left = data if is_there else itertools.islice(data, done, None)
        for batch, item in enumerate(left, done):
            yield batch, item
            if self.stop_training:
                return

    def state_dict(self) -> dict[str, Any]:
        """The states of all callbacks, and the position."""
        return self._states.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; before on_train_begin, from there on."""
        self._states.load_state_dict(state)

    @property
    def _states(self) -> CallbackStates:
        states: CallbackStates = self.training.tracked[CALLBACKS]
        return states

    def _by_turn(self, *, last_first: bool = False) -> list[Any]:
        """Who saves comes last at an end, and first at a beginning, so that it stands between the two."""
        return sorted(
            self.callbacks,
            key=lambda callback: getattr(callback, "turn", 0) * (-1 if last_first else 1),
        )

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins; then states that were loaded before are taken up."""
        training = self.training
        training.stop_training = training.is_terminated = False
        training.saved = None
        training.told.clear()
        training.begin_at(self._initial_epoch, 0)
        if self._states.has_begun:  # a second training
            training.step = 0
        self._states.has_begun = True
        for callback in self._by_turn():
            callback.on_train_begin(logs)
        self._states.begin()

    def on_train_end(self, logs: Logs = None) -> None:
        """Training ended."""
        for callback in self._by_turn(last_first=True):
            callback.on_train_end(plain(logs))

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """An epoch begins."""
        training = self.training
        is_resumed = epoch == training.initial_epoch
        training.epoch, training.batch = epoch, training.initial_batch if is_resumed else 0
        for callback in self._by_turn(last_first=True):
            callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """An epoch ended. All callbacks get the same copy of the logs, with plain numbers."""
        self.training.epoch, self.training.batch = epoch + 1, 0
        self.training.initial_batch = 0
        metrics = plain(logs)
        for callback in self._by_turn():
            callback.on_epoch_end(epoch, metrics)

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of training begins."""
        for callback in self.callbacks:
            callback.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of training ended; one step more is done."""
        self.training.batch = batch + 1
        self.training.step += 1
        for callback in self._by_turn():
            callback.on_train_batch_end(batch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Evaluation begins."""
        for callback in self.callbacks:
            callback.on_test_begin(logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """Evaluation ended."""
        for callback in self.callbacks:
            callback.on_test_end(plain(logs))

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of evaluation begins."""
        for callback in self.callbacks:
            callback.on_test_batch_begin(batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of evaluation ended."""
        for callback in self.callbacks:
            callback.on_test_batch_end(batch, logs)

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Prediction begins."""
        for callback in self.callbacks:
            callback.on_predict_begin(logs)

    def on_predict_end(self, logs: Logs = None) -> None:
        """Prediction ended."""
        for callback in self.callbacks:
            callback.on_predict_end(logs)

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """A batch of prediction begins."""
        for callback in self.callbacks:
            callback.on_predict_batch_begin(batch, logs)

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A batch of prediction ended."""
        for callback in self.callbacks:
            callback.on_predict_batch_end(batch, logs)


def say(text: str) -> None:
    """Tell the user, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
