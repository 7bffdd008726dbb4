"""Values as text for people: sizes, ages, metrics, names. Pure functions."""

from __future__ import annotations

import math
import re
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence
    from datetime import datetime

    from ckptstore import Digest

_SIZE_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
_AGE_UNITS = (("day", 86400), ("h", 3600), ("min", 60))
_AGE_SECONDS_MAX = 30 * 86400  # beyond this a date is more useful
_AHEAD_SECONDS_MAX = 60  # clocks differ; further in the future, the date is shown
NAMES_SHOWN = 12
CUT_WIDTH_MIN = 12
FOLDED_WIDTH_MIN = 24  # longer names are broken
_NAME = r"[^/ ]*/|[^/ ]+"  # in a path
_PART = r"[^/.]*[/.]|[^/.]+"  # of a path, with the separator behind it


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


def progress_of(kind: str, done: int, total: int, *, seconds: float) -> str:
    """The progress of an operation: "Read 1.2 GB of 3.4 GB (35 %), 512.0 MB/s, 5 s left".

    Args:
        kind: A verb such as "read"; "deleted" counts objects, others bytes.
        done: The bytes or objects so far.
        total: The bytes or objects in all; 0 if unknown.
        seconds: The time so far.
    """
    unit = (lambda number: f"{number:,}") if kind == "deleted" else size
    shown = f"{kind.capitalize()} {unit(done)}"
    if total:
        shown += f" of {unit(total)} ({100 * done // total} %)"
    if kind == "deleted":
        shown += " objects"
    if seconds <= 0 or not done:
        return shown
    rate = done / seconds
    shown += f", {unit(round(rate))}/s"
    return f"{shown}, {_clock((total - done) / rate)} left" if total > done else shown


def _clock(seconds: float) -> str:
    """A time to wait: "5 s", "2:05 min", "3:20 h"."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours}:{left:02} h" if hours else f"{minutes}:{rest:02} min"


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 array", "1,204 arrays", "2 branches"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def arrays(number: int, size_bytes: int) -> str:
    """The number of arrays and their size: "12 arrays, 45.2 MB"."""
    return f"{count(number, 'array')}, {size(size_bytes)}"


def number(value: float) -> str:
    """A number: ints in full, floats to 6 significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def metric(value: float) -> str:
    """A metric: ints in full, floats to 4 significant digits and 5 or more before the point."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def metrics(values: Mapping[str, float]) -> str:
    """All metrics on one line: "val_loss=0.31 accuracy=0.92"."""
    return " ".join(f"{name}={metric(value)}" for name, value in values.items())


def step(value: int | None) -> str:
    """A step, or "-" for a checkpoint without one."""
    return "-" if value is None else str(value)


def checkpoint(id: Digest, step: int | None) -> str:
    """A checkpoint in a sentence: "4f3a12c4, step 100"."""
    return id.short if step is None else f"{id.short}, step {step}"


def some(names: Sequence[str]) -> str:
    """Names in a sentence, of many the first: "a.json, b.json and 3 more"."""
    more = len(names) - NAMES_SHOWN
    return f"{', '.join(names[:NAMES_SHOWN])}{f' and {more} more' if more > 0 else ''}"


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


def fit(
    widths: Sequence[int],
    *,
    least: Sequence[int],
    giving_way: Sequence[int],
    dropping: Sequence[int],
    room: int,
    gap: int,
) -> dict[int, int]:
    """Fit columns into the room, and return the widths of those that stay, by position.

    Turn by turn, until all fit: columns that drop at 1 are left out and those that give way at 1
    narrowed, then those with 2, …. No column is narrowed below its least width, and those with 0
    stay as they are.
    """
    fitted = dict(enumerate(widths))
    for turn in range(1 + max((*giving_way, *dropping), default=0)):
        stay = {at: width for at, width in enumerate(widths) if not 0 < dropping[at] <= turn}
        left = room - gap * (len(stay) - 1)
        narrowed = [at for at in stay if 0 < giving_way[at] <= turn]
        fitted = dict(stay)
        for at in sorted(narrowed, key=giving_way.__getitem__):
            spare = max(0, fitted[at] - least[at])
            fitted[at] -= min(spare, max(0, sum(fitted.values()) - left))
        if sum(fitted.values()) <= left:
            break
    return fitted


def least_width(cells: Iterable[str], *, folds: bool) -> int:
    """The least width of a column with these cells: of the longest name in it if it folds."""
    names = (len(name) for cell in cells for name in re.findall(_NAME, cell)) if folds else ()
    return max(CUT_WIDTH_MIN, min(FOLDED_WIDTH_MIN, max(names, default=0)))


def shorten(path: str, width: int) -> str:
    """A path shortened to a width by leaving out its middle: "model/…11.attention.query.weight".

    Numbers, the first and the last parts stay longest, as they tell similar paths apart.
    """
    if len(path) <= width:
        return path
    before, arrow, after = path.partition(" -> ")
    if arrow and width > 2 * len(arrow):
        half = (width - len(arrow)) // 2
        after = shorten(after, max(half, width - len(arrow) - len(before)))
        return f"{shorten(before, width - len(arrow) - len(after))}{arrow}{after}"
    parts = re.findall(_PART, path)
    left_out: set[int] = set()
    for at in sorted(range(1, len(parts) - 1), key=lambda at: parts[at][:-1].isdecimal()):
        left_out.add(at)
        short = _without(parts, left_out)
        if len(short) <= width:
            return short
    kept = max(width - 1, 0)
    head = kept // 3
    return f"{path[:head]}…{path[len(path) - kept + head :]}"[:width]


def _without(parts: Sequence[str], left_out: Container[int]) -> str:
    """A path with an ellipsis for each run of omitted parts."""
    marked = ("" if at in left_out else part for at, part in enumerate(parts))
    return "".join(part or ("" if at - 1 in left_out else "…") for at, part in enumerate(marked))


def folded(text: str, width: int) -> str:
    """The text in lines of at most this width, broken between words and after slashes only."""
    lines = [""]
    for word in text.split(" "):
        parts = re.findall(_NAME, word) if len(word) > width else [word]
        for place, part in enumerate(parts):
            gap = " " if place == 0 and lines[-1] else ""
            if lines[-1] and len(lines[-1]) + len(gap) + len(part) > width:
                lines.append("")
                gap = ""
            lines[-1] += gap + shorten(part, width)
    return "\n".join(lines)
