"""Timing several ways of doing the same thing so that their ratio means something.

On a virtual machine the first touch of memory that lay free for some seconds can cost thirty times
a copy, and writing a new file pays it too. So every counted call comes right after a rehearsal of
the same call, whose memory it finds again; touching as much memory in another pattern does not do.
All contenders take one turn in each round, in an order that rotates, and a ratio is the median of
the ratios inside the rounds, because neighbours come and go.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROUNDS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of doing it. Only `call` is timed; it and `clean` get what `prepare` returned."""

    name: str
    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    clean: Callable[[Any], object] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The counted times of one contender in seconds, in the order of the rounds."""

    name: str
    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the times."""
        return statistics.median(self.seconds)


def compete(contenders: Sequence[Contender], *, rounds: int) -> list[Series]:
    """Time all contenders `rounds` times each, in turn; a series for each, in their order."""
    times: dict[str, list[tuple[float, float]]] = {item.name: [] for item in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            _timed(contender)
            times[contender.name].append(_timed(contender))
    return [
        Series(
            name=name,
            seconds=tuple(wall for wall, _ in taken),
            processor_seconds=tuple(processor for _, processor in taken),
        )
        for name, taken in times.items()
    ]


def paired_ratios(ours: Series, theirs: Series) -> list[float]:
    """How many times faster we were, round by round."""
    return [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]


def _timed(contender: Contender) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    prepared = contender.prepare()
    _settle()
    processor, start = time.process_time(), time.perf_counter()
    result = contender.call(prepared)
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    del result
    contender.clean(prepared)
    return wall, processor


def _settle() -> None:
    """Leave no garbage, no writes under way, and no free memory with the C library."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    os.sync()
