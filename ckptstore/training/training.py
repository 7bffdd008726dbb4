"""Training: what callbacks see of the training in progress, here a plain loop over a PyTorch model.

Callbacks that are given the same model find each other here, and what they save holds the states of all of them.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError
from ckptstore.training.frameworks import training_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ckptstore.checkpoint import Checkpoint
    from ckptstore.digest import Digest
    from ckptstore.revisions import Mode
    from ckptstore.training.manager import CheckpointManager

CALLBACKS = "callbacks"  # the name under which a checkpoint holds the states of callbacks


@dataclass(frozen=True, slots=True)
class Rate:
    """One learning rate: of a group of parameters.

    optimizer: the optimizer's name, empty where there is only one.
    """

    optimizer: str
    group: dict[str, Any]

    @property
    def value(self) -> float:
        """What it is now."""
        return float(self.group["lr"])

    def change(self, value: float) -> None:
        """Set it."""
        if hasattr(self.group["lr"], "fill_"):  # a tensor, which a captured graph reads
            self.group["lr"].fill_(value)
        else:
            self.group["lr"] = value


class Training:
    """A training in progress.

    tracked: what a checkpoint holds, by name. callbacks: those that take part, in their order. epoch, batch: what comes
    next, from 0. step: batches done since the very beginning. initial_epoch, initial_batch: where the loop is to begin.
    is_terminated: the loss became NaN, so that nothing is worth saving any more.
    saved: which manager saved last, and at which position. told: the newest checkpoint that callbacks were told of, by
    repository and branch.
    """

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
        self.is_terminated = False
        self.saved: tuple[object, ...] | None = None
        self.told: dict[tuple[str, str], Digest | None] = {}
        self._stops = False

    @property
    def stop_training(self) -> bool:
        """Whether the loop is to end; a callback may also say so on the model, as with Keras."""
        return self._stops or getattr(self.model, "stop_training", False) is True

    @stop_training.setter
    def stop_training(self, stops: bool) -> None:
        self._stops = stops
        if not stops and hasattr(self.model, "stop_training"):
            self.model.stop_training = False

    @property
    def rates(self) -> list[Rate]:
        """All learning rates; InvalidInputError when there is no optimizer."""
        optimizers = {
            name: item.param_groups
            for name, item in self.tracked.items()
            if isinstance(getattr(item, "param_groups", None), list)
        }
        if not optimizers:
            raise InvalidInputError(
                "There is no optimizer, so no learning rate. Pass optimizer=… to CallbackList."
            )
        alone = len(optimizers) == 1
        return [
            Rate("" if alone else name, group)
            for name, groups in optimizers.items()
            for group in groups
        ]

    @property
    def learning_rate(self) -> float:
        """The learning rate; the first one where there are several."""
        return float(self.rates[0].value)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        for rate in self.rates:
            rate.change(value)

    @property
    def learning_rates(self) -> dict[str, float]:
        """One learning rate of each optimizer, by the name it has in logs."""
        found: dict[str, float] = {}
        for rate in self.rates:
            name = f"learning_rate_{rate.optimizer}" if rate.optimizer else "learning_rate"
            found.setdefault(name, rate.value)
        return found

    @property
    def directions(self) -> Mapping[str, Mode]:
        """Whether less or more of a metric is better, where the framework knows it."""
        return {}

    @property
    def weights(self) -> Iterator[tuple[str, Any]]:
        """The model's parameters by readable names."""
        named = getattr(self.model, "named_parameters", None)
        return iter(()) if named is None else iter(named())

    @property
    def embeddings(self) -> dict[str, Any]:
        """The tables of embedding layers, by the layer's name."""
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
        """The model's layers as the JSON that Keras gives, None where there is none."""
        return None

    @property
    def traceable(self) -> Any:
        """The module whose graph a tracer can follow, None where there is none."""
        return self.model if hasattr(self.model, "register_forward_pre_hook") else None

    @property
    def position(self) -> tuple[int, int, int]:
        """What comes next: epoch, batch, and the steps that are done."""
        return self.epoch, self.batch, self.step

    def join(self, callback: Any) -> None:
        """Let a callback take part."""
        if not any(callback is other for other in self.callbacks):
            self.callbacks.append(callback)

    def settle(self, caller: Any, hook: str, *args: Any) -> None:
        """Let everybody else handle a hook before the caller, who saves what they decide; CallbackList sees to it."""

    def announce(self, checkpoint: Checkpoint, branch: str) -> None:
        """Tell all callbacks of a checkpoint that one of them made."""
        for callback in self.callbacks:
            if hasattr(callback, "on_checkpoint"):
                callback.on_checkpoint(checkpoint, branch)

    def begin_at(self, epoch: int, batch: int, *, stops: bool = False) -> None:
        """Make the loop begin at a position, or end at once."""
        self.initial_epoch, self.initial_batch = epoch, batch
        self.epoch, self.batch = epoch, batch
        if stops:
            self.stop_training = True

    def note_begun(self) -> None:
        """The loop has taken notice of where to begin."""


class CallbackStates:
    """The states of a training's callbacks and its position, as one thing to save and load.

    Before `begin`, which follows the callbacks' on_train_begin, a state that is loaded waits.
    """

    def __init__(self, training: Training) -> None:
        self._training = weakref.ref(training)
        self._waiting: dict[str, Any] | None = None
        self.has_begun = False

    def state_dict(self) -> dict[str, Any]:
        """The state of each callback that has one, by its class, and where the training is."""
        training = self._the_training
        states = {name: item.state_dict() for name, item in self._named()}
        epoch, batch, step = training.position
        return {
            "epoch": epoch,
            "batch": batch,
            "step": step,
            "stops": training.stop_training,
            "states": {name: state for name, state in states.items() if state},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring callbacks and position to a state; callbacks that it does not know stay as they are."""
        if not self.has_begun:
            self._waiting = state
            return
        training = self._the_training
        training.step = state["step"]
        for name, callback in self._named():
            if name in state["states"]:
                callback.load_state_dict(state["states"][name])
        training.begin_at(state["epoch"], state["batch"], stops=state["stops"])

    def begin(self) -> None:
        """Load what waits, now that all callbacks have begun."""
        self.has_begun = True
        if self._waiting is not None:
            state, self._waiting = self._waiting, None
            self.load_state_dict(state)

    @property
    def _the_training(self) -> Training:
        training = self._training()
        if training is None:
            raise InvalidInputError("The training whose callbacks these were has ended.")
        return training

    def _named(self) -> list[tuple[str, Any]]:
        """The callbacks by the names of their classes, numbered where there are several of one."""
        counts: dict[str, int] = {}
        found = []
        for callback in self._the_training.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                kind = type(callback).__name__
                counts[kind] = counts.get(kind, 0) + 1
                found.append((kind if counts[kind] == 1 else f"{kind}_{counts[kind]}", callback))
        return found


_trainings: weakref.WeakKeyDictionary[Any, weakref.ref[Training]] = weakref.WeakKeyDictionary()


def training_of(model: Any) -> Training:
    """The training of a model that is in progress, or a new one."""
    try:
        known = _trainings.get(model)
    except TypeError:  # nothing to remember it by
        return Training(model)
    training = known() if known is not None else None
    if training is None:
        training = training_for(model) or Training(model)
        remember(model, training)
    return training


def remember(model: Any, training: Training) -> None:
    """Make this the training of a model; it is remembered for as long as somebody else holds it."""
    with suppress(
        TypeError
    ):  # models that cannot be remembered are told their training by CallbackList
        _trainings[model] = weakref.ref(training)
