"""Monitor: what a metric's value says. Pure: values in, decisions out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ckptstore.documents.names import METRIC_NAME_LENGTH_MAX
from ckptstore.errors import InvalidInputError, shown
from ckptstore.revisions import Mode, mode_of

MODES = ("auto", "min", "max")


def number(value: object) -> float | None:
    """A metric as a float: numbers, numpy scalars and arrays or tensors without dimensions. None for all else."""
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
    """A copy of the logs with metrics as floats, nested ones brought to the top; what is no number stays as it is."""
    found: dict[str, Any] = {}
    for name, value in (logs or {}).items():
        if isinstance(value, Mapping):
            found |= plain(value)
        else:
            as_number = number(value)
            found[name] = value if as_number is None else as_number
    return found


def metrics_of(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Those of the logs that a checkpoint can keep as metrics."""
    return {
        name: value
        for name, value in plain(logs).items()
        if isinstance(value, float)
        and isinstance(name, str)
        and 0 < len(name) <= METRIC_NAME_LENGTH_MAX
        and name.isprintable()
    }


def check_mode(mode: str) -> str:
    """Return a legal mode, or raise InvalidInputError."""
    if mode not in MODES:
        raise InvalidInputError(f"mode is {shown(mode)}; auto, min or max is expected.")
    return mode


def direction(monitor: str, mode: str, known: Mapping[str, Mode]) -> Mode:
    """Whether less or more is better.

    known: by metric, what the framework knows of it. "auto": less for a loss, else as known, else by the metric's last
    word, as in revisions.
    """
    if mode == "min":
        return "min"
    if mode == "max":
        return "max"
    metric = monitor.removeprefix("val_")
    if metric in known:
        return known[metric]
    return "min" if metric == "loss" else mode_of(metric)


def improves(value: float, reference: float | None, *, mode: Mode, min_delta: float = 0) -> bool:
    """Whether a value is better than the reference by more than min_delta. NaN is never better, anything else than None."""
    if math.isnan(value):
        return False
    if reference is None:
        return True
    if mode == "min":
        return value + min_delta < reference
    return value - min_delta > reference


def present(logs: Mapping[str, Any] | None) -> str:
    """The metrics that there are, for a warning about one that is not."""
    return ", ".join(str(name) for name in logs or ()) or "none"
