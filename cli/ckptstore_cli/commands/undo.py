"""`ckptstore undo`: take back the newest operation."""

from __future__ import annotations

import click

from ckptstore_cli import output
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@common
@click.pass_context
def undo(ctx: click.Context, as_json: bool) -> None:
    """Take back the newest operation.

    That is a commit, or the making or deleting of a branch or tag. Repeat it to go back further.
    No array is deleted: a checkpoint that no branch names any more is still found by its id.
    """
    undone = open_repository(ctx).undo()
    if as_json:
        output.document({"operation": undone.operation, "description": undone.description})
    else:
        output.line(f"Undone: {undone.description}")
