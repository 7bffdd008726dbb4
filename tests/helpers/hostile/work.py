"""Pace: how much longer this machine takes at the moment than the one on which the bounds were set.

A second of processor time is no fixed amount of work: where neighbours share caches and memory, the same call may take three times
as many of them. So a call that takes longer than it may is held against a piece of work that is done right after it.
"""

from __future__ import annotations

import json
import resource

from blake3 import blake3

WORK_SECONDS = 0.075  # on a quiet virtual machine of 2 cores: the least of 180 tries
REPEATS = 3
_TEXT = json.dumps(
    [[f"path/{number}", number, [1, 2, 3], {"a": number}] for number in range(12_000)]
)


def cpu_seconds() -> float:
    """Processor time of this process until now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def pace() -> float:
    """How many times as long the same work takes here and now; 1 at least, so that no bound ever becomes stricter."""
    began = cpu_seconds()
    for _ in range(REPEATS):
        _work()
    return max(1.0, (cpu_seconds() - began) / WORK_SECONDS)


def _work() -> int:
    """Some of what reading a repository takes: JSON, small objects, sorting, hashing, and memory that is new."""
    found = {item[0]: (item[1], tuple(item[2])) for item in json.loads(_TEXT)}
    blake3(_TEXT.encode()).digest()
    return sum(map(len, sorted(found))) + len(bytearray(4 << 20))
