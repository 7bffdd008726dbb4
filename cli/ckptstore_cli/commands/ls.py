"""`ckptstore ls`: list the arrays or the plain values of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ckptstore_cli import documents, fields, output, text
from ckptstore_cli.options import common, revision_argument, selection_options
from ckptstore_cli.output import PATH_WIDTH_MIN, Column
from ckptstore_cli.parts import below, check_part, part_option
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore import ArrayInfo

_COLUMNS = (
    Column("path", gives_way=1, shortens=True, width_min=PATH_WIDTH_MIN),
    Column("dtype", drops=2),
    Column("shape", right=True),
    Column("size", right=True),
)
_VALUE_COLUMNS = (Column("path", gives_way=2, shortens=True), Column("value", gives_way=1))


@click.command()
@revision_argument("The checkpoint.")
@part_option(
    "List only the value of this key of the state, such as model, with paths below the key. "
    "--include and --exclude match whole paths."
)
@selection_options
@click.option(
    "--values",
    "of_values",
    is_flag=True,
    help="List the plain values (learning rate, epoch, arguments), not the arrays.",
)
@common
@click.pass_context
def ls(
    ctx: click.Context,
    rev: str,
    part: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    of_values: bool,
    as_json: bool,
) -> None:
    """List the arrays of a checkpoint, or its plain values.

    On a narrow terminal, long paths lose some of their middle.
    """
    from ckptstore.state.selection import Selection

    selects = Selection.of(include or None, exclude)
    checkpoint = open_repository(ctx).resolve(rev)
    check_part(part, (*(array.path for array in checkpoint.arrays), *checkpoint.values))
    globs = [*(f"--include {glob}" for glob in include), *(f"--exclude {g}" for g in exclude)]
    if of_values:
        values = {
            inner: value
            for path, value in checkpoint.values.items()
            if selects(path) and (inner := below(path, part)) is not None
        }
        _print_values(values, globs, as_json=as_json)
    else:
        arrays = [
            replace(array, path=inner)
            for array in checkpoint.arrays
            if selects(array.path) and (inner := below(array.path, part)) is not None
        ]
        _print_arrays(arrays, globs, as_json=as_json)


def _print_arrays(arrays: Sequence[ArrayInfo], globs: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        output.document([documents.array(array) for array in arrays])
    elif not arrays:
        output.note(
            f"No array is left by {' '.join(globs)}." if globs else "The checkpoint has no arrays."
        )
    else:
        rows = [(a.path, a.dtype, text.shape(a.shape), text.size(a.nbytes)) for a in arrays]
        output.table(_COLUMNS, rows)
        output.footer(text.arrays(len(arrays), sum(array.nbytes for array in arrays)))


def _print_values(values: dict[str, object], globs: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        output.document({path: documents.plain(value) for path, value in values.items()})
    elif not values:
        output.note(
            f"No plain value matches {' '.join(globs)}."
            if globs
            else "The checkpoint has no plain values."
        )
    else:
        output.table(_VALUE_COLUMNS, [(path, fields.plain(v)) for path, v in values.items()])
