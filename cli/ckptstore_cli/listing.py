"""Tables of checkpoints: a column for each metric, in which the best of each branch is marked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from ckptstore.errors import InvalidInputError
from ckptstore.metric_names import is_timing, mode_of, parse_choice
from ckptstore_cli import output, text
from ckptstore_cli.documents import NO_REFS
from ckptstore_cli.output import Column

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from ckptstore import Checkpoint
    from ckptstore_cli.documents import Refs

METRIC_COLUMNS_MAX = 50
TITLE_WIDTH = 10  # longer names of metrics give way first
_JUDGED = re.compile(r"(?i:(?:^|[^a-z])(?:val|valid|validation|eval|test|dev)(?:[^a-z]|$))")
BEST = "*"


class Row(Protocol):
    """A checkpoint, or its manifest."""

    @property
    def metrics(self) -> Mapping[str, int | float]:
        """Numbers by name."""

    @property
    def branch(self) -> str | None:
        """The branch of the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """The metrics of some checkpoints, newest first.

    Attributes:
        names: The metrics with a column, in order.
        left_out: The number of metrics without a column.
        modes: "min" or "max", by metric; only if the direction is known.
        best: The positions of the best checkpoints of each branch, by metric.
    """

    names: tuple[str, ...]
    left_out: int
    modes: Mapping[str, str]
    best: Mapping[str, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row], *, first: Mapping[str, str] | None = None) -> Metrics:
        """The metrics of these checkpoints. `first`: the modes of metrics that come first."""
        names = sorted({name for row in rows for name in row.metrics})
        modes = _modes(name for name in names if not is_timing(name)) | dict(first or {})
        names.sort(key=lambda name: (name not in (first or {}), *_place(name, modes)))
        shown = names[:METRIC_COLUMNS_MAX]
        best = {name: _best(rows, name, modes[name]) for name in shown if name in modes}
        return cls(
            names=tuple(shown),
            left_out=len(names) - len(shown),
            modes=modes,
            best={name: positions for name, positions in best.items() if positions},
        )

    def columns(self, *, drops: int) -> list[Column]:
        """A column for each metric. The last is left out at turn `drops`, the first stays."""
        count = len(self.names)
        return [
            Column(
                name,
                plain_title=name + output.direction(self.modes[name]) if name in self.best else "",
                right=True,
                gives_way=2,
                width_min=min(len(name), TITLE_WIDTH),
                drops=drops + count - 1 - place if place else 0,
            )
            for place, name in enumerate(self.names)
        ]

    def cells(self, position: int, row: Row) -> list[str]:
        """The numbers of the checkpoint at a position."""
        return [self._cell(name, position, row.metrics.get(name)) for name in self.names]

    def explain(self, dropped: Container[str]) -> None:
        """Print on a terminal which metrics a table leaves out, and the meaning of its marks."""
        hidden = [name for name in self.names if name in dropped]
        if hidden or self.left_out:
            more = [*hidden, *([f"{self.left_out:,} more"] if self.left_out else [])]
            output.footer(f"Not shown: {', '.join(more)}. log --long has all metrics.")
        marks = [f"{name} ({self.modes[name]})" for name in self.best if name not in hidden]
        if marks:
            output.footer(f"{BEST} best of its branch among those listed: {', '.join(marks)}")

    def _cell(self, name: str, position: int, value: float | None) -> str:
        number = "" if value is None else text.metric(value)
        if name not in self.best:
            return number
        return number + (BEST if position in self.best[name] else " ")


def print_checkpoints(
    checkpoints: Sequence[Checkpoint],
    refs: Mapping[str, Refs],
    *,
    first: Mapping[str, str] | None = None,
    are_marked: bool = True,
) -> None:
    """Print a table of checkpoints.

    Args:
        checkpoints: The checkpoints in the order of the rows.
        refs: The branches and tags of each.
        first: The metric by which they are sorted, with its mode.
        are_marked: Whether the best of each branch are marked.
    """
    metrics = Metrics.of(checkpoints, first=first)
    metrics = metrics if are_marked else replace(metrics, best={})
    expired = {position for position, c in enumerate(checkpoints) if c.expired}
    has_branches = len({c.branch for c in checkpoints}) > 1
    columns = (
        Column("id", style="yellow"),
        Column("branch", style="green", gives_way=2, shortens=True, varies=True),
        Column("refs", style="bold green", gives_way=3, folds=True),
        Column("step", right=True),
        *metrics.columns(drops=6),
        Column("age", style="dim", drops=5),
        Column("new", right=True, drops=0 if expired else 3),
        Column("message", gives_way=1, drops=4),
    )
    rows = [
        (
            c.id.short,
            c.branch or "",
            refs.get(c.id, NO_REFS).beside(c.branch if has_branches else None),
            text.step(c.step),
            *metrics.cells(position, c),
            text.age(c.created, output.now()).removesuffix(" ago"),
            "expired" if c.expired else text.size(c.new_bytes),
            text.first_line(c.message),
        )
        for position, c in enumerate(checkpoints)
    ]
    metrics.explain(output.table(columns, rows, dimmed=expired))
    for name, mode in (first or {}).items():
        output.footer(f"Best first: {name} ({mode})")


def direction(sort: str | None) -> dict[str, str]:
    """The metric that sorts the checkpoints, with its direction; empty for a step."""
    choice = None if sort in (None, "step") else parse_choice(sort)
    if choice is None:
        return {}
    name, mode, _ = choice
    return _modes([name]) if mode == "auto" else {name: mode}


def _place(name: str, modes: Container[str]) -> tuple[bool, bool]:
    """Sort metrics: those with a direction first, and among them those of a validation."""
    return name not in modes, not _JUDGED.search(name)


def _modes(names: Iterable[str]) -> dict[str, str]:
    """The directions of the metrics whose names tell them."""
    modes: dict[str, str] = {}
    for name in names:
        try:
            modes[name] = mode_of(name)
        except InvalidInputError:
            continue
    return modes


def _best(rows: Sequence[Row], name: str, mode: str) -> frozenset[int]:
    """The newest best checkpoint of each branch with two or more finite numbers."""
    sign = -1 if mode == "max" else 1
    by_branch: dict[str | None, list[tuple[float, int]]] = {}
    for position, row in enumerate(rows):
        value = row.metrics.get(name, math.nan)
        if math.isfinite(value):
            by_branch.setdefault(row.branch, []).append((sign * value, position))
    return frozenset(min(values)[1] for values in by_branch.values() if len(values) > 1)
