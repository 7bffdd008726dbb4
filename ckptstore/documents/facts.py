"""Facts: user-supplied metadata of a checkpoint (step, metrics, message, meta), checked. Pure.

Whatever passes here can be written to a manifest and comes back from it unchanged. It is a copy:
what the caller changes later does not reach it. Described in docs/reference/format.md, section 9.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

from ckptstore.documents.names import check_metric_name
from ckptstore.errors import InvalidInputError, shown
from ckptstore.times import EPOCH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import SupportsIndex

MESSAGE_LENGTH_MAX = 1 << 16
METRICS_MAX = 100_000
META_DEPTH_MAX = 50
META_VALUES_MAX = 250_000
STEP_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """User-supplied metadata of a checkpoint."""

    step: int | None = None
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    message: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        *,
        step: SupportsIndex | None = None,
        metrics: Mapping[str, object] | None = None,
        message: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> Self:
        """Check what a user passed.

        Raises:
            InvalidInputError: One of them is of the wrong type or too large. The message names it.
        """
        return cls(
            step=check_step(step),
            metrics=check_metrics(metrics),
            message=check_message(message),
            meta=check_meta(meta),
        )


def check_step(step: SupportsIndex | None) -> int | None:
    """Return a step as a plain int. Integers of numpy and torch are accepted.

    Raises:
        InvalidInputError: It is not an integer of at most 63 bits.
    """
    if step is None:
        return None
    try:
        number = int(operator.index(step))  # of a bool too
    except TypeError:
        number = STEP_MAX + 1
    if abs(number) > STEP_MAX:
        raise InvalidInputError(
            f"The step is {shown(step)}; an int of at most 63 bits, or None, is expected."
        )
    return number


def check_created(created: object) -> int:
    """Return a time in microseconds since 1970.

    Raises:
        InvalidInputError: The value is not a datetime with a time zone, or is before 1970.
    """
    if not isinstance(created, datetime) or created.tzinfo is None or created < EPOCH:
        raise InvalidInputError(
            f"created is {shown(created)}; a datetime with a time zone, of 1970 or later, is "
            "expected."
        )
    return (created - EPOCH) // timedelta(microseconds=1)


def check_metrics(metrics: Mapping[str, object] | None) -> dict[str, int | float]:
    """Return metrics as plain ints and floats; numpy and torch scalars are unwrapped by `.item()`.

    Raises:
        InvalidInputError: A name is not legal, or a value is not one number.
    """
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        raise InvalidInputError(
            f"metrics is a {type(metrics).__name__}; a dict of numbers by name is expected."
        )
    if len(metrics) > METRICS_MAX:
        raise InvalidInputError(
            f"{len(metrics)} metrics were given; at most {METRICS_MAX} are allowed."
        )
    return {check_metric_name(name): _number(name, value) for name, value in metrics.items()}


def check_message(message: object) -> str:
    """Return the message, or raise InvalidInputError if it is not a string or too long."""
    if not isinstance(message, str) or len(message) > MESSAGE_LENGTH_MAX:
        raise InvalidInputError(
            f"The message is not a string of at most {MESSAGE_LENGTH_MAX} characters."
        )
    return message


def check_meta(meta: object) -> dict[str, Any]:
    """Return a copy of meta if JSON preserves it exactly, or raise InvalidInputError."""
    if meta is None:
        return {}
    if not isinstance(meta, dict):
        raise InvalidInputError(
            f"meta is a {type(meta).__name__}; a dict of plain JSON values is expected."
        )
    copied: dict[str, Any] = _json(meta, where="meta", depth=0, count=itertools.count())
    return copied


def _json(value: object, *, where: str, depth: int, count: Iterator[int]) -> Any:
    """A copy of a JSON value, checked."""
    if depth > META_DEPTH_MAX:
        raise InvalidInputError(f"meta is nested deeper than {META_DEPTH_MAX} levels.")
    if next(count) > META_VALUES_MAX:
        raise InvalidInputError(f"meta holds more than {META_VALUES_MAX} values.")
    if isinstance(value, dict):
        copied = {}
        for key, item in value.items():
            if type(key) is not str or not _is_text(key):
                raise InvalidInputError(f"{where} has the key {shown(key)}; JSON keys are strings.")
            inner = f"{where}[{key[:40]!r}]"
            copied[key] = _json(item, where=inner, depth=depth + 1, count=count)
        return copied
    if isinstance(value, list):
        return [
            _json(item, where=f"{where}[{position}]", depth=depth + 1, count=count)
            for position, item in enumerate(value)
        ]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"{where} is {value}; JSON has no such number.")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise InvalidInputError(f"{where} is an integer of more than 64 bits.")
    if type(value) is str and not _is_text(value):
        raise InvalidInputError(f"{where} holds half of a surrogate pair, not a character.")
    if value is not None and type(value) not in (str, int, float, bool):
        raise InvalidInputError(
            f"{where} is a {type(value).__name__}; meta holds plain JSON values only."
        )
    return value


def _is_text(text: str) -> bool:
    """False for a string with lone surrogates, which JSON does not preserve."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _number(name: str, value: object) -> int | float:
    if not isinstance(value, (int, float)) and hasattr(value, "item"):
        try:
            value = value.item()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidInputError(f"Metric {name!r} is not one number: {error}.") from error
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidInputError(
            f"Metric {name!r} is a {type(value).__name__}; a number is expected."
        )
    if isinstance(value, int):
        if abs(value) > STEP_MAX:
            raise InvalidInputError(
                f"Metric {name!r} is an integer of more than 63 bits; pass a float."
            )
        return int(value)
    return float(value)
