"""Times several ways of doing the same thing such that their ratio is meaningful.

On a virtual machine, the first access to memory that was free for some seconds can cost thirty
times a copy, and writing a new file pays for it too. Therefore every measured call directly follows
a rehearsal of the same call, whose memory it reuses; touching as much memory in another pattern is
not enough. All contenders take one turn in each round, in an order that rotates and is reversed in
every other round, and a ratio is the median of the ratios within the rounds. A call that other
processes disturbed is repeated while patience lasts. Whether a call counts depends on the processor
time that others used, never on how long it took.

No call's files are deleted until all rounds are done: ext4 skips inodes that were freed in the last
seconds, one by one, so after many deletes each new file takes longer. Only the pages of the files
leave memory, so that the next call finds that memory warm.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 7
PATIENCE_SECONDS = 120.0
DISTURBED = 0.2  # share of all processors used by others above which a call is repeated
TICK_SECONDS = 0.02  # error of the kernel's accounting
LOOK_SECONDS = 0.3  # how long to observe whether other processes are idle


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of doing it. Only `call` is timed; it and `clean` get the result of `prepare`."""

    name: str
    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None
    clean: Callable[[Any], object] = lambda _: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """The elapsed and processor time of one call, and the processor time of other processes."""

    seconds: float
    processor_seconds: float
    others_seconds: float

    @property
    def others_share(self) -> float:
        """The share of all processors that other processes used."""
        return self.others_seconds / (self.seconds * (os.cpu_count() or 1))

    @property
    def is_disturbed(self) -> bool:
        """True when other processes used more than DISTURBED plus the accounting error."""
        allowed = TICK_SECONDS / (self.seconds * (os.cpu_count() or 1)) + DISTURBED
        return self.others_share > allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The measured times of one contender, in the order of the rounds."""

    name: str
    times: tuple[Time, ...]

    @property
    def seconds(self) -> list[float]:
        """The elapsed times."""
        return [time.seconds for time in self.times]

    @property
    def median(self) -> float:
        """The median of the elapsed times."""
        return statistics.median(self.seconds)


@dataclass(slots=True)
class Patience:
    """The seconds that a run may still spend on disturbed calls and on waiting."""

    seconds: float = PATIENCE_SECONDS

    def wait_for_calm(self) -> None:
        """Wait until other processes are idle or patience ends."""
        calm = False
        while self.seconds > 0 and not calm:
            busy = _busy_seconds()
            time.sleep(LOOK_SECONDS)
            self.seconds -= LOOK_SECONDS
            calm = _busy_seconds() - busy <= DISTURBED * LOOK_SECONDS * (os.cpu_count() or 1)


def compete(contenders: Sequence[Contender], *, rounds: int, patience: Patience) -> list[Series]:
    """Time each contender `rounds` times, in turn, and return their series in order."""
    times: dict[str, list[Time]] = {item.name: [] for item in contenders}
    try:
        for number in range(rounds):
            first = number // 2 % len(contenders)
            order = (*contenders[first:], *contenders[:first])
            for contender in reversed(order) if number % 2 else order:
                times[contender.name].append(_measured(contender, patience))
    finally:
        while _written:
            _remove(_written.pop())
    return [Series(name=name, times=tuple(values)) for name, values in times.items()]


def keep(written: Path) -> None:
    """Have a file or folder that a call wrote removed after all rounds, and its pages now."""
    _written.append(written)
    for file in written.rglob("*") if written.is_dir() else [written]:
        if file.is_file() and file.stat().st_nlink == 1:  # others are links to what is used again
            fd = os.open(file, os.O_RDONLY)
            try:
                os.fsync(fd)  # a dirty page stays
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


_written: list[Path] = []


def paired_ratios(ours: Series, theirs: Series) -> list[float]:
    """How many times faster ckptstore was, for each round."""
    return [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]


def _remove(written: Path) -> None:
    if written.is_dir():
        shutil.rmtree(written)
    else:
        written.unlink()


def _measured(contender: Contender, patience: Patience) -> Time:
    """The time of a rehearsed call that was not disturbed, or of the least disturbed one."""
    times: list[Time] = []
    while True:
        start = time.perf_counter()
        _timed(contender)
        times.append(_timed(contender))
        if not times[-1].is_disturbed or patience.seconds <= 0:
            return min(times, key=lambda time: time.others_share)
        patience.seconds -= time.perf_counter() - start
        patience.wait_for_calm()


def _timed(contender: Contender) -> Time:
    """The time of one call."""
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
    """Collect garbage, finish pending writes, and return free memory to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    os.sync()


def _busy_seconds() -> float:
    """Seconds of work of all processors together; 0 where the system does not count them."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, line.split()[1:9])
    ticks = user + nice + system + irq + softirq + stolen
    return ticks / os.sysconf("SC_CLK_TCK")
