"""Commits while other processes do: `python commit_worker.py URL FIRST LAST`.

Prints "READY", waits for a line, then commits state(FIRST) to state(LAST) to main and prints "ACK n
id" or "CONFLICT n -" for each.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import ckptstore
from ckptstore import ConflictError
from tests.helpers.crash.victim import say, state

if TYPE_CHECKING:
    from collections.abc import Iterable


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--fork", action="store_true", help="after the first commit; both go on")
    options = parser.parse_args()
    numbers = range(options.first, options.last + 1)
    print("READY", flush=True)
    sys.stdin.readline()
    repo = ckptstore.open(options.url, create=True)
    if not options.fork:
        commit_all(repo, numbers, retry=options.retry)
        return
    commit_all(repo, numbers[:1], retry=options.retry)
    child = os.fork()
    commit_all(repo, numbers[1::2] if child else numbers[2::2], retry=options.retry)
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))


def commit_all(repo: ckptstore.Repository, numbers: Iterable[int], *, retry: bool) -> None:
    for n in numbers:
        try:
            made = repo.commit(state(n), step=n, retry=retry)
        except ConflictError:
            say(f"CONFLICT {n} -")
        else:
            say(f"ACK {n} {made.id}")


if __name__ == "__main__":
    main()
