"""Undo: the moves and the author of each operation, and the state without it (docs/adr/0044).

Taking an operation back puts back the branches, tags and settings that it moved, and nothing else.
So later operations of other processes stay. If one of the names was moved again, the undo is
refused. An undo is an operation too, and taking it back does the undone one again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from ckptstore.digest import Digest
from ckptstore.documents.author import CALL, HAND, SAVE, Author
from ckptstore.documents.note import NoteName
from ckptstore.documents.settings import parts, with_part
from ckptstore.errors import ConflictError, InvalidInputError, NotFoundError
from ckptstore.times import utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from ckptstore.documents.operation import Operation
    from ckptstore.store.oplog import Oplog

COMMITTED = "committed "  # begins the description of a commit in versions that record no author


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A branch, tag or setting that an operation moved, or a note that it published.

    Attributes:
        kind: "branch", "tag", "setting" or "note".
        name: Its name; for a note, the id of its checkpoint.
        before: The id of its checkpoint, or its value, before the operation; None if it was made.
        after: The same after the operation; None if it was deleted. For a note, its name.
    """

    kind: Literal["branch", "tag", "setting", "note"]
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if self.kind == "note":
            return f"note on {Digest(self.name).short}"
        before, after = (
            "" if self.kind == "setting" or value is None else f" {value.short}"
            for value in (self.before, self.after)
        )
        if self.before is None:
            return f"{self.kind} {self.name}: made{after and f' at{after}'}"
        if self.after is None:
            return f"{self.kind} {self.name}: deleted{before and f' at{before}'}"
        if self.kind == "setting":
            return f"setting {self.name}: changed"
        return f"{self.kind} {self.name}:{before} to{after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationInfo:
    """An operation of the log: who did it, when, what, and what it moved.

    Attributes:
        number: Its number; 0 for a damaged newest operation.
        time: When it was done, by the clock of its process, in UTC; None if it is damaged.
        description: A description in one line.
        user: The user; "" if none is recorded.
        host: The machine; "" if none is recorded.
        program: The program; "" if none is recorded.
        pid: The id of the process; 0 if none is recorded.
        role: "hand" for a person's command, "call" for a program that changed a name or a setting,
            "save" for a program that committed, "training" for a CheckpointManager; "" if none is
            recorded.
        moves: The branches, tags and settings that it moved; None if unknown, because the operation
            before it is gone.
        undoes: The number of the operation that it took back, if any.
        undone_by: The number of the operation that took it back, if any.
        is_gc: True if it is a gc that deleted something, which no undo brings back.
        members: The numbers of the commits that it stands for, if it is an import of several files.
    """

    number: int = 0
    time: datetime | None = None
    description: str
    user: str = ""
    host: str = ""
    program: str = ""
    pid: int = 0
    role: str = ""
    moves: tuple[Move, ...] | None = None
    undoes: int | None = None
    undone_by: int | None = None
    is_gc: bool = False
    members: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"operation {self.number} ({self.description})"

    @property
    def note(self) -> str | None:
        """The name of the note that it published; None if it published none."""
        return next((move.after for move in self.moves or () if move.kind == "note"), None)

    @property
    def who(self) -> str:
        """The program, its process, user and machine, as one text; "" if none is recorded."""
        return Author(
            role=self.role, user=self.user, host=self.host, program=self.program, pid=self.pid
        ).who


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """The result of an undo.

    Attributes:
        operation: The number of the operation that was taken back.
        description: The description of that operation, in one line.
        redo: The number of the undo itself. Undoing this number does the operation again.
    """

    operation: int
    description: str
    redo: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPlan:
    """A plan of an undo; nothing is done before `execute`.

    Attributes:
        operation: The operation to take back.
        others: Newer operations that are left alone, newest first: commits of other processes, and
            operations of other users.
    """

    operation: OperationInfo
    others: tuple[OperationInfo, ...] = ()
    _execute: Callable[[], Undone] = field(repr=False, compare=False)

    def execute(self) -> Undone:
        """Take the operation back.

        Raises:
            ConflictError: A name or setting that it moved was moved again meanwhile.
            ExpiredError: A branch or tag would name a checkpoint whose arrays were deleted.
        """
        return self._execute()


def operations(oplog: Oplog, newest: Operation) -> Iterator[OperationInfo]:
    """Yield the readable operations, newest first."""
    undone_by: dict[int, int] = {}
    for operation, before in oplog.changes(newest):
        took_back = operation.took_back
        if took_back is not None and operation.seq not in undone_by:
            undone_by.setdefault(took_back, operation.seq)
        by = operation.by
        yield OperationInfo(
            number=operation.seq,
            time=utc(operation.time),
            description=operation.done,
            user=by.user if by else "",
            host=by.host if by else "",
            program=by.program if by else "",
            pid=by.pid if by else 0,
            role=by.role if by else "",
            moves=None if before is None else moves(before, operation),
            undoes=took_back,
            undone_by=undone_by.get(operation.seq),
            is_gc=before is not None and before.condemned != operation.condemned,
        )


def moves(before: Operation, after: Operation) -> tuple[Move, ...]:
    """Return the differences between two states, and the note that the later one published."""
    note = NoteName.parse(after.note)
    notes: tuple[Move, ...] = ()
    if note is not None:
        notes = (Move(kind="note", name=note.checkpoint, before=None, after=str(note)),)
    kinds: tuple[tuple[Literal["branch", "tag", "setting"], Any, Any], ...] = (
        ("branch", before.heads, after.heads),
        ("tag", before.tags, after.tags),
        ("setting", parts(before.settings), parts(after.settings)),
    )
    return (
        tuple(
            Move(kind=kind, name=name, before=old.get(name), after=new.get(name))
            for kind, old, new in kinds
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        )
        + notes
    )


def next_of_hand(
    found: Iterator[OperationInfo], author: Author, *, others: list[OperationInfo]
) -> OperationInfo | None:
    """Return the next operation that undo takes back without a number; None if there is none.

    Undos, undone operations and those that moved nothing are skipped. A gc by hand is not: it
    cannot be taken back, but operations before it are not the newest. others: receives the skipped
    operations of others.
    """
    for info in found:
        if info.undoes is not None or info.undone_by is not None:
            continue
        if info.moves == () and not (info.is_gc and _is_of_hand(info, author)):
            continue
        if _is_of_hand(info, author):
            return info
        others.append(info)
    return None


def _is_of_hand(info: OperationInfo, author: Author) -> bool:
    """Return True for an operation that undo takes back without a number for `author`.

    These are operations of the same user by hand, changes of names and settings by a program of the
    same user, and commits of this process that are not of a training. Among operations without an
    author, all but commits and gcs count.
    """
    if not info.role:
        return not info.is_gc and not info.description.startswith(COMMITTED)
    if info.user and author.user and info.user != author.user:
        return False
    if info.role == SAVE:
        mine = (author.host, author.program, author.pid)
        return (info.host, info.program, info.pid) == mine
    return info.role == HAND or (info.role == CALL and not info.is_gc)


def is_undo(info: OperationInfo) -> bool:
    """Return whether an operation took another one back, and that can be done again."""
    return info.undoes is not None and info.undone_by is None


def nothing_to_undo(others: Sequence[OperationInfo], last: OperationInfo | None) -> NotFoundError:
    """Return the error for a log without an operation of this user. last: the newest undo."""
    if not others:
        again = f" To take back {last}, use undo({last.number})." if last else ""
        return NotFoundError(f"There is nothing to undo.{again}")
    newest = others[0]
    return NotFoundError(
        f"There is nothing of yours to undo. The newest operation of others is {newest.number}"
        f"{_by(newest)}: {newest.description}. To take that back, use undo({newest.number})."
    )


def without(target: OperationInfo, newest: Operation, oplog: Oplog) -> Operation:
    """Return the newest state with the moves of an operation reversed.

    Raises:
        ConflictError: A name or setting was moved since.
        InvalidInputError: The operation moved nothing.
    """
    if target.moves is None:
        oplog.before(target.number, newest)  # raises the reason
        raise ConflictError(f"The moves of {target} are not known. Look at the log again.")
    if target.undone_by is not None and target.note is not None:
        raise ConflictError(
            f"Operation {target.number} ({target.description}) was taken back by operation "
            f"{target.undone_by}. To do it again, use undo({target.undone_by})."
        )
    if target.is_gc and not target.moves:
        raise InvalidInputError(
            f"Operation {target.number} ({target.description}) cannot be undone: arrays that a gc "
            "deleted cannot come back."
        )
    if not target.moves:
        raise InvalidInputError(
            f"Operation {target.number} ({target.description}) moved no branch, tag or setting, so "
            "there is nothing to put back."
        )
    states = {"branch": newest.heads, "tag": newest.tags, "setting": parts(newest.settings)}
    for move in target.moves:
        if move.kind != "note" and states[move.kind].get(move.name) != move.after:
            raise _moved_since(target, move, newest, oplog)
    settings = newest.settings
    for move in target.moves:
        if move.kind == "setting":
            settings = with_part(settings, move.name, move.before)
    return replace(
        newest,
        heads=_put_back(newest.heads, target.moves, kind="branch"),
        tags=_put_back(newest.tags, target.moves, kind="tag"),
        settings=settings,
    )


def _put_back(refs: Mapping[str, Any], moved: Iterable[Move], *, kind: str) -> dict[str, Any]:
    before = {move.name: move.before for move in moved if move.kind == kind}
    return {name: id for name, id in {**refs, **before}.items() if id is not None}


def _moved_since(
    target: OperationInfo, move: Move, newest: Operation, oplog: Oplog
) -> ConflictError:
    """Return the error that names the newest operation that moved the same name."""
    movers = (
        info
        for info in operations(oplog, newest)
        if any((found.kind, found.name) == (move.kind, move.name) for found in info.moves or ())
    )
    told = "."
    for mover in movers:
        told = f", by {mover}{_by(mover)}. To take that back first, use undo({mover.number})."
        break
    return ConflictError(
        f"Operation {target.number} ({target.description}) cannot be undone: {move.kind} "
        f"{move.name!r} was moved since{told}"
    )


def _by(info: OperationInfo) -> str:
    return f", by {info.who}" if info.who else ""
