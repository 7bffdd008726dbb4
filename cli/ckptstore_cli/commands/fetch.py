"""`ckptstore fetch`: copy branches of a remote beside your own."""

from __future__ import annotations

import click

from ckptstore_cli import transfers
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@click.argument(
    "remote",
    metavar="[REMOTE]",
    required=False,
    help="The name of a remote.  [default: origin, else the only remote]",
)
@transfers.revs_argument("[BRANCH]...", "Branches there.  [default: all]")
@transfers.tags_option
@transfers.depth_option
@transfers.dry_run_option
@common
@click.pass_context
def fetch(
    ctx: click.Context,
    remote: str | None,
    revs: tuple[str, ...],
    tags: bool,
    depth: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Copy branches of a remote beside your own, as REMOTE/BRANCH.

    They follow the branches there. No other branch moves, so nothing can be in conflict.
    A push without names leaves them out.

    \b
    Examples:
      ckptstore fetch
      ckptstore diff main origin/main
    """
    plan = open_repository(ctx).plan_fetch(
        remote, branches=revs or None, tags=tags or None, depth=depth
    )
    transfers.run(plan, is_pull=True, dry_run=dry_run, as_json=as_json)
