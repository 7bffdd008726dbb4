"""`ckptstore pull`: copy branches from another repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore_cli import transfers
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from typing_extensions import Unpack


@click.command()
@transfers.remote_argument
@transfers.revs_argument(
    "[REV]...", "Branches or tags there; with --as any revision.  [default: all branches]"
)
@transfers.moving_options
@common
@click.pass_context
def pull(
    ctx: click.Context, dry_run: bool, as_json: bool, **asked: Unpack[transfers.Asked]
) -> None:
    """Copy branches with their checkpoints from another repository.

    A branch that is ahead of the other one stays. A branch that moved on in both is not pulled:
    use --as NAME, or fetch.

    \b
    Examples:
      ckptstore pull origin main
      ckptstore pull s3://bucket/run main --as theirs
      ckptstore pull --depth 10
    """
    plan = transfers.planned(ctx, open_repository(ctx).plan_pull, **asked)
    transfers.run(plan, is_pull=True, dry_run=dry_run, as_json=as_json)
