"""Triggers: when a checkpoint is due. Pure: steps and seconds come in as arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ckptstore.errors import InvalidInputError, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Due whenever a multiple of so many steps was reached, or so many minutes passed, since the last save.

    Neither given: always due.
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
        """Whether to save at a step. last_step: where the last save was. seconds: since then."""
        if self.steps is None and self.minutes is None:
            return True
        passed = self.steps is not None and step // self.steps > last_step // self.steps
        return passed or (self.minutes is not None and seconds >= 60 * self.minutes)
