"""LearningRateScheduler: sets the learning rate by the epoch."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import Callback, report
from ckptstore.training.callbacks.monitor import number

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.training.callbacks.callback import Logs


class LearningRateScheduler(Callback):
    """Sets the learning rate at the beginning of each epoch, and adds it to the epoch's metrics.

    Unlike Keras' class it handles several optimizers and groups of parameters: the schedule is
    called for each of them.

    Args:
        schedule: Called with the epoch, counted from 0, and the current learning rate, or with the
            epoch alone if it has one parameter. Returns the new learning rate.
        verbose: 1 to report each change on stderr.

    Example:
        >>> import torch
        >>> from ckptstore.training import CallbackList, LearningRateScheduler
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> callbacks = CallbackList(
        ...     [LearningRateScheduler(lambda epoch, rate: rate / 2)], optimizer=optimizer
        ... )
        >>> callbacks.on_epoch_begin(0)
        >>> optimizer.param_groups[0]["lr"]
        0.05
    """

    @explained
    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        self.schedule, self.verbose = schedule, verbose
        self._takes_rate = _takes_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Set the learning rates.

        Raises:
            InvalidInputError: There is no optimizer, or the schedule returned no number.
        """
        for rate in self.training.rates:
            result = self.schedule(epoch, rate.value) if self._takes_rate else self.schedule(epoch)
            value = number(result)
            if value is None:
                raise InvalidInputError(
                    f"The schedule returned {shown(result)}; a number is expected."
                )
            rate.change(value)
            if self.verbose:
                name = f"{rate.optimizer} " if rate.optimizer else ""
                report(f"Epoch {epoch + 1}: {name}learning rate set to {value}.")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Add the learning rate to the metrics, for the callbacks that follow."""
        if isinstance(logs, dict):
            logs |= self.training.learning_rates


def _takes_two(schedule: Callable[..., float]) -> bool:
    try:
        inspect.signature(schedule).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:  # the signature is unknown
        return True
    return True
