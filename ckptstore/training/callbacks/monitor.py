"""Monitor: reads metrics from logs and decides whether one has improved.

`Monitored` is what callbacks that watch one metric have in common; the rest are pure functions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ckptstore.documents.names import METRIC_NAME_LENGTH_MAX, check_strings
from ckptstore.errors import InvalidInputError, check_choice, shown
from ckptstore.metric_names import Mode, mode_of
from ckptstore.training.callbacks.callback import Callback

MODES = ("auto", "min", "max")


def number(value: object) -> float | None:
    """A metric as a float; None for what is not a single number.

    Numbers are those of Python, numpy scalars, and arrays and tensors without dimensions.
    """
    if not isinstance(value, int | float):
        if not hasattr(value, "item") or getattr(value, "ndim", None):
            return None
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError):
            return None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def plain(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """A flat copy of the logs with single numbers as floats; other values are kept."""
    metrics: dict[str, Any] = {}
    for name, value in (logs or {}).items():
        if isinstance(value, Mapping):
            metrics |= plain(value)
        else:
            as_number = number(value)
            metrics[name] = value if as_number is None else as_number
    return metrics


def metrics_of(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """The values of the logs that a checkpoint can keep as metrics."""
    return {
        name: value
        for name, value in plain(logs).items()
        if isinstance(value, float)
        and isinstance(name, str)
        and 0 < len(name) <= METRIC_NAME_LENGTH_MAX
        and name.isprintable()
    }


def check_mode(mode: str) -> str:
    """Return a valid mode, in whatever case it is written; InvalidInputError for any other."""
    plain_mode = mode.lower() if isinstance(mode, str) else mode
    check_choice(plain_mode, MODES, name="mode")
    return plain_mode


def direction(monitor: str, mode: str, known: Mapping[str, Mode]) -> Mode:
    """Whether a smaller or a larger value of a metric is better.

    For "auto", `known` decides if it has the metric, else the words of its name, as in revisions.

    Args:
        monitor: The metric's name.
        mode: "auto", "min" or "max".
        known: What the framework knows of its metrics, by name.

    Raises:
        InvalidInputError: Neither the framework nor the name says the direction.
    """
    if mode == "min":
        return "min"
    if mode == "max":
        return "max"
    metric = monitor.removeprefix("val_")
    return known[metric] if metric in known else mode_of(monitor)


def improves(value: float, reference: float | None, *, mode: Mode, min_delta: float = 0) -> bool:
    """Whether a value is better than the reference by more than `min_delta`.

    NaN is never better. Any other value is better than no reference.
    """
    if math.isnan(value):
        return False
    if reference is None:
        return True
    if mode == "min":
        return value + min_delta < reference
    return value - min_delta > reference


class Monitored(Callback):
    """A callback that watches one metric, or several where the class says so."""

    min_delta: float = 0
    watches_several = False

    def __init__(self, monitor: str | Sequence[str], mode: str) -> None:
        if not self.watches_several and not isinstance(monitor, str):
            raise InvalidInputError(
                f"{type(self).__name__}: monitor is {shown(monitor)}; the name of one metric is "
                "expected. To watch several, use one of these callbacks for each."
            )
        self.monitor, self.mode = monitor, check_mode(mode)
        self.monitors = tuple(dict.fromkeys(check_strings(monitor, what="monitor")))
        if not self.monitors:
            raise InvalidInputError(f"{type(self).__name__}: monitor names no metric.")
        self.best: float | None = None
        self._missing: set[str] = set()  # the metrics that a warning has named

    def check_direction(self) -> None:
        """Raise InvalidInputError before the first epoch if no direction is known.

        A framework that knows its metrics only after the first epoch is asked then.
        """
        if not self.training.knows_metrics_late:
            for name in self.monitors:
                self._direction(name)

    def _direction(self, name: str | None = None) -> Mode:
        return direction(name or self.monitors[0], self.mode, self.training.directions)

    def _value(
        self, logs: Mapping[str, Any] | None, name: str | None = None, *, otherwise: str = ""
    ) -> float | None:
        """A metric, the first without a name.

        If it is missing, None, and the first time a warning says what happens `otherwise`.
        """
        name = name or self.monitors[0]
        value = number((logs or {}).get(name))
        if value is None and name not in self._missing:
            self._missing.add(name)
            names = ", ".join(metrics_of(logs)) or "none"
            warnings.warn(
                f"{type(self).__name__}: there is no number for {name!r}. "
                f"Available: {names}.{otherwise}",
                stacklevel=3,
            )
        return value

    def _improves(self, value: float, reference: float | None, name: str | None = None) -> bool:
        return improves(value, reference, mode=self._direction(name), min_delta=self.min_delta)
