"""`ckptstore branch`: list, make and delete branches."""

from __future__ import annotations

import click

from ckptstore_cli.options import DEFAULT_BRANCH, common, complete_refs, optional_revision_argument
from ckptstore_cli.refs import print_deleted, print_made, print_refs
from ckptstore_cli.repo import open_repository


@click.command()
@click.argument(
    "name", required=False, metavar="[NAME]", help="The branch to make; none lists all branches."
)
@optional_revision_argument(
    f"Where it begins.  [default: {DEFAULT_BRANCH}]", default=DEFAULT_BRANCH
)
@click.option(
    "-d",
    "--delete",
    metavar="NAME",
    shell_complete=complete_refs(tags=False),
    help="Delete this branch.",
)
@common
@click.pass_context
def branch(
    ctx: click.Context, name: str | None, rev: str, delete: str | None, as_json: bool
) -> None:
    """List branches, make one, or delete one.

    Making a branch copies nothing. Deleting one leaves its checkpoints in the repository, and
    undo brings it back.

    \b
    Examples:
      ckptstore branch tuned best:val_loss
      ckptstore branch -d tuned
    """
    if delete is not None and name is not None:
        raise click.UsageError("Give a NAME to make, or -d NAME to delete, not both.", ctx)
    repo = open_repository(ctx)
    if delete is not None:
        repo.delete_branch(delete)
        print_deleted("branch", delete, as_json=as_json)
    elif name is not None:
        print_made("branch", name, repo.branch(name, rev), as_json=as_json)
    else:
        print_refs("branch", repo.branches(), as_json=as_json)
