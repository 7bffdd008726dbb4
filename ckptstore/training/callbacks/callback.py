"""Callback: the base class with a hook for each event of a training run.

It decides nothing itself. Callbacks of one run find each other through their `Training`; see
docs/adr/0014.
"""

from __future__ import annotations

import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.keras import synced
from ckptstore.errors import InvalidInputError, printable
from ckptstore.training.training import Training, training_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ckptstore.checkpoint import Checkpoint

    Logs = Mapping[str, Any] | None


class Callback:
    """Base class of all callbacks. Subclasses override the hooks they need.

    The same object works in a `CallbackList` and in the callbacks of Keras' `fit`. Epochs and
    batches are counted from 0, and `logs` holds metrics by name. Beyond the hooks of Keras there
    are `on_checkpoint`, and `state_dict` with `load_state_dict`: what the first returns becomes
    part of each checkpoint and is loaded after `on_train_begin` of a resumed training. See
    docs/adr/0014.

    Attributes:
        model: The model in training, once the callback belongs to one.
        params: "epochs", "steps" and "verbose" as passed to `CallbackList` or `fit`.
        turn: Order at the end of batches and epochs: callbacks with a greater turn are called
            later. Callbacks that save have 1 or 2, so that they save what the others decided.

    Example:
        >>> from ckptstore.training import Callback, CallbackList
        >>> class Counter(Callback):
        ...     epochs = 0
        ...     def on_epoch_end(self, epoch, logs=None):
        ...         self.epochs += 1
        >>> counter = Counter()
        >>> callbacks = CallbackList([counter], epochs=3)
        >>> callbacks.on_train_begin()
        >>> for epoch in callbacks.epochs():
        ...     callbacks.on_epoch_begin(epoch)
        ...     callbacks.on_epoch_end(epoch, {"loss": 0.5})
        >>> callbacks.on_train_end()
        >>> counter.epochs
        3
    """

    turn = 0
    params: Mapping[str, Any] = MappingProxyType({})
    _model: Any = None
    _training: Training | None = None
    _kept: tuple[str, ...] = ()  # the attributes of the state, where they have no underscore

    @property
    def model(self) -> Any:
        """The model in training, with its variables up to date; None before there is one."""
        return synced(self._model)

    @model.setter
    def model(self, model: Any) -> None:
        self._model = model

    @property
    def training(self) -> Training:
        """The training run that the callback belongs to.

        Raises:
            InvalidInputError: The callback belongs to none yet.
        """
        if self._training is None:
            raise InvalidInputError(
                f"{type(self).__name__} takes part in no training yet. Pass it to CallbackList or "
                "to fit."
            )
        return self._training

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Receive "epochs", "steps" and "verbose"; called by `CallbackList` and `fit`.

        Args:
            params: The arguments of the loop, by name.
        """
        self.params = params

    def set_model(self, model: Any) -> None:
        """Join the training run of a model; called by `CallbackList` and `fit`.

        Args:
            model: The model being trained.
        """
        self.model = model
        known = self._training
        self.set_training(known if known and known.model is model else training_of(model))

    def set_training(self, training: Training) -> None:
        """Join a training run; called by `CallbackList`.

        Args:
            training: The run that the callback belongs to.
        """
        self._training = training
        training.join(self)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training needs: plain values and arrays. Empty for none."""
        return {name.removeprefix("_"): getattr(self, name) for name in self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` has returned.

        Args:
            state: What `state_dict` returned, possibly in another process.
        """
        for name in self._kept:
            setattr(self, name, state[name.removeprefix("_")])

    def on_train_begin(self, logs: Logs = None) -> None:
        """Called when training begins."""

    def on_train_end(self, logs: Logs = None) -> None:
        """Called when training has ended."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Called when an epoch begins."""

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Called when an epoch has ended, with its metrics in `logs`."""

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of training begins."""
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of training has ended."""
        self.on_batch_end(batch, logs)

    def on_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """An alias of `on_train_batch_begin`."""

    def on_batch_end(self, batch: int, logs: Logs = None) -> None:
        """An alias of `on_train_batch_end`."""

    def on_test_begin(self, logs: Logs = None) -> None:
        """Called when an evaluation begins."""

    def on_test_end(self, logs: Logs = None) -> None:
        """Called when an evaluation has ended."""

    def on_test_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of an evaluation begins."""

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of an evaluation has ended."""

    def on_predict_begin(self, logs: Logs = None) -> None:
        """Called when a prediction begins."""

    def on_predict_end(self, logs: Logs = None) -> None:
        """Called when a prediction has ended."""

    def on_predict_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of a prediction begins."""

    def on_predict_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Called when a batch of a prediction has ended."""

    def on_checkpoint(self, checkpoint: Checkpoint, branch: str) -> None:
        """Called when a callback of the same training has made a checkpoint, once it is durable."""


def report(text: str) -> None:
    """Write a line for the user to stderr."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()
