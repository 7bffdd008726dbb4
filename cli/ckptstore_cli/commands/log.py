"""`ckptstore log`: list checkpoints, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore.errors import CkptStoreError
from ckptstore_cli import documents, fields, graph, listing, output, text
from ckptstore_cli.options import common, complete_metrics, optional_revision_argument
from ckptstore_cli.refs import RECENT
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ckptstore import Checkpoint, Repository
    from ckptstore_cli.documents import Refs

_EXPIRED = "Expired checkpoints are not listed; --all lists them too."


@click.command()
@optional_revision_argument(
    "List the history of this checkpoint.  [default: all branches and tags]"
)
@click.option("--graph", "as_graph", is_flag=True, help="Draw the history as a graph.")
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="List only N.")
@click.option(
    "--where",
    metavar="CONDITION",
    shell_complete=complete_metrics(),
    help="List only checkpoints that match this condition: comparisons (< <= > >= = !=) of step, "
    "branch, message, meta.KEY and metrics, joined by and, or and parentheses. The name of a "
    "metric may be quoted.",
)
@click.option(
    "--sort",
    metavar="METRIC[:MODE]",
    shell_complete=complete_metrics(),
    help="List the best by a metric first, or the highest step for `step`. MODE is min or max, for "
    "a metric whose name does not tell whether less or more is better.",
)
@click.option("--all", "with_expired", is_flag=True, help="List expired checkpoints too.")
@click.option("--long", "is_long", is_flag=True, help="Show everything recorded about each.")
@common
@click.pass_context
def log(
    ctx: click.Context,
    rev: str | None,
    as_graph: bool,
    limit: int | None,
    where: str | None,
    sort: str | None,
    with_expired: bool,
    is_long: bool,
    as_json: bool,
) -> None:
    """List checkpoints, newest first.

    Each metric has a column, with 4 significant digits; --long and --json show all digits. A star
    marks the best listed checkpoint of a branch, if the metric's name tells whether less or more is
    better. The column "new" shows the bytes of arrays and of their lists that the commit had to
    store, without its manifest. --graph and --json include expired checkpoints.

    \b
    Examples:
      ckptstore log main -n 10
      ckptstore log --where "val_loss < 0.2 and step > 1000" --sort val_acc
      ckptstore log --graph
    """
    if as_graph and (where or sort or is_long):
        raise click.UsageError("--graph draws the history: without --where, --sort, --long.", ctx)
    repo = open_repository(ctx)
    expired = with_expired or as_graph or as_json
    checkpoints = repo.log(rev, limit=limit, expired=expired, where=where, sort=sort)
    refs = documents.refs_by_id(repo)
    is_whole = limit is None and where is None
    if rev is None and is_whole:
        _note_missing(repo, checkpoints)
    if as_json:
        output.document(
            [documents.checkpoint(c, refs.get(c.id, documents.NO_REFS)) for c in checkpoints]
        )
    elif not checkpoints:
        output.note(_nothing(repo) if where is None else "No checkpoint matches.")
        if where is not None and not expired and repo.log(rev, limit=1, expired=True, where=where):
            output.note(_EXPIRED)
    elif as_graph:
        output.graph(_drawing(checkpoints, refs))
    elif is_long:
        for place, checkpoint in enumerate(checkpoints):
            if place:
                output.line()
            known = refs.get(checkpoint.id, documents.NO_REFS)
            output.fields(fields.of_checkpoint(checkpoint, known))
    else:
        listing.print_checkpoints(checkpoints, refs, first=listing.direction(sort))
        if not expired and limit is None and _hides(repo, rev, where, checkpoints):
            output.footer(_EXPIRED)


def _hides(
    repo: Repository, rev: str | None, where: str | None, checkpoints: Sequence[Checkpoint]
) -> bool:
    """Whether expired checkpoints would be listed beside these."""
    if where is None:
        return bool(_parents_not_among(checkpoints))
    return len(repo.log(rev, expired=True, where=where)) > len(checkpoints)


def _note_missing(repo: Repository, checkpoints: Sequence[Checkpoint]) -> None:
    """Report what is missing of the whole history, as in a copy that was cut short."""
    for parent, checkpoint in _parents_not_among(checkpoints).items():
        try:
            repo.resolve(parent)  # it has expired, and is not listed
        except CkptStoreError:
            output.note(
                f"Checkpoint {parent[:8]}, from which {checkpoint.id.short} was made, is "
                "missing, so those before it are not listed. See ckptstore verify."
            )
    if lost := repo.lost():
        output.note(
            f"{text.count(len(lost), 'checkpoint')} on no branch, whose operations are missing. "
            f"The newest is {lost[0].id.short}. See ckptstore verify."
        )


def _parents_not_among(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """The parents that are not listed, each with a checkpoint made from it."""
    listed = {c.id for c in checkpoints}
    return {id: c for c in checkpoints for id in c.parents if id not in listed}


def _nothing(repo: Repository) -> str:
    """Return why no checkpoint is listed: none was committed, or no ref reaches those there are."""
    left = repo.usage().unreachable
    if not left:
        return "No checkpoints yet. Commit one with: ckptstore commit FILE"
    reached = f"No branch and no tag reaches the {text.count(left, 'checkpoint')} there"
    moved = next((info for info in repo.operations(limit=RECENT) if info.moves), None)
    back = f"To take back {moved}: ckptstore undo {moved.number}. " if moved else ""
    return f"{reached}. {back}ckptstore verify lists them."


def _drawing(checkpoints: Sequence[Checkpoint], refs: Mapping[str, Refs]) -> list[tuple[str, str]]:
    by_id: dict[str, Checkpoint] = {c.id: c for c in checkpoints}
    lines = graph.draw({id: c.parents for id, c in by_id.items()})
    return [(line, "" if id is None else _sentence(by_id[id], refs)) for line, id in lines]


def _sentence(checkpoint: Checkpoint, refs: Mapping[str, Refs]) -> str:
    names = refs.get(checkpoint.id)
    parts = (
        checkpoint.id.short,
        f"({names})" if names else "",
        "" if checkpoint.step is None else f"step {checkpoint.step}",
        text.metrics(checkpoint.metrics),
        text.age(checkpoint.created, output.now()),
        "expired" if checkpoint.expired else "",
        text.first_line(checkpoint.message),
    )
    return "  ".join(part for part in parts if part)
