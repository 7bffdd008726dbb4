"""Keras 3 with the torch backend: the callbacks of ckptstore.training in `fit`, and the state of a Keras model.

Keras numbers its layers anew whenever a model is made, so what `.path` says of a variable differs between two runs of the
same program. Variables are therefore saved by their position, with a name to read; shape and dtype are checked.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import keras  # type: ignore[import-untyped]

from ckptstore.arrays.keras import ModelState, OptimizerState, is_keras, layers, named_variables
from ckptstore.errors import InvalidInputError
from ckptstore.training.frameworks import register
from ckptstore.training.training import Training

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.revisions import Mode

__all__ = ["tracked"]

SETTLED_HOOKS = ("on_train_begin", "on_epoch_end", "on_train_batch_end")


def tracked(model: keras.Model) -> dict[str, Any]:
    """What a CheckpointManager needs to save and restore a Keras model outside fit: `CheckpointManager(store, **tracked(model))`."""
    _check_backend()
    found: dict[str, Any] = {"model": ModelState(model)}
    if getattr(model, "optimizer", None) is not None:
        found["optimizer"] = OptimizerState(model)
    return found


class KerasTraining(Training):
    """The training of a Keras model in progress, as callbacks see it."""

    def __init__(self, model: keras.Model) -> None:
        _check_backend()
        super().__init__(None, tracked(model))
        self.model = model
        self._fit: weakref.ref[Any] | None = None
        self._states.has_begun = (
            True  # BackupAndRestore is the only one to load them, at the right time
        )

    @property
    def _states(self) -> Any:
        return self.tracked["callbacks"]

    @property
    def stop_training(self) -> bool:
        """Whether fit is to end."""
        return bool(getattr(self.model, "stop_training", False))

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self.model.stop_training = stops

    @property
    def step(self) -> int:
        """The iterations of the optimizer."""
        optimizer = getattr(self.model, "optimizer", None)
        return 0 if optimizer is None else int(optimizer.iterations)

    @step.setter
    def step(self, step: int) -> None:
        """The optimizer counts by itself."""

    @property
    def rates(self) -> list[Any]:
        """The learning rate of each optimizer."""
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise InvalidInputError("The Keras model has no optimizer. Compile it with one.")
        several = getattr(optimizer, "optimizers", None)
        if several is None:
            return [KerasRate("", optimizer)]
        return [KerasRate(one.name, one) for one in several]

    @property
    def directions(self) -> Mapping[str, Mode]:
        """What the metrics that the model was compiled with say of themselves."""
        found: dict[str, Mode] = {}
        for metric in self.model.metrics:
            for one in (metric, *getattr(metric, "metrics", ())):
                if hasattr(one, "_direction"):
                    found[one.name] = "max" if one._direction == "up" else "min"  # noqa: SLF001 - Keras has no other word for it
        return found

    @property
    def weights(self) -> Iterator[tuple[str, Any]]:
        """The model's weights by readable names."""
        own = {id(weight) for weight in self.model.weights}
        named = named_variables(self.model)
        return iter([(name, found.value) for found, name in named if id(found) in own])

    @property
    def embeddings(self) -> dict[str, Any]:
        """The tables of embedding layers, by the layer's name."""
        return {
            layer.name: layer.embeddings.value
            for layer in layers(self.model)
            if isinstance(layer, keras.layers.Embedding)
        }

    @property
    def architecture(self) -> str | None:
        """The model's layers as JSON, None for a model that cannot say."""
        try:
            return str(self.model.to_json())
        except Exception:  # noqa: BLE001 - a model's own get_config may fail in any way
            return None

    @property
    def traceable(self) -> Any:
        """Nothing: a Keras model shows its layers."""
        return None

    def join(self, callback: Any) -> None:
        """Let a callback take part. With each fit those of the one before have left."""
        fit = getattr(self.model, "history", None)
        if fit is not None and (self._fit is None or self._fit() is not fit):
            self._fit = weakref.ref(fit)
            self.callbacks.clear()
            self.is_terminated, self.saved = False, None
            self.told.clear()
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
        """Let those handle a hook who come after the caller in fit's list, and whose decisions it saves.

        Keras calls callbacks in the order of the list; what they did already is passed over then.
        """
        if hook == "on_epoch_end":
            self.epoch, self.batch = args[0] + 1, 0
        elif hook == "on_train_batch_end":
            self.batch = args[0] + 1
        found = [place for place, other in enumerate(self.callbacks) if other is caller]
        for other in self.callbacks[found[0] + 1 if found else 0 :]:
            once = getattr(other, hook)
            if getattr(other, "turn", 0) < caller.turn and isinstance(once, Once):
                once.in_advance(*args)

    def begin_at(self, epoch: int, batch: int, *, stops: bool = False) -> None:
        """Make fit begin with an epoch, or end at once."""
        super().begin_at(epoch, batch, stops=stops)
        if stops:
            epoch = max([epoch, *(callback.params.get("epochs", 0) for callback in self.callbacks)])
        self.model._initial_epoch = epoch  # noqa: SLF001 - where fit looks; Keras' own BackupAndRestore sets it too

    def note_begun(self) -> None:
        """Fit has looked; the next one is to begin as it is told."""
        self.model._initial_epoch = None  # noqa: SLF001 - Keras itself never takes it back


class KerasRate:
    """The learning rate of one Keras optimizer."""

    def __init__(self, name: str, optimizer: Any) -> None:
        self.optimizer = name
        self._optimizer = optimizer

    @property
    def value(self) -> float:
        """What it is now."""
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))

    def change(self, value: float) -> None:
        """Set it."""
        self._optimizer.learning_rate = value


class Once:
    """A hook that may be called before its turn; its turn then does nothing."""

    def __init__(self, hook: Any) -> None:
        self.hook = hook
        self.is_done = False

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Its turn."""
        if self.is_done:
            self.is_done = False
        else:
            self.hook(*args, **kwargs)

    def in_advance(self, *args: Any) -> None:
        """Before its turn."""
        if not self.is_done:
            self.hook(*args)
            self.is_done = True


def _check_backend() -> None:
    if keras.backend.backend() != "torch":
        raise InvalidInputError(
            f"Keras runs on {keras.backend.backend()}; ckptstore's callbacks need the torch backend. Set "
            "KERAS_BACKEND=torch before Keras is imported."
        )


register(is_keras, KerasTraining)
