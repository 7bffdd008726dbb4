"""Values as text for people: sizes, ages, metrics, names. Pure functions."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

_SIZE_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
_AGE_UNITS = (("day", 86400), ("h", 3600), ("min", 60))
_AGE_SECONDS_MAX = 30 * 86400  # beyond this a date is more useful
_AHEAD_SECONDS_MAX = 60  # clocks differ; further in the future, the date is shown
_CUT_WIDTH_MIN = 12


def size(size_bytes: int) -> str:
    """A number of bytes: "817 B", "12.3 MB" (a kB is 1,000 bytes)."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    value = float(size_bytes)
    for unit in _SIZE_UNITS:
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value:.1f} {_SIZE_UNITS[-1]}"


def age(created: datetime, now: datetime) -> str:
    """The time since: "just now", "3 min ago", "2 days ago"; a date after 30 days."""
    seconds = (now - created).total_seconds()
    if not -_AHEAD_SECONDS_MAX <= seconds <= _AGE_SECONDS_MAX:
        return created.astimezone(now.tzinfo).strftime("%Y-%m-%d")
    if seconds < 5:
        return "just now"
    if seconds < 60:
        return f"{int(seconds)} s ago"
    unit, length = next(pair for pair in _AGE_UNITS if seconds >= pair[1])
    number = int(seconds // length)
    return f"{number} {unit}{'s' if unit == 'day' and number > 1 else ''} ago"


def duration(seconds: float) -> str:
    """A time to wait, rounded up: "1 min", "3 h", "2 days"."""
    unit, length = next((pair for pair in _AGE_UNITS if seconds > 2 * pair[1]), _AGE_UNITS[-1])
    number = max(-(-seconds // length), 1)
    return f"{number:.6g} {unit}{'s' if unit == 'day' and number > 1 else ''}"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 array", "1,204 arrays", "2 branches"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def arrays(number: int, size_bytes: int) -> str:
    """The number of arrays and their size: "12 arrays, 45.2 MB"."""
    return f"{count(number, 'array')}, {size(size_bytes)}"


def number(value: float) -> str:
    """A metric: ints in full, floats to 6 significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def metrics(values: Mapping[str, float]) -> str:
    """All metrics on one line: "val_loss=0.31 accuracy=0.92"."""
    return " ".join(f"{name}={number(value)}" for name, value in values.items())


def step(value: int | None) -> str:
    """A step, or "-" for a checkpoint without one."""
    return "-" if value is None else str(value)


def shape(lengths: Sequence[int]) -> str:
    """An array's shape: "768 x 3072"; "scalar" without dimensions."""
    return " x ".join(str(length) for length in lengths) or "scalar"


def share(value: float) -> str:
    """A share from 0 to 1: "100 %", "12.5 %"; 0 % and 100 % only where they are exact."""
    percent = 100 * value
    if 0 < percent < 0.05:
        return "<0.1 %"
    return ">99.9 %" if 99.95 <= percent < 100 else f"{percent:.1f} %".replace(".0 %", " %")


def draw_bar(value: float, *, marks: str, width: int) -> str:
    """A bar for a value from 0 to 1. `marks`: a column from least filled to full."""
    if not value > 0:
        return ""
    steps = max(1, round(min(1.0, value) * width * len(marks)))
    full, rest = divmod(steps, len(marks))
    return marks[-1] * full + (marks[rest - 1] if rest else "")


def first_line(message: str) -> str:
    """The first line of a message."""
    return message.strip().split("\n", 1)[0].rstrip()


def wrapped(text: str, width: int) -> list[str]:
    """A text as lines of at most this width where its words allow it; one that fits stays as is."""
    if len(text) <= width:
        return [text]
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def fit(widths: Sequence[int], *, giving_way: Sequence[int], room: int) -> list[int]:
    """Narrow columns until they fit into the room, first those that give way at 1, then 2, ….

    Columns with 0 are never narrowed, the others never below _CUT_WIDTH_MIN.
    """
    fitted = list(widths)
    for turn in sorted(set(giving_way) - {0}):
        for position, own_turn in enumerate(giving_way):
            if own_turn == turn:
                spare = max(0, fitted[position] - _CUT_WIDTH_MIN)
                fitted[position] -= min(spare, max(0, sum(fitted) - room))
    return fitted


def staying(widths: Sequence[int], *, dropping: Sequence[int], room: int, gap: int) -> list[int]:
    """The positions of the columns that stay: those that drop at 1 go first, until all fit."""
    stay = list(range(len(widths)))
    for turn in sorted(set(dropping) - {0}):
        if sum(widths[position] + gap for position in stay) - gap <= room:
            break
        stay = [position for position in stay if dropping[position] != turn]
    return stay


def break_paths(text: str, width: int) -> str:
    """The text with the words that are wider than a column broken after slashes."""
    return " ".join(_broken(word, width) if len(word) > width else word for word in text.split(" "))


def _broken(path: str, width: int) -> str:
    lines = [""]
    for part in re.findall(r"[^/]*/|[^/]+", path):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
