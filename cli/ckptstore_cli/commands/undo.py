"""`ckptstore undo`: revert the newest operation."""

from __future__ import annotations

import click

from ckptstore_cli import output
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@common
@click.pass_context
def undo(ctx: click.Context, as_json: bool) -> None:
    """Revert the newest operation.

    Operations are commits, the creation and deletion of branches and tags, and changes of settings.
    A gc is not undone. Repeat the command to go back further. No array is deleted: a checkpoint
    that no branch refers to any more can still be found by its id.
    """
    undone = open_repository(ctx).undo()
    if as_json:
        output.document({"operation": undone.operation, "description": undone.description})
    else:
        output.line(f"Undone: {undone.description}")
