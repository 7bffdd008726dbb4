"""How much memory a call takes beyond what there was, by the kernel's own mark."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def extra_mib(call: Callable[[], object]) -> int:
    """How far the resident size of this process rises during a call."""
    start = begin_peak()
    call()
    return (status("VmHWM") - start) // MIB


def begin_peak() -> int:
    """Let the peak, VmHWM, begin at what is resident now, and return that in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else the call reuses memory that was freed before it
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
