"""Oplog: the newest operation, and appending the next by create-if-absent.

The log of numbered, immutable operations holds the repository's whole mutable state: branches, tags, settings. Whoever
creates `ops/<seq + 1>` first has won; everybody else looks again and decides anew.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from ckptstore.documents.operation import DONE_LENGTH_MAX, OPERATION_BYTES_MAX, SEQ_MAX, Operation
from ckptstore.errors import ConflictError, CorruptError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.storage import Storage

PREFIX = "ops/"
KEPT_OPERATIONS = 1000
PRUNE_EVERY = 100
ATTEMPTS_MAX = 1000  # each lost attempt means that another writer got through

_KEY = re.compile(r"ops/([0-9]{12})\.json")


class Oplog:
    """The operations of one repository."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def newest(self) -> Operation:
        """The newest operation; before the first, one with no branches and no tags."""
        for _ in range(ATTEMPTS_MAX):
            seq = max(self.seqs(), default=0)
            if self._storage.size(key_of(seq + 1)) is not None:  # made since; an error if no file
                continue
            try:
                return self.read(seq) if seq else Operation()
            except NotFoundError:  # pruned since we listed: many newer ones have come
                continue
        raise ConflictError(
            "The newest operation was replaced again and again while it was read. Retry."
        )

    def seqs(self) -> list[int]:
        """The numbers of the operations that are kept, in no order."""
        found = (_KEY.fullmatch(key) for key, _ in self._storage.list(PREFIX))
        return [int(match[1]) for match in found if match]

    def read(self, seq: int) -> Operation:
        """One operation by its number; NotFoundError when it was pruned."""
        key = key_of(seq)
        operation = Operation.decode(
            self._storage.get(key, bytes_max=OPERATION_BYTES_MAX), name=key
        )
        if operation.seq != seq:
            raise CorruptError(f"{key} says that it is operation {operation.seq}.")
        return operation

    def between(self, first: int, newest: Operation) -> Iterator[Operation]:
        """The operations from a number to the newest, this one included; NotFoundError when one was pruned."""
        for seq in range(max(1, first), newest.seq):
            yield self.read(seq)
        yield newest

    def append(self, decide: Callable[[Operation], Operation]) -> Operation:
        """Append what `decide` makes of the newest operation; the number and nonce are ours.

        `decide` is called again whenever somebody else was first. What it raises ends the attempt.
        """
        for _ in range(ATTEMPTS_MAX):
            operation = _numbered(decide, self.newest())
            if self._storage.create(key_of(operation.seq), operation.encode()):
                self._settle(operation.seq)
                return operation
        raise ConflictError(
            f"{ATTEMPTS_MAX} other writers were first. Retry when fewer write at once."
        )

    def undo(
        self,
        *,
        now: Callable[[], int],
        check: Callable[[Operation, Operation], object] = lambda newest, restored: None,
    ) -> Operation:
        """Append the state before the newest change that no undo took back, and return the operation that made it.

        now: gives UTC in microseconds. check: called with the newest operation and the state to go back to; what it
        raises ends the attempt. NotFoundError when there is nothing left to take back.
        """
        undone = Operation()

        def decide(newest: Operation) -> Operation:
            nonlocal undone
            undone, before = self._last_change(newest)
            restored = replace(before, condemned=newest.condemned)
            check(newest, restored)
            done = f"undid operation {undone.seq}: {undone.done}"
            return replace(restored, undoes=undone.seq, done=done[:DONE_LENGTH_MAX], time=now())

        self.append(decide)
        return undone

    def _last_change(self, newest: Operation) -> tuple[Operation, Operation]:
        """The newest operation that changed refs or settings and was not taken back, and the state before it."""
        operation = newest
        while True:
            while operation.undoes is not None:
                operation = self._before(operation.undoes)
            if operation.seq == 0:
                raise NotFoundError("There is nothing to undo.")
            before = self._before(operation.seq)
            if before.state != operation.state:
                return operation, before
            operation = before  # gc changes neither

    def _before(self, seq: int) -> Operation:
        """The operation before a number, however old."""
        try:
            return self.read(seq - 1) if seq > 1 else Operation()
        except NotFoundError as error:
            raise NotFoundError(
                f"Operation {seq - 1} is too old to go back to; only the newest are kept."
            ) from error

    def _settle(self, seq: int) -> None:
        """After a create: make sure that the number was not an old one, pruned meanwhile, and prune in our turn."""
        seqs = self.seqs()
        if max(seqs) >= seq + KEPT_OPERATIONS:
            raise ConflictError(
                f"More than {KEPT_OPERATIONS} operations were appended while this one was decided; whether it "
                "counted cannot be told. Look at the branch, and retry."
            )
        if seq % PRUNE_EVERY == 0:
            self._storage.delete(key_of(old) for old in seqs if old <= seq - KEPT_OPERATIONS)


def key_of(seq: int) -> str:
    """The storage key of an operation."""
    return f"{PREFIX}{seq:012}.json"


def _numbered(decide: Callable[[Operation], Operation], newest: Operation) -> Operation:
    if newest.seq >= SEQ_MAX:
        raise CorruptError(
            f"{key_of(newest.seq)} is the last number there is; nobody has made so many operations."
        )
    return replace(decide(newest), seq=newest.seq + 1, nonce=secrets.token_hex(8))
