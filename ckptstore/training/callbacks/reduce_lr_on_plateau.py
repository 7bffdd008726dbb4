"""ReduceLROnPlateau: reduces the learning rate when a metric stops improving."""

# ruff: noqa: ARG002 - a hook is called with more than each of them needs

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.errors import InvalidInputError, shown
from ckptstore.training.arguments import explained
from ckptstore.training.callbacks.callback import report
from ckptstore.training.callbacks.monitor import Monitored

if TYPE_CHECKING:
    from ckptstore.training.callbacks.callback import Logs


class ReduceLROnPlateau(Monitored):
    """Reduces the learning rate when a metric has not improved for `patience` epochs.

    The learning rate is added to the epoch's metrics. Unlike with Keras, a resumed training
    continues counting, NaN never counts as an improvement, and several optimizers and groups of
    parameters are all reduced. A missing metric causes a warning.

    Args:
        monitor: The metric.
        factor: The learning rate is multiplied by it; less than 1.
        patience: Epochs without improvement before a reduction.
        verbose: 1 to report each reduction on stderr.
        mode: "min" if less is better, "max" if more is, "auto" to decide by the words
            of the metric's name.
        min_delta: Smaller changes do not count as improvements.
        cooldown: Epochs after a reduction that do not count.
        min_lr: The smallest learning rate.

    Raises:
        InvalidInputError: `factor` is 1 or more, or `mode` is not "min", "max" or "auto".

    Example:
        >>> import torch
        >>> from ckptstore.training import CallbackList, ReduceLROnPlateau
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> reduce = ReduceLROnPlateau("loss", factor=0.5, patience=1)
        >>> callbacks = CallbackList([reduce], optimizer=optimizer)
        >>> callbacks.on_train_begin()
        >>> for epoch in range(3):
        ...     callbacks.on_epoch_end(epoch, {"loss": 1.0})
        >>> optimizer.param_groups[0]["lr"]
        0.025
    """

    _kept = ("best", "wait", "cooldown_counter")

    @explained
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
        super().__init__(monitor, mode)
        self.factor, self.patience, self.min_lr = factor, patience, min_lr
        self.min_delta, self.cooldown = abs(min_delta), cooldown
        self.verbose = verbose
        self.wait = self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs = None) -> None:
        """Start counting.

        Raises:
            InvalidInputError: The direction of the metric is unknown.
        """
        self.check_direction()
        self.best = None
        self.wait = self.cooldown_counter = 0

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Compare the metric with the best, and reduce the learning rates when it is time."""
        if isinstance(logs, dict):
            logs |= self.training.learning_rates
        value = self._value(logs)
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._improves(value, self.best):
            self.best, self.wait = value, 0
        elif self.cooldown_counter <= 0:
            self.wait += 1
            if self.wait >= self.patience and self._reduce(epoch):
                self.cooldown_counter, self.wait = self.cooldown, 0

    def _reduce(self, epoch: int) -> bool:
        """Reduce all learning rates. False if none changed in the optimizer's own precision."""
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
                    report(f"Epoch {epoch + 1}: {name}learning rate reduced to {value}.")
        return is_reduced
