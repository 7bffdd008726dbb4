"""Moment: how long ago something was, by clocks of this machine that also count its pauses."""

from __future__ import annotations

import time
from typing import NamedTuple


class Moment(NamedTuple):
    """A moment by the clocks of this machine, for the time since then.

    Attributes:
        awake: Seconds by a clock that is never set; where possible, one that counts suspension.
        wall: Seconds by the clock that shows the time. After a pause of a virtual machine, which
            the other one does not notice, it is set.
    """

    awake: float
    wall: float

    @property
    def seconds_ago(self) -> float:
        """The seconds since then, by the clock that shows more."""
        then = now()
        return max(then.awake - self.awake, then.wall - self.wall)


def now() -> Moment:
    """Return this moment."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)  # of Linux
    return Moment(time.monotonic() if boot is None else time.clock_gettime(boot), time.time())
