"""A process that commits and reports it, to be killed: `python victim.py URL FIRST LAST`.

It commits state(FIRST) to state(LAST) to the branch main and prints "ACK n id" when a commit has
returned, "NOTED n id" when a note on it has, and "FAILED n reason" when one raised. A failed commit
is retried once; if that fails too, the exit status is 3. It imports as little as possible:
`spawner.py` forks it a thousand times.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import ckptstore
from ckptstore import CkptStoreError, NotFoundError
from ckptstore.documents import zarr_document
from ckptstore.documents.facts import Facts
from ckptstore.documents.page import SMALL_BYTES
from tests.helpers.crash.threads import COUNTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

CHUNK_BYTES = 1 << 16
GAVE_UP = 3
Result = TypeVar("Result")


def state(n: int) -> dict[str, Any]:
    """The state of commit n: large and small arrays, values; little changes from n to n + 1."""
    weight = np.arange(48 << 10, dtype=np.float32)  # three chunks
    weight[0] = n // 3
    model = {"weight": weight, "bias": np.full(50, n // 4, np.float64), "scale": np.float32(n // 4)}
    if n >= 5:
        model["added"] = np.arange(20 << 10, dtype=np.int32)
    momentum = -np.arange(16 << 10, dtype=np.float64).reshape(128, 128)
    return {"model": model, "optimizer": {"state": {0: momentum}, "lr": 0.5}, "step": n}


def arrays(n: int) -> dict[str, Any]:
    """The arrays of a session's commit n, in groups, by name, the new one last."""
    made = state(n)
    names = sorted(made["model"], key=lambda name: (name == "added", name))
    model = {name: np.asarray(made["model"][name]) for name in names}
    return {"model": model, "momentum": made["optimizer"]["state"][0]}


def commit_through_zarr(repo: ckptstore.Repository, n: int, *, retry: bool) -> ckptstore.Checkpoint:
    """Commit as `Repository.session` does, key by key, but without the import of zarr."""
    from ckptstore.zarr.staged_contents import StagedContents

    head = repo._oplog.newest().heads.get("main")
    manifest = repo._catalog.manifest(head) if head else None
    staged = StagedContents(head, manifest, repo._catalog, CHUNK_BYTES)
    for key in list(staged.sorted_keys):
        staged.delete(key)
    for key, data in keys(arrays(n)):
        if len(data) >= SMALL_BYTES or not staged.hold(key, data):
            staged.put(key, memoryview(data))
    return repo._publish_session(
        "main", staged, Facts.of(step=n, metrics=None, message="", meta=None), retry=retry
    )


def keys(state: dict[str, Any], path: str = "") -> Iterator[tuple[str, bytes]]:
    """Every key of a Zarr hierarchy, each array one chunk."""
    yield f"{path}zarr.json", json.dumps(zarr_document.group_document({})).encode()
    for name, value in state.items():
        if isinstance(value, dict):
            yield from keys(value, f"{path}{name}/")
            continue
        document = zarr_document.array_document(
            dtype=str(value.dtype), shape=value.shape, chunk_shape=value.shape, name=name
        )
        yield f"{path}{name}/zarr.json", json.dumps(document).encode()
        yield f"{path}{name}/{'/'.join(['c', *'0' * value.ndim])}", value.tobytes()


def open_or_init(url: str) -> ckptstore.Repository:
    """The repository; a new one has small chunks, and is acknowledged."""
    try:
        return ckptstore.open(url)
    except NotFoundError:
        repo = ckptstore.init(url, chunk_size=CHUNK_BYTES)
        say("ACK 0 -")
        return repo


def attempt(n: int, work: Callable[[], Result]) -> Result:
    """Do the work, with one retry."""
    try:
        return work()
    except CkptStoreError as error:
        say(f"FAILED {n} {type(error).__name__}")
    try:
        return work()
    except CkptStoreError as error:
        say(f"FAILED {n} {type(error).__name__}")
        sys.exit(GAVE_UP)


def say(line: str) -> None:
    """Write a line at once, not with the call that writes files, which may be made to fail."""
    os.writev(1, [f"{line}\n".encode()])


def commit_all(
    url: str, numbers: range, *, retry: bool, through_zarr: bool, notes: bool = False
) -> None:
    repo = attempt(0, lambda: open_or_init(url))

    def commit(n: int) -> ckptstore.Checkpoint:
        if through_zarr:
            return commit_through_zarr(repo, n, retry=retry)
        return repo.commit(state(n), step=n, retry=retry)

    for n in numbers:
        made = attempt(n, lambda n=n: commit(n))
        say(f"ACK {n} {made.id}")
        if notes:
            attempt(n, partial(repo.annotate, made.id, metrics={"noted": n}))
            say(f"NOTED {n} {made.id}")


def collect(url: str, keep: int) -> None:
    from ckptstore.retention import MaxToKeep

    report = attempt(0, lambda: ckptstore.open(url).gc(MaxToKeep(keep), grace=0))
    say(f"GC {len(report.expired)} {report.objects}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument(
        "--threads", type=int, default=1, help="that write; 1 makes every run the same"
    )
    parser.add_argument("--rival", type=int, help="fork, and let the child commit from here on")
    parser.add_argument("--keep", type=int, help="in the end gc, and keep so many checkpoints")
    parser.add_argument("--notes", action="store_true", help="annotate each commit")
    parser.add_argument("--zarr", action="store_true", help="commit sessions instead of states")
    parser.add_argument("--bug", help="a mistake to make, from bugs.py")
    options = parser.parse_args(arguments)
    for module, name in COUNTS:
        assert hasattr(module, name)
        setattr(module, name, options.threads)
    numbers = range(options.first, options.last + 1)
    child = os.fork() if options.rival else None
    if child == 0:
        numbers = range(options.rival, options.rival + len(numbers))
    with seeded(options.bug):
        retry = options.rival is not None
        commit_all(
            options.url,
            numbers,
            retry=retry,
            through_zarr=options.zarr,
            notes=options.notes,
        )
        if options.keep:
            collect(options.url, options.keep)
    if child:
        os.waitpid(child, 0)


def seeded(bug: str | None) -> AbstractContextManager[object]:
    if bug is None:
        return nullcontext()
    from tests.helpers.crash import bugs

    return bugs.seeded(bug)


if __name__ == "__main__":
    main()
