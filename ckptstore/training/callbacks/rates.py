"""LearningRateScheduler and ReduceLROnPlateau: set the learning rate by the epoch, or by how a metric goes."""

# ruff: noqa: ARG002 - a hook is called with all that there is to tell

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.callbacks.base import Callback, say
from ckptstore.training.callbacks.monitor import check_mode, direction, improves, number, present

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.training.callbacks.base import Logs


class LearningRateScheduler(Callback):
    """Sets the learning rate at the beginning of each epoch.

    schedule: takes the epoch (from 0) and the learning rate, or the epoch alone, and gives the new one. With several groups
    of parameters it is asked for each.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self.schedule, self.verbose = schedule, verbose
        self._takes_rate = _takes_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the rates."""
        for rate in self.training.rates:
            given = self.schedule(epoch, rate.value) if self._takes_rate else self.schedule(epoch)
            value = number(given)
            if value is None:
                raise InvalidInputError(f"The schedule gave {shown(given)}; a number is expected.")
            rate.change(value)
            if self.verbose:
                name = f"{rate.optimizer} " if rate.optimizer else ""
                say(f"Epoch {epoch + 1}: {name}learning rate set to {value}.")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Put the learning rate among the metrics."""
        add_rates(self, logs)


class ReduceLROnPlateau(Callback):
    """Multiplies the learning rate by `factor` when a metric has not become better for `patience` epochs.

    min_delta: what counts as better. cooldown: epochs after a reduction that do not count. min_lr: the least rate.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        if factor >= 1:
            raise InvalidInputError(
                f"ReduceLROnPlateau: the factor is {shown(factor)}; less than 1 is expected."
            )
        self.monitor, self.mode = monitor, check_mode(mode)
        self.factor, self.patience, self.min_lr = factor, patience, min_lr
        self.min_delta, self.cooldown = abs(min_delta), cooldown
        self.verbose = verbose
        self.best: float | None = None
        self.wait = self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Training begins."""
        self.best = None
        self.wait = self.cooldown_counter = 0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Look at the metric."""
        add_rates(self, logs)
        value = number((logs or {}).get(self.monitor))
        if value is None:
            warnings.warn(
                f"ReduceLROnPlateau looks at {self.monitor!r}, for which there is no number. "
                f"There are: {present(logs)}.",
                stacklevel=2,
            )
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        mode = direction(self.monitor, self.mode, self.training.directions)
        if improves(value, self.best, mode=mode, min_delta=self.min_delta):
            self.best, self.wait = value, 0
        elif self.cooldown_counter <= 0:
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch):
                self.cooldown_counter, self.wait = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """The best so far, and what was waited."""
        return {"best": self.best, "wait": self.wait, "cooldown_counter": self.cooldown_counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.best, self.wait = state["best"], state["wait"]
        self.cooldown_counter = state["cooldown_counter"]

    def _reduce(self, epoch: int) -> bool:
        """Reduce all rates: whether any of them became less, in the numbers that the optimizer keeps."""
        is_reduced = False
        for rate in self.training.rates:
            before = rate.value
            value = max(before * self.factor, self.min_lr)
            if value < before:
                rate.change(value)
            if rate.value < before:
                is_reduced = True
                if self.verbose:
                    name = f"{rate.optimizer} " if rate.optimizer else ""
                    say(f"Epoch {epoch + 1}: {name}learning rate reduced to {value}.")
        return is_reduced


def add_rates(callback: Callback, logs: Logs) -> None:
    """Put the learning rates among the metrics, for those who look at them afterwards."""
    if isinstance(logs, dict):
        logs |= callback.training.learning_rates


def _takes_two(schedule: Callable[..., float]) -> bool:
    try:
        inspect.signature(schedule).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return True
    return True
