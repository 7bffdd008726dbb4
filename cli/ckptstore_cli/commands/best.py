"""`ckptstore best`: the best checkpoints by a metric."""

from __future__ import annotations

import math

import click

from ckptstore.errors import InvalidInputError, NotFoundError, shown
from ckptstore.metric_names import known_names, quoting
from ckptstore_cli import documents, listing, output, text
from ckptstore_cli.options import common, complete_metrics, optional_revision_argument
from ckptstore_cli.repo import open_repository


@click.command()
@click.argument(
    "metric",
    metavar="METRIC[:MODE]",
    shell_complete=complete_metrics(),
    help="The metric. MODE is min or max, if its name does not tell whether less or more is "
    "better.",
)
@optional_revision_argument(
    "Compare only the checkpoints of this branch, not those it started from.  "
    "[default: all branches and tags]"
)
@click.option(
    "-k",
    "count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="List the N best.",
)
@click.option(
    "--ancestry",
    is_flag=True,
    help="Compare the whole history of REV, with the checkpoints its branch was started from.",
)
@common
@click.pass_context
def best(
    ctx: click.Context, metric: str, rev: str | None, count: int, ancestry: bool, as_json: bool
) -> None:
    """List the best checkpoints by a metric, the best first.

    Only stored checkpoints are listed; a better one that has expired is mentioned. NaN and infinity
    never count, and of equal values the newest comes first.

    \b
    Examples:
      ckptstore best val_loss
      ckptstore best quality:max tuned -k 5
      ckptstore best val_loss tuned --ancestry
    """
    repo = open_repository(ctx)
    name = next(iter(listing.direction(metric)), metric)
    is_own = rev is not None and not ancestry
    try:
        found = repo.log(rev, own=is_own, sort=metric)
    except InvalidInputError:  # of no direction, for one
        known = {known for checkpoint in repo.log(rev, own=is_own) for known in checkpoint.metrics}
        if ":" in name or not known or name in known or quoting(metric):
            raise
        listed = known_names(name, sorted(known), what="metrics")
        raise NotFoundError(f"No checkpoint has the metric {shown(name)}. {listed}") from None
    ranked = [c for c in found if math.isfinite(c.metrics.get(name, math.nan))]
    stored = [c for c in ranked if not c.expired][:count]
    if not stored:
        raise NotFoundError(f"No stored checkpoint has a finite {name}.")
    if ranked[0].expired and not as_json:
        better = text.checkpoint(ranked[0].id, ranked[0].step)
        value = text.metric(ranked[0].metrics[name])
        output.note(f"A better one has expired: {better}, {name} = {value}.")
    refs = documents.refs_by_id(repo)
    if as_json:
        output.document([documents.checkpoint(c, refs.get(c.id)) for c in stored])
    else:
        listing.print_checkpoints(stored, refs, first=listing.direction(metric), are_marked=False)
