"""Oplog: the newest operation, and appending the next by create-if-absent.

The log of numbered, immutable operations holds the whole mutable state of a repository: branches,
tags and settings. The first writer to create `ops/<seq + 1>` wins; the others read again and decide
again (docs/reference/format.md, section 8). Only this module knows the keys of operations.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from ckptstore.documents.operation import DONE_LENGTH_MAX, OPERATION_BYTES_MAX, SEQ_MAX, Operation
from ckptstore.errors import ConflictError, CorruptError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckptstore.storage import Listed, Storage

PREFIX = "ops/"
KEPT_OPERATIONS = 1000
PRUNE_EVERY = 100
ATTEMPTS_MAX = 1000  # each lost attempt means that another writer got through

_KEY = re.compile(r"ops/([0-9]{12})\.json")


def key_of(seq: int) -> str:
    """Return the storage key of an operation."""
    return f"{PREFIX}{seq:012}.json"


class Oplog:
    """The operations of one repository."""

    FOLDERS: ClassVar = (PREFIX,)
    key = staticmethod(key_of)

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def newest(self) -> Operation:
        """Return the newest operation; before the first, one without branches and tags."""
        for _ in range(ATTEMPTS_MAX):
            seq = max(self.seqs(), default=0)
            if self.exists(seq + 1):  # appended since
                continue
            try:
                return self.read(seq) if seq else Operation()
            except NotFoundError:  # pruned since the listing: many newer ones were appended
                continue
        raise ConflictError(
            "The newest operation was replaced again and again while it was being read. Retry."
        )

    def list(self) -> Iterator[tuple[int | None, Listed]]:
        """List the operations that are kept; the number is None for any other key."""
        for item in self._storage.list(PREFIX):
            match = _KEY.fullmatch(item.key)
            yield int(match[1]) if match else None, item

    def seqs(self) -> set[int]:
        """Return the numbers of the operations that are kept."""
        return {seq for seq, _ in self.list() if seq is not None}

    def exists(self, seq: int) -> bool:
        """Return True when there is an operation of this number; an error if it is no file."""
        return self._storage.size(key_of(seq)) is not None

    def read(self, seq: int) -> Operation:
        """Return one operation by its number; NotFoundError when it was pruned."""
        key = key_of(seq)
        operation = Operation.decode(
            self._storage.get(key, bytes_max=OPERATION_BYTES_MAX), name=key
        )
        if operation.seq != seq:
            raise CorruptError(f"{key} states that it is operation {operation.seq}.")
        return operation

    def between(self, first: int, newest: Operation) -> Iterator[Operation]:
        """Yield the operations from a number to the newest, inclusive.

        NotFoundError when one of them was pruned.
        """
        for seq in range(max(1, first), newest.seq):
            yield self.read(seq)
        yield newest

    def append(self, decide: Callable[[Operation], Operation]) -> Operation:
        """Append what `decide` makes of the newest operation, with a number and nonce of its own.

        `decide` is called again whenever another writer was first. An error it raises ends the
        attempt.
        """
        for _ in range(ATTEMPTS_MAX):
            operation = _numbered(decide, self.newest())
            if self._storage.create(key_of(operation.seq), operation.encode()):
                self._settle(operation.seq)
                return operation
        raise ConflictError(
            f"Other writers were first {ATTEMPTS_MAX} times. Retry when fewer write at once."
        )

    def undo(
        self,
        *,
        now: Callable[[], int],
        check: Callable[[Operation, Operation], object] = lambda newest, restored: None,
    ) -> Operation:
        """Append the state before the newest change that was not undone yet, and return that one.

        now: returns UTC in microseconds. check: called with the newest operation and the state to
        restore; an error it raises ends the attempt. NotFoundError when nothing is left to undo.
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
        """Return the newest change that was not undone, and the state before it."""
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
        """Return the operation before a number."""
        try:
            return self.read(seq - 1) if seq > 1 else Operation()
        except NotFoundError as error:
            raise NotFoundError(
                f"Operation {seq - 1} is too old to go back to: only the newest {KEPT_OPERATIONS} "
                "are kept."
            ) from error

    def _settle(self, seq: int) -> None:
        """Check after a create that the number was no old, pruned one; prune now and then."""
        seqs = self.seqs()
        if max(seqs) >= seq + KEPT_OPERATIONS:
            raise ConflictError(
                f"More than {KEPT_OPERATIONS} operations were appended while this one was being "
                "decided, so its outcome is unknown. Look at the branch, then retry."
            )
        if seq % PRUNE_EVERY == 0:
            self._storage.delete(key_of(old) for old in seqs if old <= seq - KEPT_OPERATIONS)


def _numbered(decide: Callable[[Operation], Operation], newest: Operation) -> Operation:
    if newest.seq >= SEQ_MAX:
        raise CorruptError(
            f"{key_of(newest.seq)} has the last possible number, which no valid log reaches. "
            "Restore the operations from a copy."
        )
    return replace(decide(newest), seq=newest.seq + 1, nonce=secrets.token_hex(8))
