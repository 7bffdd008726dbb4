"""The only module that prints: results on stdout; notes, progress and errors on stderr.

Text from a repository may be hostile, so all of it passes through `printable`. On a terminal,
tables are fitted to its width and styled unless NO_COLOR is set; elsewhere they are only aligned.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click

from ckptstore.errors import printable
from ckptstore_cli.text import draw_bar, fit, folded, least_width, progress_of, shorten, wrapped
from ckptstore_cli.verbs import for_this_repo

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

    from ckptstore import Progress

_PROGRESS_SECONDS = 0.1
_PROGRESS_AFTER_SECONDS = 1.0
_BLOCKS = "▏▎▍▌▋▊▉█"
_ARROWS = {"max": "↑", "min": "↓"}
QUIET_KEY = "ckptstore_cli.quiet"  # in the meta of a context
_GAP = 2  # spaces between columns
PATH_WIDTH_MIN = 30  # of paths of arrays, before other columns are left out
_WRAPPED_WIDTH_MIN = 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        title: The heading.
        style: The style on a terminal.
        right: Align to the right, for numbers.
        gives_way: The turn at which the column is narrowed for a terminal; 0 for never.
        folds: Wrap text that does not fit, between words and after slashes, instead of cutting it.
        shortens: Leave out the middle of a path that does not fit instead of its end.
        drops: The turn at which the column is left out for a terminal; 0 for never.
        varies: Leave it out on a terminal if all rows have the same value.
        width_min: The least width. In a column of numbers only the title gets narrower.
        plain_title: The heading where stdout is no terminal, if it is another one.
    """

    title: str
    style: str = ""
    right: bool = False
    gives_way: int = 0
    folds: bool = False
    shortens: bool = False
    drops: int = 0
    varies: bool = False
    width_min: int = 0
    plain_title: str = ""


def now() -> datetime:
    """The current time, for ages."""
    return datetime.now(UTC)


def document(value: object) -> None:
    """Print one JSON document. Numbers that JSON lacks are the strings "nan", "inf" and "-inf"."""
    _progress_line.clear()
    print(json.dumps(finite(value), indent=2, allow_nan=False))


def line(text: str = "") -> None:
    """Print one line; on a terminal, wrapped between words unless it is indented."""
    _progress_line.clear()
    print(_wrapped(text, sys.stdout))


def table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    dimmed: Container[int] = (),
) -> frozenset[str]:
    """Print rows under column titles. `dimmed`: positions of less important rows, from 0.

    A terminal gets no column that is empty in every row.

    Returns:
        The titles of the columns for which a terminal had no room.
    """
    _progress_line.clear()
    is_terminal = _is_terminal(sys.stdout)
    titles = [(not is_terminal and column.plain_title) or column.title for column in columns]
    columns = [
        replace(column, title=printable(title))
        for column, title in zip(columns, titles, strict=True)
    ]
    cells = [[printable(cell) for cell in row] for row in rows]
    if is_terminal:
        return _rich_table(columns, cells, dimmed)
    _plain_table(columns, cells)
    return frozenset()


def footer(text: str) -> None:
    """Print a summary below a table, on a terminal only, if there is text."""
    if text and _is_terminal(sys.stdout):
        line(for_this_repo(text))


def bar(value: float) -> str:
    """A bar of at most 10 columns for a value from 0 to 1, in characters that stdout can encode."""
    return draw_bar(value, marks=_BLOCKS if _can_print(_BLOCKS) else "#", width=10)


def direction(mode: str) -> str:
    """An arrow in the direction of better values, or the mode if stdout cannot encode it."""
    arrow = _ARROWS[mode]
    return arrow if _can_print(arrow) else f"({mode})"


def fields(values: Mapping[str, str | Sequence[str]]) -> None:
    """Print names and values, one per line; further lines of a value are indented.

    On a terminal long lines are wrapped between words.
    """
    _progress_line.clear()
    width = max(map(len, values), default=0)
    room = max(shutil.get_terminal_size().columns - width - _GAP, _WRAPPED_WIDTH_MIN)
    for name, value in values.items():
        lines = [value] if isinstance(value, str) else list(value)
        if _is_terminal(sys.stdout):
            lines = [part for text in lines for part in wrapped(text, room)]
        for position, text in enumerate(lines):
            print(printable(f"{'' if position else name:<{width}}  {text}"))


def graph(rows: Iterable[tuple[str, str]]) -> None:
    """Print rows of a drawing and the text beside it, each on one line."""
    _progress_line.clear()
    lines = [f"{drawing} {printable(text)}".rstrip() for drawing, text in rows]
    if not _is_terminal(sys.stdout):
        print("\n".join(lines))
        return
    console = _console(sys.stdout)
    for text in lines:
        console.print(_text(text), no_wrap=True, overflow="ellipsis")


def note(text: str) -> None:
    """Print a remark to stderr, wrapped as `line` is, unless the command is quiet."""
    if not is_quiet():
        usage(for_this_repo(text))


def error(text: str) -> None:
    """Print an error to stderr."""
    usage(for_this_repo(f"error: {text}"))


def usage(text: str) -> None:
    """Print to stderr how a command is used."""
    _progress_line.clear()
    print(_wrapped(text, sys.stderr), file=sys.stderr)


def is_quiet() -> bool:
    """Return whether this command has --quiet: it prints results and errors, and no remarks."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(QUIET_KEY))


def progress() -> Callable[[Progress], None] | None:
    """A listener that shows progress on stderr; None if stderr is not a terminal."""
    return _progress_line.show if _is_terminal(sys.stderr) and not is_quiet() else None


class _ProgressLine:
    """One line on stderr during operations of more than a second, removed before other output."""

    def __init__(self) -> None:
        self._operation: int | None = None
        self._began = self._next_seconds = 0.0
        self._is_shown = False

    def show(self, told: Progress) -> None:
        """Show the progress of an operation, at most once every _PROGRESS_SECONDS."""
        seconds = time.monotonic()
        if told.operation != self._operation:
            self._operation = told.operation
            self._began = seconds
            self._next_seconds = max(self._next_seconds, seconds + _PROGRESS_AFTER_SECONDS)
        if seconds >= self._next_seconds:
            self._next_seconds = seconds + _PROGRESS_SECONDS
            shown = progress_of(told.kind, told.done, told.total, seconds=seconds - self._began)
            self._write(shown[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        """Remove the line."""
        if self._is_shown:
            self._write("")

    def end(self) -> None:
        """Remove the line; what comes next is another operation, whatever its progress."""
        self.clear()
        self._operation = None

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
        self._is_shown = bool(text)


_progress_line = _ProgressLine()


def prepare() -> None:
    """Make any text printable in any locale: characters that it lacks are escaped."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def flush() -> None:
    """Flush stdout now, so that a failure can still be reported; progress ends here."""
    _progress_line.end()
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon() -> None:
    """Discard buffered output whose reader has closed the pipe."""
    with suppress(OSError, ValueError):  # without a descriptor nothing is flushed at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finite(value: Any) -> Any:
    """Return a value with the numbers that JSON lacks as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def ask_before_deleting(
    question: str, *, is_answered: bool, show: Callable[[], None] | None = None
) -> None:
    """Ask a person on a terminal, and end with exit code 1 if the answer is not yes.

    is_answered: do not ask. show: prints the plan before the question.
    """
    if is_answered or not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        return
    if show is not None:
        click.get_current_context().meta[QUIET_KEY] = False  # nobody decides without the plan
        show()
    _progress_line.clear()
    if not click.confirm(question, err=True):
        note("Nothing was deleted.")
        raise click.exceptions.Exit(1)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _wrapped(text: str, stream: TextIO | None) -> str:
    """The text of a line; indented ones stay whole, as they hold commands to be copied."""
    shown = printable(text)
    if text.startswith(" ") or not _is_terminal(stream):
        return shown
    return "\n".join(wrapped(shown, shutil.get_terminal_size().columns))


def _can_print(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")  # there may be no stdout
    except UnicodeEncodeError:
        return False
    return True


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, color_system=None if os.environ.get("NO_COLOR") else "auto")


def _plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    lines = [[column.title for column in columns], *rows]
    widths = [max(len(row[position]) for row in lines) for position in range(len(columns))]
    for row in lines:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, column, width in zip(row, columns, widths, strict=True)
        )
        print("  ".join(padded).rstrip())


def _rich_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], dimmed: Container[int]
) -> frozenset[str]:
    from rich.cells import cell_len
    from rich.table import Table

    console = _console(sys.stdout)
    columns, rows = _telling(columns, rows)
    fitted = fit(
        [
            max(cell_len(text) for text in (column.title, *(row[at] for row in rows)))
            for at, column in enumerate(columns)
        ],
        least=[
            max(column.width_min, *(cell_len(row[at]) for row in rows))
            if column.right and rows
            else max(column.width_min, least_width((row[at] for row in rows), folds=column.folds))
            for at, column in enumerate(columns)
        ],
        giving_way=[column.gives_way for column in columns],
        dropping=[column.drops for column in columns],
        room=console.width,
        gap=_GAP,
    )
    dropped = frozenset(column.title for at, column in enumerate(columns) if at not in fitted)
    columns, rows = _chosen(columns, rows, list(fitted))
    widths = list(fitted.values())
    # wrap lines rather than cut ids
    console.width = max(console.width, sum(widths) + _GAP * (len(widths) - 1))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column, width in zip(columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        title = _text(shorten(column.title, width))
        table.add_column(title, style=column.style, justify=justify, width=width)
    for number, row in enumerate(rows):
        style = "dim" if number in dimmed else None
        cells = (
            _text(_fitting(cell, column, width))
            for cell, column, width in zip(row, columns, widths, strict=True)
        )
        table.add_row(*cells, style=style)
    console.print(table)
    return dropped


def _fitting(cell: str, column: Column, width: int) -> str:
    """A cell, shortened as its column says if it is too long; by default its end is cut off."""
    if column.folds:
        return folded(cell, width)
    return shorten(cell, width) if column.shortens else cell


def _telling(
    columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> tuple[list[Column], list[list[str]]]:
    """Leave out columns without information: no value in any row, or the same in all."""
    filled = [
        at
        for at, column in enumerate(columns)
        if not rows
        or (any(row[at] for row in rows) and not (column.varies and len({r[at] for r in rows}) < 2))
    ]
    return _chosen(columns, rows, filled)


def _chosen(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], positions: Sequence[int]
) -> tuple[list[Column], list[list[str]]]:
    """The columns at some positions."""
    return [columns[at] for at in positions], [[row[at] for at in positions] for row in rows]


def _text(text: str) -> Text:
    """Text without markup, shown literally; lines that are too long are cut off."""
    from rich.text import Text

    return Text(text, no_wrap=True, overflow="ellipsis")
