"""`ckptstore ls`: list the arrays of a checkpoint."""

from __future__ import annotations

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import common, revision_argument, selection_options
from ckptstore_cli.output import Column
from ckptstore_cli.repo import open_repository

_COLUMNS = (
    Column("path", gives_way=1, folds=True),
    Column("dtype"),
    Column("shape", right=True),
    Column("size", right=True),
)


@click.command()
@revision_argument("The checkpoint.")
@selection_options
@common
@click.pass_context
def ls(
    ctx: click.Context, rev: str, include: tuple[str, ...], exclude: tuple[str, ...], as_json: bool
) -> None:
    """List the arrays of a checkpoint."""
    from ckptstore.state.selection import Selection

    selects = Selection.of(include or None, exclude)
    arrays = [array for array in open_repository(ctx).resolve(rev).arrays if selects(array.path)]
    if as_json:
        output.document([documents.array(array) for array in arrays])
    elif not arrays:
        globs = [*(f"--include {glob}" for glob in include), *(f"--exclude {g}" for g in exclude)]
        output.note(
            f"No array is left by {' '.join(globs)}." if globs else "The checkpoint has no arrays."
        )
    else:
        rows = [(a.path, a.dtype, text.shape(a.shape), text.size(a.nbytes)) for a in arrays]
        output.table(_COLUMNS, rows)
        output.footer(text.arrays(len(arrays), sum(array.nbytes for array in arrays)))
