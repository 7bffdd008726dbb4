"""`ckptstore pull`: copy branches from another repository."""

from __future__ import annotations

import click

from ckptstore_cli import transfers
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@transfers.remote_argument
@transfers.revs_argument(
    "[REV]...", "Branches or tags there; with --as any revision.  [default: all branches]"
)
@transfers.moving_options
@common
@click.pass_context
def pull(
    ctx: click.Context,
    remote: str | None,
    revs: tuple[str, ...],
    name: str | None,
    tags: bool,
    depth: int | None,
    force: bool,
    mirror: bool,
    dry_run: bool,
    as_json: bool,
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
    branches = transfers.branches_of(ctx, revs, name, mirror=mirror)
    plan = open_repository(ctx).plan_pull(
        transfers.place(remote),
        branches=branches,
        tags=tags or None,
        depth=depth,
        force=force,
        mirror=mirror,
    )
    transfers.run(plan, is_pull=True, dry_run=dry_run, as_json=as_json)
