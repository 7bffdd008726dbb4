"""`ckptstore init`: create a repository."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

import click

from ckptstore.errors import CkptStoreError
from ckptstore_cli import output, text
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
    """Create a repository."""
    import ckptstore

    place = url or named(ctx, os.environ) or FOLDER
    repo = ckptstore.init(place)
    if as_json:
        output.document({"url": repo.url})
        return
    with suppress(CkptStoreError):
        if found := repo.log():
            checkpoints = text.count(len(found), "checkpoint")
            output.line(f"Made ckptstore.json anew at {repo.url}, with the {checkpoints} there.")
            return
    output.line(f"Created a repository at {repo.url}")
    if _default() not in (place, repo.url):
        output.note("To use it by default:")
        output.note(f"    export {VARIABLE}={shlex.quote(repo.url)}")


def _default() -> str | None:
    """The repository that is used where none is named."""
    with suppress(FileNotFoundError):  # the working folder is gone
        return os.environ.get(VARIABLE) or nearest(Path.cwd())
    return None
