"""Triggers: decide when a checkpoint is due.

Pure: steps, batches and seconds are arguments, and nothing here saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Due when a multiple of `steps` was passed or `minutes` have elapsed since the last save.

    Always due when neither is given. Steps that begin again at a smaller number count from 0.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        steps, minutes = self.steps, self.minutes
        if steps is not None and (type(steps) is not int or steps < 1):
            raise InvalidInputError(
                f"save_interval_steps is {shown(steps)}; a number of 1 or more is expected."
            )
        if minutes is not None and (
            isinstance(minutes, bool)
            or not isinstance(minutes, int | float)
            or not 0 < minutes < math.inf
        ):
            raise InvalidInputError(
                f"save_interval_minutes is {shown(minutes)}; a number above 0 is expected."
            )

    def is_due(self, step: int, *, last_step: int, seconds: float) -> bool:
        """Whether to save at a step, `seconds` after the last save, which was at `last_step`."""
        if self.steps is None and self.minutes is None:
            return True
        counted = last_step if step >= last_step else 0
        is_passed = self.steps is not None and step // self.steps > counted // self.steps
        return is_passed or (self.minutes is not None and seconds >= 60 * self.minutes)


class Frequency:
    """The save_freq of a callback: "epoch", or a number of batches, which it counts.

    period: with "epoch", every so many epochs; None for each.
    """

    def __init__(self, save_freq: str | int, *, what: str, period: int | None = None) -> None:
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool) and save_freq > 0
        if save_freq != "epoch" and not is_count:
            raise InvalidInputError(
                f'{what}: save_freq is {shown(save_freq)}; "epoch" or a number of batches is '
                "expected."
            )
        if period is not None and (type(period) is not int or period < 1):
            raise InvalidInputError(
                f"{what}: period is {shown(period)}; a number of epochs of 1 or more is expected."
            )
        if is_count and period not in (None, 1):
            raise InvalidInputError(
                f"{what}: save_freq counts batches and period epochs. Pass one of them."
            )
        self._every, self._period = save_freq, period or 1
        self._since = self._epochs = 0
        self._last_batch: int | None = None

    @property
    def is_epoch(self) -> bool:
        """True for "epoch"."""
        return self._every == "epoch"

    def is_due(self, batch: int) -> bool:
        """Count the batches up to this one; true when there are enough since the last time.

        Keras may run several batches at once, and then reports only the last of them.
        """
        if isinstance(self._every, str):
            return False
        is_new_epoch = self._last_batch is None or batch <= self._last_batch
        self._since += batch + 1 if is_new_epoch else batch - (self._last_batch or 0)
        self._last_batch = batch
        if self._since < self._every:
            return False
        self._since = 0
        return True

    def is_due_at_epoch(self) -> bool:
        """Count an epoch that ended; true when there are enough since the last time."""
        if not self.is_epoch:
            return False
        self._epochs = (self._epochs + 1) % self._period
        return self._epochs == 0

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"since": self._since, "last_batch": self._last_batch, "epochs": self._epochs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self._since, self._last_batch = state["since"], state["last_batch"]
        self._epochs = state.get("epochs", 0)  # 0 where saved by an earlier release
