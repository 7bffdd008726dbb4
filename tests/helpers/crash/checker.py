"""Checks a repository after a crash. The folder may also contain garbage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

import ckptstore
from ckptstore import NotFoundError
from ckptstore.documents.note import NoteName
from tests.helpers.crash.victim import CHUNK_BYTES, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The output of victims before the crash: acknowledged commits, notes and failed ones."""

    initialised: bool
    acks: tuple[tuple[int, str], ...]
    failed: tuple[int, ...]
    noted: tuple[tuple[int, str], ...] = ()

    @classmethod
    def parse(cls, output: bytes) -> Self:
        """Parse the output of victims; a last line that was cut off is ignored."""
        lines = [line.split() for line in output.decode().split("\n")[:-1]]
        acks = [(int(n), id) for word, n, id in lines if word == "ACK"]
        return cls(
            initialised=bool(acks),
            acks=tuple(ack for ack in acks if ack[0] > 0),
            failed=tuple(int(n) for word, n, _ in lines if word == "FAILED"),
            noted=tuple((int(n), id) for word, n, id in lines if word == "NOTED"),
        )


def complaint(
    url: str | Path,
    told: Told,
    *,
    writers: int = 1,
    keep: int | None = None,
    state: Callable[[int], dict[str, Any]] = state,
) -> str | None:
    """Returns what is wrong with the repository, or None, after one more commit.

    writers: the number of victims, each of which may have had one commit in flight. keep: all but
    so many of the newest may have expired. state: returns the state of commit n.
    """
    try:
        return next(_complaints(url, told, writers, keep, state), None)
    except Exception as error:  # noqa: BLE001 a user would have met any error raised here
        return f"{type(error).__name__}: {error}"


def _complaints(
    url: str | Path,
    told: Told,
    writers: int,
    keep: int | None,
    state: Callable[[int], dict[str, Any]],
) -> Iterator[str]:
    try:
        repo = ckptstore.open(url)
    except NotFoundError:
        if told.initialised:
            yield "the repository is gone"
        repo = ckptstore.init(url, chunk_size=CHUNK_BYTES)
    problems = repo.verify().problems
    if writers > 1:  # the first of two operations in flight may be lost: no checkpoint is affected
        problems = tuple(problem for problem in problems if problem.checkpoints)
    if problems:
        yield f"verify found {problems}"
    history = repo.log("main") if repo.branches() else []
    yield from _complaints_of_history(history, told, writers)
    yield from _complaints_of_notes(repo, told)
    for place, found in enumerate(history):
        may_have_expired = keep is not None and place >= keep
        if found.expired and may_have_expired:
            continue
        if not equal(repo.checkout(found.id), state(found.step or 0)):
            yield f"checkpoint {found.id.short} is not what was committed as {found.step}"
    n = max((found.step or 0 for found in history), default=0) + 1
    made = repo.commit(state(n), step=n)
    if made.parents != tuple(found.id for found in history[:1]):
        yield "the next commit has another parent than the head"
    if not equal(repo.checkout(), state(n)):
        yield "the next commit does not read back"


def _complaints_of_notes(repo: ckptstore.Repository, told: Told) -> Iterator[str]:
    """Each acknowledged note counts, and none that an operation published is missing."""
    for n, id in told.noted:
        if repo.resolve(id).metrics.get("noted") != n:
            yield f"the note on commit {n} is lost"
    for operation in repo.operations():
        if (name := NoteName.parse(operation.note)) is not None:
            repo._notes.read(name)


def _complaints_of_history(
    history: list[ckptstore.Checkpoint], told: Told, writers: int
) -> Iterator[str]:
    """The branch must be one line of all acknowledged commits and at most those in flight."""
    acknowledged = {id for _, id in told.acks}
    lost = acknowledged - {found.id for found in history}
    if lost:
        yield f"{len(lost)} of {len(acknowledged)} acknowledged checkpoints are lost"
    for place, found in enumerate(history):
        if found.parents != tuple(parent.id for parent in history[place + 1 : place + 2]):
            yield f"the history is no line at {found.id.short}"
    extra = [place for place, found in enumerate(history) if found.id not in acknowledged]
    if len(extra) > writers + len(told.failed):
        yield f"{len(extra)} checkpoints of the branch were never acknowledged"
    if writers == 1 and not told.failed and extra not in ([], [0]):
        yield "the branch holds a checkpoint that was not acknowledged below one that was"


def equal(one: object, other: object) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray | np.generic) and isinstance(other, np.ndarray | np.generic):
        same_kind = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same_kind and one.tobytes() == other.tobytes()
    return type(one) is type(other) and one == other
