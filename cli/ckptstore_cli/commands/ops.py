"""`ckptstore ops`: list what was done to the repository."""

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

    Operations are commits, the creation, change and deletion of branches and tags, changes of
    settings, undos and gcs. Each row shows what was done, what it moved, and which process did it.
    "ckptstore undo OPERATION" takes one back.

    \b
    Examples:
      ckptstore ops -n 50
    """
    print_operations(open_repository(ctx).operations(limit=limit), as_json=as_json)
