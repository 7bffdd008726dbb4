"""`ckptstore tag`: list, create and delete tags."""

from __future__ import annotations

import click

from ckptstore_cli import refs
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@refs.ref_arguments(kind="tag", plural="tags", rev="The checkpoint.")
@common
@click.pass_context
def tag(ctx: click.Context, name: str | None, rev: str, delete: str | None, as_json: bool) -> None:
    """List tags, create one, or delete one.

    A tag is a name that does not move. Deleting one leaves its checkpoint in the repository, and
    prints the command that brings it back.

    \b
    Examples:
      ckptstore tag v1.0 main@step=1000
      ckptstore tag -d v1.0
    """
    refs.check_one_ref(ctx, name=name, delete=delete)
    repo = open_repository(ctx)
    if delete is not None:
        refs.print_deleted("tag", delete, repo.delete_tag(delete), as_json=as_json)
    elif name is not None:
        refs.print_created("tag", name, repo.tag(name, rev), as_json=as_json)
    else:
        refs.print_refs("tag", repo.tags(), as_json=as_json)
