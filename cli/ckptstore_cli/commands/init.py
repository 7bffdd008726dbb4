"""`ckptstore init`: make a repository."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from ckptstore_cli import output
from ckptstore_cli.options import common
from ckptstore_cli.repo import FOLDER, VARIABLE, named, nearest


@click.command()
@click.argument(
    "url",
    metavar="[PATH]",
    required=False,
    type=click.Path(),
    help=f"A folder or URL.  [default: that of -r or ${VARIABLE}, else ./{FOLDER}]",
)
@common
@click.pass_context
def init(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """Make a repository."""
    import ckptstore

    chosen = url or named(ctx, os.environ) or FOLDER
    repo = ckptstore.init(chosen)
    if as_json:
        output.document({"url": repo.url})
        return
    output.line(f"Made a repository at {repo.url}")
    if (os.environ.get(VARIABLE) or nearest(Path.cwd())) not in (chosen, repo.url):
        output.note(f"Commands find it with: export {VARIABLE}={shlex.quote(repo.url)}")
