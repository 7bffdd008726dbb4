"""`ckptstore tag`: list, create and delete tags."""

from __future__ import annotations

import click

from ckptstore_cli.options import DEFAULT_BRANCH, common, complete_refs, optional_revision_argument
from ckptstore_cli.refs import print_created, print_deleted, print_refs
from ckptstore_cli.repo import open_repository


@click.command()
@click.argument(
    "name",
    required=False,
    metavar="[NAME]",
    help="The tag to create. Without a name, all tags are listed.",
)
@optional_revision_argument(f"The checkpoint.  [default: {DEFAULT_BRANCH}]", default=DEFAULT_BRANCH)
@click.option(
    "-d",
    "--delete",
    metavar="NAME",
    shell_complete=complete_refs(branches=False),
    help="Delete this tag.",
)
@common
@click.pass_context
def tag(ctx: click.Context, name: str | None, rev: str, delete: str | None, as_json: bool) -> None:
    """List tags, create one, or delete one.

    A tag is a name that does not move. Deleting one leaves its checkpoint in the repository, and
    undo restores it.

    \b
    Examples:
      ckptstore tag v1.0 main@step=1000
      ckptstore tag -d v1.0
    """
    if delete is not None and name is not None:
        raise click.UsageError("Give a NAME to create, or -d NAME to delete, not both.", ctx)
    repo = open_repository(ctx)
    if delete is not None:
        repo.delete_tag(delete)
        print_deleted("tag", delete, as_json=as_json)
    elif name is not None:
        print_created("tag", name, repo.tag(name, rev), as_json=as_json)
    else:
        print_refs("tag", repo.tags(), as_json=as_json)
