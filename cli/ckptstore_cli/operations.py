"""Operations of the repository's log as text and as JSON, for `ops` and `undo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore_cli import output, text
from ckptstore_cli.output import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore import OperationInfo

WHAT_WIDTH_MIN = 28
MOVED_WIDTH_MIN = 24
BY_WIDTH_MIN = 12

_COLUMNS = (
    Column("op", style="yellow", right=True),
    Column("age", style="dim"),
    Column("what", gives_way=4, width_min=WHAT_WIDTH_MIN),
    Column("moved", gives_way=1, drops=2, width_min=MOVED_WIDTH_MIN),
    Column("by", style="dim", gives_way=3, width_min=BY_WIDTH_MIN),
)


def print_operations(operations: Sequence[OperationInfo], *, as_json: bool) -> None:
    """List operations, newest first."""
    if as_json:
        output.document([document(operation) for operation in operations])
    elif not operations:
        output.note("Nothing has been done to this repository yet.")
    else:
        undone = {
            number for number, operation in enumerate(operations) if operation.undone_by is not None
        }
        output.table(_COLUMNS, [_row(operation) for operation in operations], dimmed=undone)


def document(operation: OperationInfo) -> dict[str, Any]:
    """An operation as JSON."""
    moves = operation.moves
    return {
        "operation": operation.number,
        "time": operation.time and operation.time.isoformat(),
        "description": operation.description,
        "user": operation.user,
        "host": operation.host,
        "program": operation.program,
        "pid": operation.pid,
        "role": operation.role,
        "moves": None
        if moves is None
        else [
            {"kind": move.kind, "name": move.name, "before": move.before, "after": move.after}
            for move in moves
        ],
        "undoes": operation.undoes,
        "undone_by": operation.undone_by,
    }


def sentence(operation: OperationInfo) -> str:
    """An operation in one sentence: number, age, process, description and moves."""
    parts = [f"operation {operation.number}" if operation.number else ""]
    if operation.time is not None:
        parts.append(text.age(operation.time, output.now()))
    if operation.who:
        parts.append(f"by {operation.who}")
    moved = "; ".join(map(str, operation.moves or ()))
    about = ", ".join(part for part in parts if part)
    told = f"{about}: {operation.description}" if about else operation.description
    return f"{told} ({moved})" if moved else told


def _row(operation: OperationInfo) -> tuple[str, ...]:
    undone = f" (undone by {operation.undone_by})" if operation.undone_by is not None else ""
    return (
        str(operation.number),
        "" if operation.time is None else text.age(operation.time, output.now()),
        operation.description + undone,
        "; ".join(map(str, operation.moves or ())),
        operation.who,
    )
