"""Repositories for transfers, and what must be equal after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ckptstore.documents.canonical import readable
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.repository import Repository
from ckptstore.transfer.plan import TransferPlan, plan_transfer
from ckptstore.transfer.wanted import Wanted

if TYPE_CHECKING:
    from ckptstore.storage import Storage

CHUNK_BYTES = 64 << 10


def state(number: int) -> dict[str, Any]:
    """A state with a chunked array that stays, one that changes, small arrays and plain values."""
    return {
        "model": {
            "kept": np.arange(40_000, dtype="f4"),
            "trained": np.full(20_000, number, dtype="f4"),
            "bias": np.full(3, number, dtype="f4"),
        },
        "step": number,
    }


def repository_in(storage: Storage | Any) -> Repository:
    """A repository in a storage, made where there is none."""
    marker = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)
    if storage.size(MARKER_KEY) is None:
        storage.create(MARKER_KEY, readable(marker, name=MARKER_KEY))
    return Repository(storage, marker)


def planned(source: Repository, target: Repository, **wanted: Any) -> TransferPlan:
    """The plan of a transfer between two handles."""
    asked = Wanted.of(**wanted)
    return plan_transfer(source._side(), target._side(), asked, meter=source._objects.meter)


def log_of(repo: Repository, rev: str) -> list[tuple[object, ...]]:
    """The history of a revision, as far as it must be equal in all repositories."""
    return [
        (c.id, c.step, dict(c.metrics), [(note.message, note.time) for note in c.notes])
        for c in repo.log(rev)
    ]


def keys_of(repo: Repository) -> dict[str, int]:
    """All that a repository holds."""
    return {item.key: item.size for item in repo._storage.list("")}


def assert_sound(repo: Repository) -> None:
    """Nothing is missing, damaged or out of place."""
    report = repo.verify()
    assert report.ok, report.problems
