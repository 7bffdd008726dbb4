"""Commits through sessions while other processes do:
`python session_worker.py URL BRANCH FIRST LAST`.

Prints "READY" and waits for a line. For each number it then writes an array of its own and one that
all workers share, and prints "ACK n id" or "CONFLICT n -".
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import zarr

import ckptstore
from ckptstore import ConflictError
from tests.helpers.crash.victim import say

CHUNK = 10_000


def common(n: int) -> np.ndarray:
    """Chunks of 80,000 bytes, most of them equal for all numbers and processes."""
    return np.repeat(np.arange(n % 3, n % 3 + 4, dtype=np.float64), CHUNK)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("branch")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    options = parser.parse_args()
    repo = ckptstore.open(options.url)
    print("READY", flush=True)
    sys.stdin.readline()
    for n in range(options.first, options.last + 1):
        with repo.session(options.branch) as session:
            try:
                made = commit(session, n)
            except ConflictError:
                say(f"CONFLICT {n} -")
            else:
                say(f"ACK {n} {made.id}")


def commit(session: ckptstore.zarr.Session, n: int) -> ckptstore.Checkpoint:
    group = zarr.open_group(session.store, mode="a")
    for name, data in {"common": common(n), f"own/{n}": np.arange(n)}.items():
        group.create_array(name, data=data, chunks=(CHUNK,), compressors=None, overwrite=True)
    made: ckptstore.Checkpoint = session.commit(step=n)
    return made


if __name__ == "__main__":
    main()
