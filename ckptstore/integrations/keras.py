"""Keras 3 on any backend: the callbacks of ckptstore.training in `fit`.

The state of a Keras model is that of `arrays.keras`. See docs/adr/0014 and docs/adr/0024.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import torch

from ckptstore.arrays.frameworks import is_keras
from ckptstore.arrays.keras import (
    ModelState,
    OptimizerState,
    layers,
    named_variables,
    synced,
    tensor_of,
    value_of,
)
from ckptstore.errors import InvalidInputError
from ckptstore.training.callback_states import CALLBACKS, CallbackStates
from ckptstore.training.frameworks import register
from ckptstore.training.training import Training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.metric_names import Mode

__all__ = ["tracked"]

SETTLED_HOOKS = ("on_train_begin", "on_epoch_end", "on_train_batch_end")


def tracked(model: keras.Model) -> dict[str, Any]:
    """The objects of a Keras model for a CheckpointManager outside `fit`.

    Pass them on as in `CheckpointManager(store, **tracked(model))`. Variables are saved by their
    position and a readable name, because Keras numbers its layers differently in each process.

    Args:
        model: The model, built. Its optimizer is included if it is compiled.

    Returns:
        "model" and, with an optimizer, "optimizer": objects with state_dict and load_state_dict.

    Example:
        >>> import keras
        >>> from ckptstore.integrations.keras import tracked
        >>> from ckptstore.training import CheckpointManager
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile(optimizer="adam", loss="mse")
        >>> with CheckpointManager("memory://keras-example", **tracked(model)) as manager:
        ...     _ = manager.save(1)
        >>> manager.restore_or_initialize()
        1
    """
    states: dict[str, Any] = {"model": ModelState(model)}
    if getattr(model, "optimizer", None) is not None:
        states["optimizer"] = OptimizerState(model)
    return states


class KerasTraining(Training):
    """The training run of a Keras model in progress, as callbacks see it."""

    knows_metrics_late = True

    def __init__(self, model: keras.Model) -> None:
        super().__init__(None, tracked(model))
        self.model = model
        self._fit: weakref.ref[Any] | None = None
        states: CallbackStates = self.tracked[CALLBACKS]
        states.has_begun = True  # BackupAndRestore alone loads them, at the right time

    @property
    def model(self) -> Any:
        """The model, with its variables up to date."""
        return synced(self._unsynced)

    @model.setter
    def model(self, model: Any) -> None:
        self._unsynced = model

    @property
    def stop_training(self) -> bool:
        """Whether fit should end."""
        return bool(getattr(self._unsynced, "stop_training", False))

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self._unsynced.stop_training = stops

    @property
    def step(self) -> int:
        """The iterations of the optimizer."""
        optimizer = getattr(self.model, "optimizer", None)
        return 0 if optimizer is None else int(optimizer.iterations)

    @step.setter
    def step(self, step: int) -> None:
        """No effect: the optimizer counts its own iterations."""

    @property
    def rates(self) -> list[Any]:
        """The learning rate of each optimizer."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise InvalidInputError("The Keras model has no optimizer. Compile it with one.")
        optimizers = getattr(optimizer, "optimizers", None)
        if optimizers is None:
            return [KerasRate("", optimizer)]
        return [KerasRate(item.name, item) for item in optimizers]

    @property
    def directions(self) -> Mapping[str, Mode]:
        """The modes that Keras knows of the metrics the model was compiled with."""
        modes: dict[str, Mode] = {}
        for metric in self.model.metrics:
            for part in (metric, *getattr(metric, "metrics", ())):
                if hasattr(part, "_direction"):
                    is_up = part._direction == "up"  # noqa: SLF001 - there is no public attribute
                    modes[part.name] = "max" if is_up else "min"
        return modes

    @property
    def weights(self) -> Iterator[tuple[str, Any]]:
        """Readable names and values of the model's weights."""
        own = {id(weight) for weight in self.model.weights}
        pairs = named_variables(self.model)
        return iter([(name, _tensor(variable)) for variable, name in pairs if id(variable) in own])

    @property
    def embeddings(self) -> dict[str, Any]:
        """The weights of embedding layers, by the layer's name."""
        return {
            layer.name: _tensor(layer.embeddings)
            for layer in layers(self.model)
            if isinstance(layer, keras.layers.Embedding)
        }

    @property
    def architecture(self) -> str | None:
        """The model's layers as JSON; None for a model without a configuration."""
        try:
            return str(self.model.to_json())
        except Exception:  # noqa: BLE001 - a model's own get_config can raise any error
            return None

    @property
    def traceable(self) -> Any:
        """None: `architecture` describes a Keras model."""
        return None

    def join(self, callback: Any) -> None:
        """Add a callback. A new call of fit first removes those of the previous one."""
        fit = getattr(self._unsynced, "history", None)
        if fit is not None and (self._fit is None or self._fit() is not fit):
            self._fit = weakref.ref(fit)
            self.callbacks.clear()
            self.forget()
            self.begin_at(0, 0)
            self.note_begun()
        super().join(callback)
        for hook in SETTLED_HOOKS:
            known = getattr(callback, hook)
            if isinstance(known, Once):
                known.is_done = False
            else:
                setattr(callback, hook, Once(known))

    def settle(self, caller: Any, hook: str, *args: Any) -> None:
        """Call a hook of later callbacks with a smaller turn before the caller saves.

        Keras calls callbacks in the order of fit's list; its own calls of these hooks then do
        nothing.
        """
        if hook == "on_epoch_end":
            self.epoch, self.batch = args[0] + 1, 0
        elif hook == "on_train_batch_end":
            self.batch = args[0] + 1
        places = [place for place, other in enumerate(self.callbacks) if other is caller]
        for other in self.callbacks[places[0] + 1 if places else 0 :]:
            once = getattr(other, hook)
            if getattr(other, "turn", 0) < caller.turn and isinstance(once, Once):
                once.in_advance(*args)

    def begin_at(self, epoch: int, batch: int, *, stops: bool = False) -> None:
        """Make fit begin with an epoch, or end immediately."""
        super().begin_at(epoch, batch, stops=stops)
        if stops:
            epoch = max([epoch, *(callback.params.get("epochs", 0) for callback in self.callbacks)])
        self._unsynced._initial_epoch = epoch  # noqa: SLF001 - as Keras' own BackupAndRestore does

    def note_begun(self) -> None:
        """Reset the initial epoch, so that the next call of fit begins as its arguments specify."""
        self._unsynced._initial_epoch = None  # noqa: SLF001 - Keras itself never resets it


@dataclass(frozen=True, slots=True)
class KerasRate:
    """The learning rate of one Keras optimizer."""

    optimizer: str
    owner: Any

    @property
    def value(self) -> float:
        """The current learning rate."""
        return float(keras.ops.convert_to_numpy(self.owner.learning_rate))

    def change(self, value: float) -> None:
        """Set it."""
        self.owner.learning_rate = value


class Once:
    """A hook that may be called in advance; its regular call then does nothing."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook
        self.is_done = False

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """The regular call."""
        if self.is_done:
            self.is_done = False
        else:
            self.hook(*args, **kwargs)

    def in_advance(self, *args: Any) -> None:
        """Call the hook before its regular call."""
        if not self.is_done:
            self.hook(*args)
            self.is_done = True


def _tensor(variable: Any) -> torch.Tensor:
    """A variable as a tensor, as which TensorBoard's writer takes it."""
    tensor: torch.Tensor | None = tensor_of(variable)
    if tensor is None:
        tensor = torch.tensor(np.asarray(value_of(variable), np.float32))
    return tensor


register(is_keras, KerasTraining)
