"""A process of the stress test of gc on an object store: `python far_worker.py ROLE URL STOP SEED`.

commit: commits states from a small pool to a branch of its own, and prints the id of each. read:
checks out heads and compares them. gc: collects repeatedly. "gc dies" and "commit dies" kill
themselves in the middle. Readers and gc run until the file STOP exists. The leases are short, and
so is all else that the margin has to be longer than.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ckptstore
from ckptstore import ExpiredError
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.errors import CkptStoreError
from ckptstore.retention import MaxToKeep
from ckptstore.storage import remote
from ckptstore.storage.remote import RemoteStorage, Timeouts
from ckptstore.storage.remote_url import RemoteUrl
from ckptstore.store import condemned
from tests.helpers.gc_worker import POOL, is_right, state

LEASE, MARGIN = 2.0, 8.0
SIGNED_SECONDS = 4.0  # after which the server refuses a request
PAUSE_SECONDS = 0.1  # between the looks of a reader
RETRY_SECONDS = 2.0  # in which a request is repeated


def opened(url: str, hours: float = 0.0) -> ckptstore.Repository:
    """The repository, with short leases and a wrong clock."""
    remote.LEASE_SECONDS, condemned.MARGIN_SECONDS = LEASE, MARGIN
    remote.PAUSE_SECONDS = 0.01
    timeouts = Timeouts(connect=20, quick=20, slow=20, silence=20, retry=RETRY_SECONDS)
    storage = RemoteStorage(RemoteUrl.parse(url), timeouts=timeouts)
    marker = Marker.decode(storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))
    return ckptstore.Repository(storage, marker, clock=lambda: time.time() + 3600 * hours)


def commit(repo: ckptstore.Repository, rng: random.Random, seed: int, commits: int) -> None:
    done = 0
    while done < commits:
        number = rng.randrange(POOL)
        made = repo.commit(state(number), branch=f"branch-{seed}", step=done)
        print(made.id, number, flush=True)
        done += 1


def read(repo: ckptstore.Repository) -> int:
    done = 0
    for name in repo.ref_names()[0]:
        try:
            assert is_right(repo.checkout(name))
            done += 1
        except ExpiredError:  # the branch moved on, and what it left is gone
            continue
    return done


def collect(repo: ckptstore.Repository, *, leftovers: bool) -> int:
    try:
        return len(repo.gc(MaxToKeep(1), grace=0, leftovers=leftovers).expired)
    except CkptStoreError as error:  # another one took over, or too many faults
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 0


def die_in(name: str, rng: random.Random) -> None:
    """Have some call of a method of the storage, before or after its work, kill this process."""
    method = getattr(RemoteStorage, name)

    def die(self: RemoteStorage, *args: Any, **options: Any) -> Any:
        if rng.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(self, *args, **options)
        if rng.random() < 0.05:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(RemoteStorage, name, die)


def main() -> None:
    role, url, stop, seed, commits = sys.argv[1:]
    rng = random.Random(int(seed))
    repo = opened(url, hours=rng.choice([-72, 0, 720]))
    done = 0
    if role.endswith("dies"):
        die_in("delete" if role == "gc dies" else "put", rng)
    if role.startswith("commit"):
        commit(repo, rng, int(seed), int(commits))
        return
    while not Path(stop).exists():
        if role == "read":
            done += read(repo)
            time.sleep(PAUSE_SECONDS)
        else:
            done += collect(repo, leftovers=bool(int(seed) % 2))  # the others follow what changed
    if role == "gc":
        done += collect(repo, leftovers=True)  # also after the last commit
    print(done)


if __name__ == "__main__":
    main()
