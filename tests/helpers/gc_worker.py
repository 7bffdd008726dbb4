"""A process of the stress test: `python gc_worker.py ROLE URL STOP SEED HOURS`.

Its clock is wrong by HOURS.

commit: commits states from a small pool to a branch of its own, and prints the id of each. read:
checks out heads and compares them. gc: collects repeatedly. Readers and gc run until the file STOP
exists.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import ckptstore
from ckptstore import ExpiredError
from ckptstore.retention import MaxToKeep

POOL = 6
COMMITS = 60


def state(number: int) -> dict[str, Any]:
    """States of neighbouring numbers share an array."""
    return {
        "own": np.full(9000, number),
        "shared": np.full(9000, number // 2),
        "small": np.full(5, number),
        "number": number,
    }


def is_right(found: Any) -> bool:
    """Whether a state is one of the pool, bit for bit."""
    expected = state(found["number"])
    return all(np.array_equal(found[key], expected[key]) for key in expected)


def main() -> None:
    role, url, stop, seed, hours = sys.argv[1:]
    clock = lambda: time.time() + 3600 * float(hours)  # noqa: E731
    repo = ckptstore.open(url, clock=clock)
    rng = random.Random(int(seed))
    done = 0
    if role == "commit":
        for step in range(COMMITS):
            number = rng.randrange(POOL)
            made = repo.commit(state(number), branch=f"branch-{seed}", step=step)
            print(made.id, number, flush=True)
    while role != "commit" and not Path(stop).exists():
        if role == "gc":
            done += len(repo.gc(MaxToKeep(1), grace=0).expired)
        else:
            for name in repo.ref_names()[0]:
                try:
                    assert is_right(repo.checkout(name))
                    done += 1
                except ExpiredError:  # the branch moved on, and what it left is gone
                    continue
    if role == "gc":
        done += len(repo.gc(MaxToKeep(1), grace=0).expired)  # after the last commit
    if role != "commit":
        print(done)


if __name__ == "__main__":
    main()
