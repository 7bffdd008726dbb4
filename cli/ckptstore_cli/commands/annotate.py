"""`ckptstore annotate`: add metrics or a message to a checkpoint after its commit."""

from __future__ import annotations

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import common, metric_option, revision_argument
from ckptstore_cli.repo import open_repository


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
    checkpoint = open_repository(ctx).annotate(rev, metrics=metrics, message=message)
    if as_json:
        output.document(documents.checkpoint(checkpoint))
    else:
        noted = ", ".join(
            part for part in (text.metrics(metrics), text.first_line(message)) if part
        )
        output.line(f"Annotated {checkpoint.id.short}: {noted}")
