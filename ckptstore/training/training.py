"""Training: a training run in progress as its callbacks see it, here a loop over a torch model.

Callbacks of the same model find each other here, and their checkpoints hold the states of all of
them. It runs no loop, and knows nothing of other frameworks: `frameworks` does. See docs/adr/0014.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError
from ckptstore.training.callback_states import CALLBACKS, CallbackStates
from ckptstore.training.frameworks import training_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.metric_names import Mode
    from ckptstore.training.manager import CheckpointManager
    from ckptstore.training.place import Place


@dataclass(frozen=True, slots=True)
class Rate:
    """The learning rate of one group of parameters.

    Attributes:
        optimizer: The optimizer's name; empty if there is only one.
        group: The optimizer's own dict of the group.
    """

    optimizer: str
    group: dict[str, Any]

    @property
    def value(self) -> float:
        """The current learning rate."""
        return float(self.group["lr"])

    def change(self, value: float) -> None:
        """Set it."""
        if hasattr(self.group["lr"], "fill_"):  # a tensor, which a captured graph reads
            self.group["lr"].fill_(value)
        else:
            self.group["lr"] = value


class Training:
    """A training run in progress.

    Attributes:
        model: The model.
        manager: The CheckpointManager passed to `CallbackList`, if any.
        tracked: The objects that a checkpoint holds, by name.
        callbacks: The callbacks that take part, in their order.
        epoch: The current or next epoch, counted from 0.
        batch: The next batch of the epoch, counted from 0.
        step: The number of batches done since the beginning of the first run.
        initial_epoch: The epoch at which the loop begins.
        initial_batch: The batch of that epoch at which the loop begins.
        is_terminated: True once the loss was not finite, so that nothing more is saved.
        saved: The manager that saved last, and the position at which it did.
        announced: The newest announced checkpoint by repository and branch.
        made: The newest checkpoint that this training made, by repository and branch.
        places: The places of its saves in the history, by repository and branch.
        knows_metrics_late: True if the framework knows its metrics only after the first epoch.
    """

    knows_metrics_late = False
    manager: CheckpointManager | None = None

    def __init__(self, model: Any = None, tracked: Mapping[str, Any] | None = None) -> None:
        self.model = model
        self.tracked: dict[str, Any] = {} if model is None else {"model": model}
        self.tracked |= {name: item for name, item in (tracked or {}).items() if item is not None}
        self.tracked[CALLBACKS] = CallbackStates(self)
        self.callbacks: list[Any] = []
        self.initial_epoch = self.initial_batch = 0
        self.epoch = self.batch = 0
        self.step = 0
        self._stops = False
        self.forget()

    def forget(self) -> None:
        """Forget what was saved and announced, and that the loss was not finite."""
        self.is_terminated = False
        self.saved: tuple[object, ...] | None = None
        self.announced: dict[tuple[str, str], Digest | None] = {}
        self.made: dict[tuple[str, str], Checkpoint] = {}
        self.places: dict[tuple[str, str], Place] = {}

    @property
    def stop_training(self) -> bool:
        """Whether the loop should end. As in Keras it is set on the model too, and read there."""
        return self._stops or getattr(self.model, "stop_training", False) is True

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self._stops = stops
        if stops or hasattr(self.model, "stop_training"):
            with suppress(AttributeError, TypeError):  # None, or a model that takes no attributes
                self.model.stop_training = stops

    @property
    def rates(self) -> list[Rate]:
        """All learning rates.

        Raises:
            InvalidInputError: There is no optimizer.
        """
        optimizers = {
            name: item.param_groups
            for name, item in self.tracked.items()
            if isinstance(getattr(item, "param_groups", None), list)
        }
        if not optimizers:
            raise InvalidInputError(
                "There is no optimizer, so no learning rate. Pass optimizer=… to CallbackList."
            )
        is_single = len(optimizers) == 1
        return [
            Rate("" if is_single else name, group)
            for name, groups in optimizers.items()
            for group in groups
        ]

    @property
    def learning_rate(self) -> float:
        """The learning rate, the first if there are several. Setting it changes all of them."""
        return float(self.rates[0].value)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for rate in self.rates:
            rate.change(value)

    @property
    def learning_rates(self) -> dict[str, float]:
        """The first learning rate of each optimizer, by its name in logs."""
        values: dict[str, float] = {}
        for rate in self.rates:
            name = f"learning_rate_{rate.optimizer}" if rate.optimizer else "learning_rate"
            values.setdefault(name, rate.value)
        return values

    @property
    def directions(self) -> Mapping[str, Mode]:
        """The mode, "min" or "max", of the metrics of which the framework knows it."""
        return {}

    @property
    def weights(self) -> Iterator[tuple[str, Any]]:
        """The names and values of the model's parameters."""
        named = getattr(self.model, "named_parameters", None)
        return iter(()) if named is None else iter(named())

    @property
    def embeddings(self) -> dict[str, Any]:
        """The weights of embedding layers, by the layer's name."""
        torch = sys.modules.get("torch")
        if torch is None or not hasattr(self.model, "named_modules"):
            return {}
        return {
            name or "embedding": module.weight
            for name, module in self.model.named_modules()
            if isinstance(module, torch.nn.Embedding)
        }

    @property
    def architecture(self) -> str | None:
        """The model's layers as JSON of Keras; None for other models."""
        return None

    @property
    def traceable(self) -> Any:
        """The module whose graph can be traced; None if there is none."""
        return self.model if hasattr(self.model, "register_forward_pre_hook") else None

    @property
    def position(self) -> tuple[int, int, int]:
        """The next epoch and batch, and the number of steps done."""
        return self.epoch, self.batch, self.step

    def join(self, callback: Any) -> None:
        """Add a callback."""
        if not any(callback is other for other in self.callbacks):
            self.callbacks.append(callback)

    def settle(self, caller: Any, hook: str, *args: Any) -> None:
        """Call a hook of all other callbacks before the caller saves their decisions.

        Nothing to do here: `CallbackList` orders its callbacks.
        """

    def announce(self, checkpoint: Checkpoint, branch: str) -> None:
        """Call on_checkpoint of all callbacks for a checkpoint that one of them made."""
        for callback in self.callbacks:
            if hasattr(callback, "on_checkpoint"):
                callback.on_checkpoint(checkpoint, branch)

    def begin_at(self, epoch: int, batch: int, *, stops: bool = False) -> None:
        """Make the loop begin at a position, or end immediately."""
        self.initial_epoch, self.initial_batch = epoch, batch
        self.epoch, self.batch = epoch, batch
        if stops:
            self.stop_training = True

    def note_begun(self) -> None:
        """Called once the loop has begun at its initial position."""


_trainings: weakref.WeakKeyDictionary[Any, weakref.ref[Training]] = weakref.WeakKeyDictionary()


def training_of(model: Any) -> Training:
    """The training run of a model in progress, or a new one."""
    try:
        known = _trainings.get(model)
    except TypeError:  # the model is not hashable or has no weak references
        return Training(model)
    training = known() if known is not None else None
    if training is None:
        training = training_for(model) or Training(model)
        remember(model, training)
    return training


def remember(model: Any, training: Training) -> None:
    """Make this the training run of a model for as long as other references to it exist."""
    with suppress(TypeError):  # CallbackList passes their training to callbacks of such models
        _trainings[model] = weakref.ref(training)
