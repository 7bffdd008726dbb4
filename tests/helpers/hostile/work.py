"""Counts the work of a call: steps, reads, and the memory that it writes to.

No bound is a time: how long a call takes depends on the machine and its neighbours, how much it
does depends on the call alone. A step is a line of Python that runs, or a Python function that is
called or returns, in any thread. What a C function does inside (parsing JSON, matching a pattern,
copying) is not counted as steps; what it reads and the memory it needs are.

CPython 3.11 maps its stack of frames in pieces of 16 KiB, and unmaps a piece once it is empty. A
call that begins at the end of a piece maps the next one, for its own frame or for the tracer's, so
a call may touch one page more for each of its steps. How often depends only on how deep the caller
is, so these pages are allowed on top.
"""

from __future__ import annotations

import resource
import sys
import threading
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.helpers.peak import begin_peak, status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

STEPS_MAX = 20_000_000  # twice that many ends the call
READS_MAX = 5_000
READ_BYTES_MAX = 128 << 20
TOUCHED_BYTES_MAX = 512 << 20
PEAK_BYTES_MAX = 256 << 20

# Every large block is memory that the kernel maps anew: touching it counts, however often it is
# freed between.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": str(128 << 10)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a call did: steps, calls that read and their bytes, bytes of memory mapped and peak."""

    steps: int = 0
    reads: int = 0
    read_bytes: int = 0
    touched_bytes: int = 0
    peak_bytes: int = 0

    def excess(self, allowed: Work) -> list[str]:
        """The bounds that are exceeded, each as text."""
        stack_bytes = self.steps * resource.getpagesize()
        allowed = replace(allowed, touched_bytes=allowed.touched_bytes + stack_bytes)
        return [
            f"{getattr(self, name):,} {name.replace('_', ' ')}, more than {most:,}"
            for name in self.__slots__
            if getattr(self, name) > (most := getattr(allowed, name))
        ]


def allowed(stored_bytes: int = 0) -> Work:
    """The bounds of a call; those of one that reads all that is stored grow with that."""
    return Work(
        steps=STEPS_MAX + stored_bytes,
        reads=READS_MAX,
        read_bytes=READ_BYTES_MAX + 2 * stored_bytes,
        touched_bytes=TOUCHED_BYTES_MAX,
        peak_bytes=PEAK_BYTES_MAX,
    )


class Meter:
    """Measures calls in turn; `too_many` is called when one takes twice its steps."""

    def __init__(self, too_many: Callable[[], object]) -> None:
        self._too_many = too_many
        self._counter = count()
        self._limit = sys.maxsize
        threading.settrace(self._trace)  # threads that start from now on

    def begin(self, most: Work) -> None:
        """Start to measure."""
        self._memory = begin_peak()
        self._before = self._usage()
        self._limit = 2 * most.steps
        self._counter = count()
        sys.settrace(self._trace)

    def end(self) -> Work:
        """Stop, and return what was done since `begin`."""
        sys.settrace(None)
        steps, self._limit = next(self._counter), sys.maxsize
        reads, read_bytes, pages = (
            now - then for now, then in zip(self._usage(), self._before, strict=True)
        )
        return Work(
            steps=steps,
            reads=reads,
            read_bytes=read_bytes,
            touched_bytes=pages * resource.getpagesize(),
            peak_bytes=max(0, status("VmHWM") - self._memory),
        )

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if next(self._counter) > self._limit:
            self._too_many()
        return self._trace

    def _usage(self) -> tuple[int, int, int]:
        lines = Path("/proc/self/io").read_text().splitlines()
        fields = dict(line.split(": ") for line in lines)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return int(fields["syscr"]), int(fields["rchar"]), faults
