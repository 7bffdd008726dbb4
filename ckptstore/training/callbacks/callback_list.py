"""CallbackList: calls the callbacks of a plain PyTorch loop.

It holds no training loop: the program keeps its own and calls the hooks. See docs/adr/0014.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, TypeVar

from ckptstore.errors import InvalidInputError
from ckptstore.training.arguments import NAMES, advice, explained
from ckptstore.training.callback_states import CALLBACKS, CallbackStates
from ckptstore.training.callbacks.callback import Callback
from ckptstore.training.callbacks.monitor import plain
from ckptstore.training.callbacks.saver import save_before_end
from ckptstore.training.preemption import is_loader_error
from ckptstore.training.training import Training, remember

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.training.callbacks.callback import Logs
    from ckptstore.training.manager import CheckpointManager

Data = TypeVar("Data")


class CallbackList(Callback):
    """Calls all its callbacks at each hook of a training loop.

    Metrics reach the callbacks as plain numbers, and all of them get the same `logs` at the end of
    an epoch. Unlike Keras' list, it keeps the position of the run: `epochs` and `batches` of a
    restored training begin where the checkpoint was made. The list is itself stateful, so a
    `CheckpointManager` can track it in place of a `BackupAndRestore`. See docs/adr/0014.

    Args:
        callbacks: The callbacks. Their order matters only among callbacks that do not save.
        model: The model in training; by default the manager's "model".
        epochs: The number of epochs, None for no limit.
        steps: The number of batches in each epoch, where it is known.
        initial_epoch: The first epoch, counted from 0, unless a restored training continues later.
        verbose: For `ProgbarLogger`: 0 for nothing, 1 for a bar, 2 for a line for each epoch.
        manager: A `CheckpointManager` whose tracked objects belong to this run. It then also
            saves the states of the callbacks.
        **tracked: Further objects to save by name, with state_dict and load_state_dict:
            `optimizer=`, `scheduler=`, `loader=` and so on. None is left out.

    Example:
        >>> import torch
        >>> from ckptstore.training import BackupAndRestore, CallbackList, EarlyStopping
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> callbacks = CallbackList(
        ...     [BackupAndRestore("memory://callback-list-example"), EarlyStopping("loss")],
        ...     model=model, optimizer=optimizer, epochs=2,
        ... )
        >>> callbacks.on_train_begin()
        >>> for epoch in callbacks.epochs():
        ...     callbacks.on_epoch_begin(epoch)
        ...     for batch, inputs in callbacks.batches([torch.ones(1, 2)]):
        ...         callbacks.on_train_batch_begin(batch)
        ...         loss = model(inputs).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         optimizer.step()
        ...         callbacks.on_train_batch_end(batch, {"loss": loss})
        ...     callbacks.on_epoch_end(epoch, {"loss": loss})
        >>> callbacks.on_train_end()
        >>> callbacks.training.step
        2
    """

    @explained
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
        for name in NAMES["CallbackList"].keys() & tracked.keys():
            raise InvalidInputError(f"{advice('CallbackList', name, ())}")
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
        """Add a callback, one of this package or any object with Keras' hooks.

        Args:
            callback: The callback to add at the end.
        """
        self.callbacks.append(callback)
        if hasattr(callback, "set_training"):
            callback.set_training(self.training)
        else:
            self.training.join(callback)
        if self.model is not None:
            callback.set_model(self.model)
        callback.set_params(self.params)

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Pass "epochs", "steps" and "verbose" to all callbacks."""
        self.params = params
        self._call(self.callbacks, "set_params", params)

    def set_model(self, model: Any) -> None:
        """Make this the training run of a model."""
        self.model = model
        if model is not None:
            remember(model, self.training)
            self._call(self.callbacks, "set_model", model)

    @property
    def stop_training(self) -> bool:
        """Whether a callback has requested that training ends. May be set."""
        return self.training.stop_training

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self.training.stop_training = stops

    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs until the last one or until a callback stops training.

        Raises:
            InvalidInputError: `on_train_begin` was not called before.
        """
        if not self._states.has_begun:
            raise InvalidInputError("Call on_train_begin before epochs.")
        count = self.params["epochs"]
        for epoch in itertools.count(self.training.initial_epoch):
            if self.stop_training or (count is not None and epoch >= count):
                return
            yield epoch

    def batches(self, data: Iterable[Data]) -> Iterator[tuple[int, Data]]:
        """Yield the number and the data of each remaining batch of an epoch.

        It ends early when a callback stops training. A run that was restored in the middle
        of an epoch skips the batches that are done. A DataLoader goes on in the order that it had,
        and loads none of these batches; of anything else they are taken and left.

        Args:
            data: The batches of one epoch, such as a DataLoader.

        Raises:
            InvalidInputError: The epoch cannot go on, as the loader is another one.
        """
        done = self.training.batch
        remaining = self._states.remaining(data, done=done)
        for batch, item in enumerate(self._until_preempted(remaining), done):
            yield batch, item
            if self.stop_training:
                return

    def _until_preempted(self, data: Iterable[Data]) -> Iterator[Data]:
        """The batches. If a signal has also ended the workers of a loader, save and end here."""
        try:
            yield from data
        except RuntimeError as error:
            if is_loader_error(error):
                save_before_end(self.training)
            raise

    def state_dict(self) -> dict[str, Any]:
        """The states of all callbacks, and the position of the run."""
        return self._states.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Before `on_train_begin`, it takes effect there."""
        self._states.load_state_dict(state)

    @property
    def _states(self) -> CallbackStates:
        states: CallbackStates = self.training.tracked[CALLBACKS]
        return states

    # Savers come last where something ends, and first where something begins, so that whatever the
    # other callbacks do happens between two checkpoints.

    @property
    def _savers_last(self) -> list[Any]:
        return sorted(self.callbacks, key=lambda callback: getattr(callback, "turn", 0))

    @property
    def _savers_first(self) -> list[Any]:
        return sorted(self.callbacks, key=lambda callback: -getattr(callback, "turn", 0))

    def _call(self, callbacks: list[Any], hook: str, *args: Any) -> None:
        for callback in callbacks:
            getattr(callback, hook)(*args)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Begin training, then load states that wait for it."""
        training = self.training
        training.stop_training = False
        training.forget()
        training.begin_at(self._initial_epoch, 0)
        if self._states.has_begun:  # a second training with the same list
            training.step = 0
        self._states.has_begun = True
        self._call(self._savers_last, "on_train_begin", logs)
        self._states.begin()

    def on_train_end(self, logs: Logs = None) -> None:
        """End training."""
        self._call(self._savers_first, "on_train_end", plain(logs))

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Begin an epoch."""
        training = self.training
        is_resumed = epoch == training.initial_epoch
        training.epoch, training.batch = epoch, training.initial_batch if is_resumed else 0
        self._call(self._savers_first, "on_epoch_begin", epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """End an epoch. All callbacks get the same copy of the logs."""
        self.training.epoch, self.training.batch = epoch + 1, 0
        self.training.initial_batch = 0
        self._states.leave_epoch()
        self._call(self._savers_last, "on_epoch_end", epoch, plain(logs))

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Begin a batch of training."""
        self._call(self.callbacks, "on_train_batch_begin", batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """End a batch of training, which completes a step."""
        self.training.batch = batch + 1
        self.training.step += 1
        self._call(self._savers_last, "on_train_batch_end", batch, logs)

    def on_test_begin(self, logs: Logs = None) -> None:
        """Begin an evaluation."""
        self._call(self.callbacks, "on_test_begin", logs)

    def on_test_end(self, logs: Logs = None) -> None:
        """End an evaluation."""
        self._call(self.callbacks, "on_test_end", plain(logs))

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Begin a batch of an evaluation."""
        self._call(self.callbacks, "on_test_batch_begin", batch, logs)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """End a batch of an evaluation."""
        self._call(self.callbacks, "on_test_batch_end", batch, logs)

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Begin a prediction."""
        self._call(self.callbacks, "on_predict_begin", logs)

    def on_predict_end(self, logs: Logs = None) -> None:
        """End a prediction."""
        self._call(self.callbacks, "on_predict_end", logs)

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Begin a batch of a prediction."""
        self._call(self.callbacks, "on_predict_batch_begin", batch, logs)

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """End a batch of a prediction."""
        self._call(self.callbacks, "on_predict_batch_end", batch, logs)
