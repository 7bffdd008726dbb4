"""`ckptstore follow`: wait for the checkpoints of a branch."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import click

from ckptstore.errors import NotFoundError, shown
from ckptstore.metric_names import known_names
from ckptstore_cli import documents, output
from ckptstore_cli.children import environment, filled
from ckptstore_cli.fields import one_line
from ckptstore_cli.options import DEFAULT_BRANCH, common, complete_refs
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository


@click.command()
@click.argument(
    "branch",
    metavar="[BRANCH]",
    required=False,
    default=DEFAULT_BRANCH,
    shell_complete=complete_refs(tags=False),
    help=f"The branch. It need not exist yet.  [default: {DEFAULT_BRANCH}]",
)
@click.option(
    "--unevaluated",
    metavar="METRIC",
    help="Only checkpoints without this metric: the existing ones, oldest first, then new ones.",
)
@click.option(
    "--exec",
    "command",
    metavar="COMMAND",
    help="Run this command in a shell for each checkpoint, with its {id} and {step} filled in. Its "
    "environment has CKPTSTORE_REPO, the repository, and CKPTSTORE_REV, the id.",
)
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N checkpoints."
)
@click.option("--no-wait", is_flag=True, help="Stop instead of waiting for a new checkpoint.")
@click.option(
    "--poll",
    "poll_seconds",
    type=click.FloatRange(min=0.01, max=86_400),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two checks for new checkpoints.",
)
@common
@click.pass_context
def follow(
    ctx: click.Context,
    branch: str,
    unevaluated: str | None,
    command: str | None,
    limit: int | None,
    no_wait: bool,
    poll_seconds: float,
    as_json: bool,
) -> None:
    """Print the checkpoints of a branch as they come.

    It begins with the newest. Each checkpoint is one line; with --json, a document on a line of its
    own. If a command fails, this is reported, and the exit code is 1 in the end.

    \b
    Examples:
      ckptstore follow main --exec 'reload.sh {id}'
      ckptstore follow main --unevaluated val_acc --exec 'python evaluate.py {id}'
    """
    repo = open_repository(ctx)
    branches = sorted(repo.ref_names()[0])
    if no_wait and branch not in branches:
        known = known_names(branch, branches, what="branches")
        raise NotFoundError(f"There is no branch {shown(branch)}. {known}")
    failed = count = 0
    with repo.follow(branch, unevaluated=unevaluated, poll_seconds=poll_seconds) as follower:
        look = follower.poll if no_wait else follower.wait
        while (checkpoint := look()) is not None:
            _print(checkpoint, as_json=as_json)
            if command is not None:
                failed += not _ran(command, checkpoint, repo)
            count += 1
            if count == limit:
                break
    if failed:
        ctx.exit(1)


def _print(checkpoint: Checkpoint, *, as_json: bool) -> None:
    """Print a checkpoint at once, as another program may read it from a pipe."""
    if as_json:
        output.line(json.dumps(output.finite(documents.checkpoint(checkpoint)), allow_nan=False))
    else:
        output.line(one_line(checkpoint))
    output.flush()


def _ran(command: str, checkpoint: Checkpoint, repo: Repository) -> bool:
    """Run a command for a checkpoint, and return whether it succeeded."""
    whole = filled(command, checkpoint)
    env = environment(repo, checkpoint)
    code = subprocess.run(whole, shell=True, check=False, env=env).returncode  # noqa: S602 - asked
    if code:
        output.note(f"The command for {checkpoint.id.short} failed with exit code {code}: {whole}")
    return not code
