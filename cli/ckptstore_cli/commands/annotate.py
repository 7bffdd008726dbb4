"""`ckptstore annotate`: add metrics or a message to a checkpoint after its commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import common, metric_option, revision_argument
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository


@click.command()
@revision_argument("The checkpoint.")
@metric_option
@click.option("-m", "--message", default="", metavar="TEXT", help="A message about the checkpoint.")
@common
@click.pass_context
def annotate(
    ctx: click.Context, rev: str, metrics: dict[str, float], message: str, as_json: bool
) -> None:
    """Add metrics or a message to a checkpoint after its commit.

    They are stored in a note; the checkpoint does not change. The newest value of a metric counts,
    for best:, for policies and in the log. undo takes a note back.

    \b
    Examples:
      ckptstore annotate main~2 -M val_acc=0.91
      ckptstore annotate best:val_acc -m "sent to the test server"
    """
    if not metrics and not message:
        raise click.UsageError("Give a metric (-M NAME=NUMBER), a message (-m TEXT), or both.", ctx)
    repo = open_repository(ctx)
    checkpoint = repo.annotate(rev, metrics=metrics, message=message)
    if as_json:
        output.document(documents.checkpoint(checkpoint))
    else:
        noted = ", ".join(
            part for part in (text.metrics(metrics), text.first_line(message)) if part
        )
        output.line(f"Annotated {checkpoint.id.short}: {noted}")
        for name in metrics:
            _note_passed_over(repo, checkpoint, name)


def _note_passed_over(repo: Repository, checkpoint: Checkpoint, metric: str) -> None:
    """Name older checkpoints without the metric, which no longer wait for it."""
    branch = checkpoint.branch
    policy = repo.retention(branch) or repo.retention()
    if branch is None or policy is None or metric not in policy.metrics:
        return
    older = [
        verdict.id.short
        for verdict in repo.verdicts()
        if not verdict.kept
        and branch in verdict.branches
        and metric not in verdict.manifest.metrics
    ]
    if older:
        output.note(
            f"{text.count(len(older), 'checkpoint')} of {branch} without {metric} would expire at "
            f"the next gc, since a newer one has it: {text.some(older)}. To keep one, add its "
            f"{metric} or a tag."
        )
