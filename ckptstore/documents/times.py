"""Times: microseconds since 1970 in UTC, as documents have them, for people. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc(microseconds: int) -> datetime:
    """Return a time, exactly: a float would turn the last of the year 9999 into one after it."""
    return EPOCH + timedelta(microseconds=microseconds)


def to_the_minute(microseconds: int) -> str:
    """Return a time for a message: "2026-11-30 14:05 UTC"."""
    return f"{utc(microseconds):%Y-%m-%d %H:%M} UTC"
