"""`ckptstore clone`: make a new repository with the checkpoints of another one."""

from __future__ import annotations

import os
import shlex

import click

from ckptstore.errors import InvalidInputError
from ckptstore_cli import output, text, transfers
from ckptstore_cli.options import common
from ckptstore_cli.repo import FOLDER, VARIABLE, named


@click.command()
@click.argument("url", metavar="URL", help="The repository to copy: a folder or URL.")
@click.argument(
    "path",
    metavar="[PATH]",
    required=False,
    type=click.Path(),
    help="The new repository.  [default: that of -r, else the last part of the URL]",
)
@click.option(
    "-b",
    "--branch",
    "branches",
    multiple=True,
    metavar="BRANCH",
    help="Copy only this branch, with its tags. May be repeated.",
)
@transfers.depth_option
@transfers.policies_option
@common
@click.pass_context
def clone(
    ctx: click.Context,
    url: str,
    path: str | None,
    branches: tuple[str, ...],
    depth: int | None,
    policies: bool,
    as_json: bool,
) -> None:
    """Make a new repository with the history of another one.

    It has the branches, tags and checkpoints, and its remote "origin" is the other one. Other
    settings stay there, and so do policies unless --policies is given. A clone that was
    interrupted goes on when it is repeated.

    \b
    Examples:
      ckptstore clone s3://bucket/run
      ckptstore clone user-runs/store copy -b main --depth 1
    """
    import ckptstore

    source = transfers.place(url) or url
    target = path or named(ctx, {}) or _last_part(source)
    repo = ckptstore.clone(
        source,
        target,
        branches=branches or None,
        depth=depth,
        policies=policies,
        by_hand=True,
        on_progress=output.progress(),
    )
    heads, tags = repo.ref_names()
    if as_json:
        origin = repo.remotes["origin"]
        output.document({"url": repo.url, "origin": origin, "branches": heads, "tags": tags})
        return
    refs = f"{text.count(len(heads), 'branch', 'branches')} and {text.count(len(tags), 'tag')}"
    output.line(f"Cloned {refs} to {repo.url}")
    if os.environ.get(VARIABLE) != repo.url:
        output.note("To use it by default:")
        output.note(f"    export {VARIABLE}={shlex.quote(repo.url)}")


def _last_part(url: str) -> str:
    """The name of a repository, as the path of the new one."""
    parts = [part for part in url.partition("?")[0].split("://")[-1].split(os.sep) if part]
    if parts and parts[-1] == FOLDER:
        parts.pop()
    if not parts or parts[-1] in (".", ".."):
        raise InvalidInputError(f"{url} has no name to use for the new repository. Name its PATH.")
    return parts[-1]
