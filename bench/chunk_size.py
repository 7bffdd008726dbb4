"""How the chunk size affects the speed of commits, durable or not, and of checkouts.

For "not durable", os.fsync is replaced by a no-op during the call: what remains is hashing, copying
and the system calls for each file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench import repositories
from bench.figures import Cells
from bench.measure import Contender, Patience, Series, compete
from bench.workloads import Training

CHUNK_MEBIBYTES = (1, 2, 4, 8, 16, 32, 64)
HEADINGS: Cells = (
    "chunk size",
    "objects",
    "commit, all new",
    "the same, not durable",
    "commit, nothing changed",
    "commit, 2 % changed",
    "bytes of that",
    "checkout, fresh",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The repositories of one chunk size: with one state and with two."""

    mebibytes: int
    first: Path
    second: Path

    @property
    def name(self) -> str:
        """The chunk size as text."""
        return f"{self.mebibytes} MiB"


def rows(
    training: Training, scratch: Path, *, rounds: int, patience: Patience
) -> Iterator[tuple[Cells, dict[str, Any]]]:
    """Yield a row and its numbers for each chunk size. All sizes take turns in every contest."""
    bases = [_base(training, scratch, mebibytes) for mebibytes in CHUNK_MEBIBYTES]

    def contest(contender: Callable[[Base], Contender]) -> list[Series]:
        return compete([contender(base) for base in bases], rounds=rounds, patience=patience)

    new, partly = training.second, training.partly
    contests = {
        "commit": contest(lambda base: repositories.commit(base.first, new, name=base.name)),
        "commit, not durable": contest(
            lambda base: repositories.commit(base.first, new, name=base.name, around=without_fsync)
        ),
        "unchanged": contest(lambda base: repositories.commit(base.second, new, name=base.name)),
        "partly": contest(lambda base: repositories.commit(base.second, partly, name=base.name)),
        "checkout": contest(lambda base: repositories.checkout(base.second, name=base.name)),
    }
    for number, base in enumerate(bases):
        yield _row(base, partly, {name: series[number] for name, series in contests.items()})


@contextmanager
def without_fsync() -> Iterator[None]:
    """Disable os.fsync, for measuring only: nothing written meanwhile is durable."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


def _base(training: Training, scratch: Path, mebibytes: int) -> Base:
    def make(name: str, states: Sequence[object]) -> Path:
        return repositories.prepared(
            scratch, f"{name}-{mebibytes}", *states, chunk_size=mebibytes << 20
        )

    return Base(
        mebibytes=mebibytes,
        first=make("first", (training.first,)),
        second=make("second", (training.first, training.second)),
    )


def _row(base: Base, partly: object, series: dict[str, Series]) -> tuple[Cells, dict[str, Any]]:
    objects, _ = repositories.object_bytes(base.first)
    copy = repositories.linked_copy(base.second)
    new_bytes = repositories.commit_now(copy, partly).new_bytes
    numbers = {
        "chunk_bytes": base.mebibytes << 20,
        "objects": objects,
        "bytes_of_2_percent": new_bytes,
        "seconds": {
            name: [round(value, 6) for value in one.seconds] for name, one in series.items()
        },
    }
    commit, not_durable, unchanged, part, checkout = (
        f"{one.median:.3f} s" for one in series.values()
    )
    cells = (base.name, str(objects), commit, not_durable, unchanged, part)
    return (*cells, f"{new_bytes / 1e6:.1f} MB", checkout), numbers
