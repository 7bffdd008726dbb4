"""`ckptstore ops`: list the operations of the repository."""

from __future__ import annotations

import click

from ckptstore_cli.operations import print_operations
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    metavar="N",
    help="List only the newest N.",
)
@common
@click.pass_context
def ops(ctx: click.Context, limit: int, as_json: bool) -> None:
    """List the operations of the repository, newest first.

    Commits, undos, gcs and all changes of branches, tags and settings are operations. Each row
    shows the operation, the names it moved, and the process that did it. "ckptstore undo OPERATION"
    takes one back.

    \b
    Examples:
      ckptstore ops -n 50
    """
    print_operations(open_repository(ctx).operations(limit=limit), as_json=as_json)
