"""The peak extra memory of a call, measured in a process of its own.

`python -m bench.memory CALL STORE STATE...` prints the bytes: the highest resident size during the
call minus the resident size before it. Linux only: it resets the kernel's high-water mark, so no
peak is missed between samples.
"""

from __future__ import annotations

import ctypes
import gc
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESET_PEAK = "5"  # written to clear_refs, see proc(5)
SUPPORTED = sys.platform == "linux"


def peak_bytes(call: str, store: Path, *states: Path) -> int:
    """The extra bytes of "commit", "checkout into" or "torch.save" in a fresh process."""
    command = [sys.executable, "-m", "bench.memory", call, str(store), *map(str, states)]
    root = Path(__file__).parents[1]
    finished = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return int(finished.stdout)


def extra_bytes(call: Callable[[], object]) -> int:
    """By how many bytes the resident size of this process rises during a call."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    before = _status_bytes("VmRSS")
    result = call()
    extra = _status_bytes("VmHWM") - before
    del result
    return extra


def peak_of_process() -> int:
    """The highest resident size of this process so far, in bytes."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match, name
    return int(match[1]) << 10


def _call(name: str, store: str, state: dict[str, Any]) -> Callable[[], object]:
    """The call to measure. A call with a small state has imported modules and filled caches."""
    import torch

    import ckptstore

    small = {"weight": torch.zeros(1 << 18)}
    if name == "torch.save":
        torch.save(small, store)
        return lambda: torch.save(state, store)
    repository = ckptstore.open(store)
    repository.commit(small, branch="small")
    repository.checkout("small", into=small)
    if name == "commit":
        return lambda: repository.commit(state)
    return lambda: repository.checkout("main", into=state)


def main(name: str, store: str, *paths: str) -> None:
    """Measure one call with the given states as one nested state, and print the bytes."""
    import torch

    states = {str(number): torch.load(path) for number, path in enumerate(paths)}
    state = states if len(states) > 1 else states["0"]
    print(extra_bytes(_call(name, store, state)))


if __name__ == "__main__":
    main(*sys.argv[1:])
