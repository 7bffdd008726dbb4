"""`ckptstore log`: list checkpoints, newest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore_cli import documents, graph, output, text
from ckptstore_cli.options import common, optional_revision_argument
from ckptstore_cli.output import Column
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ckptstore import Checkpoint, Repository
    from ckptstore_cli.documents import Refs

_COLUMNS = (
    Column("id", style="yellow"),
    Column("refs", style="bold green", gives_way=2, folds=True),
    Column("step", right=True),
    Column("metrics", gives_way=4),
    Column("age", style="dim"),
    Column("new", right=True, drops=3),
    Column("message", gives_way=1),
)


@click.command()
@optional_revision_argument(
    "List the history of this checkpoint.  [default: all branches and tags]"
)
@click.option("--graph", "as_graph", is_flag=True, help="Draw the history as a graph.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), metavar="N", help="List only the newest N."
)
@common
@click.pass_context
def log(
    ctx: click.Context, rev: str | None, as_graph: bool, limit: int | None, as_json: bool
) -> None:
    """List checkpoints, newest first.

    The column "new" shows the bytes of arrays and of their lists that the commit had to store, not
    those of its own record.

    \b
    Examples:
      ckptstore log main -n 10
      ckptstore log --graph
    """
    repo = open_repository(ctx)
    checkpoints = repo.log(rev, limit=limit)
    refs = documents.refs_by_id(repo)
    if rev is None and limit is None:
        _note_missing(repo, checkpoints)
    if as_json:
        output.document(
            [documents.checkpoint(c, refs.get(c.id, documents.NO_REFS)) for c in checkpoints]
        )
    elif not checkpoints:
        output.note(_nothing(repo))
    elif as_graph:
        output.graph(_drawing(checkpoints, refs))
    else:
        expired = {number for number, c in enumerate(checkpoints) if c.expired}
        output.table(_COLUMNS, [_row(c, refs) for c in checkpoints], dimmed=expired)


def _note_missing(repo: Repository, checkpoints: Sequence[Checkpoint]) -> None:
    """Report what is missing of the whole history, as in a copy that was cut short."""
    known = {c.id for c in checkpoints}
    for checkpoint in checkpoints:
        for parent in checkpoint.parents:
            if parent not in known:
                output.note(
                    f"Checkpoint {parent.short}, from which {checkpoint.id.short} was made, is "
                    "missing, so those before it are not listed. See ckptstore verify."
                )
    if lost := repo.lost():
        output.note(
            f"{text.count(len(lost), 'checkpoint')} on no branch, whose operations are missing. "
            f"The newest is {lost[0].id.short}. See ckptstore verify."
        )


def _nothing(repo: Repository) -> str:
    """Return why no checkpoint is listed: none was committed, or no ref reaches those there are."""
    left = repo.usage().unreachable
    if not left:
        return "No checkpoints yet. Commit one with: ckptstore commit FILE"
    reached = f"No branch and no tag reaches the {text.count(left, 'checkpoint')} there"
    return f"{reached}. ckptstore undo restores what was deleted last; ckptstore verify lists them."


def _row(checkpoint: Checkpoint, refs: Mapping[str, Refs]) -> tuple[str, ...]:
    return (
        checkpoint.id.short,
        str(refs.get(checkpoint.id, "")),
        text.step(checkpoint.step),
        text.metrics(checkpoint.metrics),
        text.age(checkpoint.created, output.now()),
        "expired" if checkpoint.expired else text.size(checkpoint.new_bytes),
        text.first_line(checkpoint.message),
    )


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
