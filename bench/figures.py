"""A figure of the table: what was measured, its requirement, and whether that is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import Series, paired_ratios

Cells = tuple[str, ...]
HEADINGS: Cells = (
    "what",
    "ckptstore",
    "min-max",
    "against",
    "median",
    "min-max",
    "ratio",
    "must",
    "aim",
    "verdict",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The time of ckptstore against a peer's.

    Attributes:
        what: What is measured.
        ours: The times of ckptstore.
        theirs: The times of the peer.
        must: The ratio, times faster, that is required.
        aim: The ratio that is the goal.
        spare_seconds: What ckptstore may take besides: not counted where `must` and `aim` are
            judged.
    """

    what: str
    ours: Series
    theirs: Series
    must: float | None = None
    aim: float | None = None
    spare_seconds: float = 0.0

    @property
    def ratio(self) -> float:
        """The median of the paired ratios; above 1, ckptstore was faster."""
        return statistics.median(paired_ratios(self.ours, self.theirs))

    @property
    def verdict(self) -> str:
        """Whether the requirement and the goal are met."""
        ratio = statistics.median(
            their / max(our - self.spare_seconds, 1e-9)
            for our, their in zip(self.ours.seconds, self.theirs.seconds, strict=True)
        )
        return _verdict(
            must=None if self.must is None else ratio >= self.must,
            aim=None if self.aim is None else ratio >= self.aim,
        )

    def cells(self) -> Cells:
        """A row of the table."""
        return (
            self.what,
            *_times(self.ours),
            self.theirs.name,
            *_times(self.theirs),
            f"{self.ratio:.2f}",
            _factor(self.must, self.spare_seconds),
            _factor(self.aim, self.spare_seconds),
            self.verdict,
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers of the row."""
        return {
            "what": self.what,
            "against": self.theirs.name,
            "ratio": round(self.ratio, 4),
            "must": self.must,
            "aim": self.aim,
            "spare_seconds": self.spare_seconds,
            "verdict": self.verdict,
            "ours": _series(self.ours),
            "theirs": _series(self.theirs),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A figure that must not exceed a bound; the largest of its values counts."""

    what: str
    values: tuple[float, ...]
    unit: str
    must: float
    against: str = ""
    theirs: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the bound is met."""
        return _verdict(must=max(self.values) <= self.must, aim=None)

    def cells(self) -> Cells:
        """A row of the table."""
        low, high = min(self.values), max(self.values)
        return (
            self.what,
            f"{statistics.median(self.values):.1f} {self.unit}",
            f"{low:.1f}-{high:.1f}" if len(self.values) > 1 else "",
            self.against,
            "" if self.theirs is None else f"{self.theirs:.1f} {self.unit}",
            "",
            "",
            f"{self.must:g} {self.unit} at most",
            "",
            self.verdict,
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers of the row."""
        return {
            "what": self.what,
            "values": [round(value, 4) for value in self.values],
            "unit": self.unit,
            "must": self.must,
            "verdict": self.verdict,
            "against": self.against,
            "theirs": self.theirs,
        }


Figure = Comparison | Bound


def comparisons(
    what: str,
    series: Sequence[Series],
    *,
    must: dict[str, float] | None = None,
    aim: dict[str, float] | None = None,
    spare_seconds: dict[str, float] | None = None,
) -> list[Comparison]:
    """The first series against each of the others. The dicts are by the other's name."""
    ours, *others = series
    return [
        Comparison(
            what=what,
            ours=ours,
            theirs=theirs,
            must=(must or {}).get(theirs.name),
            aim=(aim or {}).get(theirs.name),
            spare_seconds=(spare_seconds or {}).get(theirs.name, 0.0),
        )
        for theirs in others
    ]


def _verdict(*, must: bool | None, aim: bool | None) -> str:
    if must is False:
        return "short"
    if aim is None:
        return "" if must is None else "met"
    if aim:
        return "aim met"
    return "aim short" if must is None else "met"


def _times(series: Series) -> tuple[str, str]:
    return f"{series.median:.3f} s", f"{min(series.seconds):.3f}-{max(series.seconds):.3f}"


def _factor(value: float | None, spare_seconds: float) -> str:
    spare = f" + {1e3 * spare_seconds:g} ms" if spare_seconds else ""
    return "" if value is None else f"{value:.2g}x{spare}"


def _series(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "median_seconds": round(series.median, 6),
        "seconds": [round(value, 6) for value in series.seconds],
        "processor_seconds": [round(time.processor_seconds, 6) for time in series.times],
        "others_share": [round(time.others_share, 3) for time in series.times],
    }
