"""Timing several ways of doing the same thing so that their ratio means something.

On a virtual machine the first touch of memory that lay free for some seconds can cost thirty times
a copy, and writing a new file pays it too. So every counted call comes right after a rehearsal of
the same call, whose memory it finds again; touching as much memory in another pattern does not do.
All contenders take one turn in each round, in an order that rotates, and a ratio is the median of
the ratios inside the rounds. A call that others disturbed is taken again as long as there is
patience; whether it counts depends on what they used of the processors, never on how long it took.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 7
PATIENCE_SECONDS = 120.0
DISTURBED = 0.2  # others' share of all processors during a call that is taken again
TICK_SECONDS = 0.02  # what the kernel's accounting may be wrong by
LOOK_SECONDS = 0.3  # how long to look whether others rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of doing it. Only `call` is timed; it and `clean` get what `prepare` returned."""

    name: str
    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    clean: Callable[[Any], object] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """What one call took: on the clock, of the processors, and what others took meanwhile."""

    seconds: float
    processor_seconds: float
    others_seconds: float

    @property
    def others_share(self) -> float:
        """The part of all processors that others used."""
        return self.others_seconds / (self.seconds * (os.cpu_count() or 1))

    @property
    def is_disturbed(self) -> bool:
        """True when others used more than the clock's error and a little."""
        allowed = TICK_SECONDS / (self.seconds * (os.cpu_count() or 1)) + DISTURBED
        return self.others_share > allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The counted times of one contender, in the order of the rounds."""

    name: str
    times: tuple[Time, ...]

    @property
    def seconds(self) -> list[float]:
        """The times on the clock."""
        return [time.seconds for time in self.times]

    @property
    def median(self) -> float:
        """The median of the times on the clock."""
        return statistics.median(self.seconds)


@dataclass(slots=True)
class Patience:
    """How many seconds a run may still spend on calls that others disturbed, and on waiting."""

    seconds: float = PATIENCE_SECONDS

    def wait_for_calm(self) -> None:
        """Wait until others rest, or patience ends."""
        calm = False
        while self.seconds > 0 and not calm:
            busy = _busy_seconds()
            time.sleep(LOOK_SECONDS)
            self.seconds -= LOOK_SECONDS
            calm = _busy_seconds() - busy <= DISTURBED * LOOK_SECONDS * (os.cpu_count() or 1)


def compete(contenders: Sequence[Contender], *, rounds: int, patience: Patience) -> list[Series]:
    """Time all contenders `rounds` times each, in turn; a series for each, in their order."""
    times: dict[str, list[Time]] = {item.name: [] for item in contenders}
    for number in range(rounds):
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            times[contender.name].append(_counted(contender, patience))
    return [Series(name=name, times=tuple(taken)) for name, taken in times.items()]


def paired_ratios(ours: Series, theirs: Series) -> list[float]:
    """How many times faster we were, round by round."""
    return [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]


def _counted(contender: Contender, patience: Patience) -> Time:
    """A rehearsed call that nobody disturbed, or the least disturbed of those that were taken."""
    taken: list[Time] = []
    while True:
        start = time.perf_counter()
        _timed(contender)
        taken.append(_timed(contender))
        if not taken[-1].is_disturbed or patience.seconds <= 0:
            return min(taken, key=lambda time: time.others_share)
        patience.seconds -= time.perf_counter() - start
        patience.wait_for_calm()


def _timed(contender: Contender) -> Time:
    """One call."""
    prepared = contender.prepare()
    _settle()
    busy, processor, start = _busy_seconds(), time.process_time(), time.perf_counter()
    result = contender.call(prepared)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    busy = _busy_seconds() - busy
    del result
    contender.clean(prepared)
    return Time(
        seconds=seconds, processor_seconds=processor, others_seconds=max(0.0, busy - processor)
    )


def _settle() -> None:
    """Leave no garbage, no writes under way, and no free memory with the C library."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    os.sync()


def _busy_seconds() -> float:
    """Seconds that all processors together have worked, for whomever; 0 where nobody counts them."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
