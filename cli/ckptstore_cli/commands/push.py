"""`ckptstore push`: copy branches to another repository."""

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
    "[REV]...", "Branches or tags; with --as any revision.  [default: all branches]"
)
@transfers.moving_options
@common
@click.pass_context
def push(
    ctx: click.Context, dry_run: bool, as_json: bool, **asked: Unpack[transfers.Asked]
) -> None:
    """Copy branches with their checkpoints to another repository.

    Only what is missing there is sent, and every byte is verified. The branches and tags move by
    one operation at the end. A push that was interrupted goes on where it ended. Expired
    checkpoints, notes, and the tags in the history of the branches go with them. Policies
    stay unless --policies is given, and so do other settings.

    \b
    Examples:
      ckptstore push origin
      ckptstore push s3://bucket/run main --dry-run
      ckptstore push ../shared main@best:val_loss --as alice/best
    """
    plan = transfers.planned(ctx, open_repository(ctx).plan_push, **asked)
    transfers.run(plan, is_pull=False, dry_run=dry_run, as_json=as_json)
