"""`ckptstore tag`: list, create and delete tags."""

from __future__ import annotations

import click

from ckptstore_cli import refs
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository


@click.command()
@refs.ref_arguments(kind="tag", plural="tags", rev="The checkpoint.")
@click.option(
    "--ttl",
    metavar="TIME",
    help="Make a lease: a tag that ends after this time, such as 90min, 6h or 2d.",
)
@common
@click.pass_context
def tag(
    ctx: click.Context,
    name: str | None,
    rev: str,
    delete: str | None,
    ttl: str | None,
    as_json: bool,
) -> None:
    """List tags, create one, or delete one.

    A tag is a name that no commit moves. Deleting one leaves its checkpoint in the repository, and
    prints the command that brings it back.

    \b
    Examples:
      ckptstore tag v1.0 main@step=1000
      ckptstore tag reading latest --ttl 6h
      ckptstore tag -d v1.0
    """
    refs.check_one_ref(ctx, name=name, delete=delete)
    if name is None and ttl is not None:
        raise click.UsageError("--ttl needs the NAME of a tag to create.", ctx)
    repo = open_repository(ctx)
    if delete is not None:
        refs.print_deleted(ctx, repo, "tag", delete, repo.delete_tag(delete), as_json=as_json)
    elif name is not None:
        refs.print_created("tag", name, repo.tag(name, rev, ttl=ttl), as_json=as_json)
    else:
        refs.print_refs("tag", repo.tags(), until=repo.leases(), as_json=as_json)
