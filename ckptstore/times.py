"""Times: microseconds since 1970 in UTC, as documents have them, and texts of people. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LENGTH = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?(s|min|m|h|d|w)")
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def utc(microseconds: int) -> datetime:
    """Return a time, exactly: a float would turn the last of the year 9999 into one after it."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_the_minute(microseconds: int) -> str:
    """Return a time for a message: "2026-11-30 14:05 UTC"."""
    return f"{utc(microseconds):%Y-%m-%d %H:%M} UTC"


def seconds_of(text: str) -> float | None:
    """Return the seconds of a text such as "90min", "6h" or "1.5 d"; None for any other."""
    match = _LENGTH.fullmatch(text)
    return float(match[1]) * _UNIT_SECONDS[match[2]] if match else None
