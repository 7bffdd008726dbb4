"""`ckptstore remote`: names for other repositories."""

from __future__ import annotations

import click

from ckptstore_cli import output, transfers
from ckptstore_cli.options import common
from ckptstore_cli.output import Column
from ckptstore_cli.repo import open_repository


@click.group()
def remote() -> None:
    """Name other repositories, for push, pull and fetch.

    The names are kept in this repository and never copied to another one. "origin" is used where
    no other is named.
    """


@remote.command("add")
@click.argument("name", metavar="NAME", help="Such as origin.")
@click.argument("url", metavar="URL", help="A folder or URL. It must not hold credentials.")
@common
@click.pass_context
def add(ctx: click.Context, name: str, url: str, as_json: bool) -> None:
    """Give another repository a name, or move a name to another repository.

    \b
    Examples:
      ckptstore remote add origin s3://bucket/run
    """
    repo = open_repository(ctx)
    repo.set_remote(name, transfers.place(url) or url)
    saved = repo.remotes[name]
    if as_json:
        output.document({"name": name, "url": saved})
        return
    output.line(f"Remote {name} is {saved}")


@remote.command("remove")
@click.argument("name", metavar="NAME", help="An existing remote.")
@common
@click.pass_context
def remove(ctx: click.Context, name: str, as_json: bool) -> None:
    """Remove a name. The other repository stays as it is."""
    open_repository(ctx).set_remote(name, None)
    if as_json:
        output.document({"removed": name})
        return
    output.line(f"Removed remote {name}")


@remote.command("list")
@common
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List the remotes with their URLs, and how far mirrors of trainings are."""
    repo = open_repository(ctx)
    remotes = repo.remotes
    if as_json:
        output.document([{"name": name, "url": url} for name, url in remotes.items()])
        return
    for branch, entry in repo.mirrors.items():
        newest = None if entry.id is None else repo.resolve(entry.id)
        step = "" if newest is None or newest.step is None else f", at step {newest.step}"
        far = "nothing yet" if newest is None else f"up to {newest.id.short}{step}"
        output.note(f"The mirror of {branch} is {entry.place}: {far}")
    if not remotes:
        output.note("There is no remote yet. Add one with: ckptstore remote add origin URL")
        return
    columns = (Column("remote", style="green"), Column("url", folds=True, gives_way=1))
    output.table(columns, remotes.items())
