"""What `branch` and `tag` share: their arguments, and the output about refs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ckptstore_cli import documents, listing, output, text
from ckptstore_cli.options import DEFAULT_BRANCH, complete_refs, optional_revision_argument
from ckptstore_cli.output import Column
from ckptstore_cli.repo import command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from ckptstore import Checkpoint, Digest, OperationInfo, Repository
    from ckptstore_cli.options import Command

RECENT = 100  # operations to search for a deletion; others may have appended some since
_LOST = {"branch": "its own policy", "tag": "its end"}


def ref_arguments(*, kind: str, plural: str, rev: str) -> Callable[[Command], Command]:
    """The arguments NAME and REV, and the option --delete. `rev`: the help of REV."""
    name = click.argument(
        "name",
        required=False,
        metavar="[NAME]",
        help=f"The {kind} to create. Without a name, all {plural} are listed.",
    )
    at = optional_revision_argument(f"{rev}  [default: {DEFAULT_BRANCH}]", default=DEFAULT_BRANCH)
    delete = click.option(
        "-d",
        "--delete",
        multiple=True,
        metavar="NAME",
        shell_complete=complete_refs(branches=kind == "branch", tags=kind == "tag"),
        callback=_one_name,
        help=f"Delete this {kind}.",
    )
    return lambda function: name(at(delete(function)))


def _one_name(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> str | None:
    """Refuse a second name: each deletion is an operation of its own, which undo takes back."""
    if len(names) > 1:
        commands = ", then ".join(f"{ctx.command_path} -d {name}" for name in names)
        raise click.UsageError(
            f"-d deletes one at a time, and nothing was deleted: {commands}.", ctx
        )
    return names[0] if names else None


def check_one_ref(ctx: click.Context, *, name: str | None, delete: str | None) -> None:
    """Refuse to create and delete at once."""
    if delete is not None and name is not None:
        raise click.UsageError(
            "Give a NAME to create, or -d NAME to delete, not both; -d deletes one at a time.", ctx
        )


def print_refs(
    kind: str,
    refs: Mapping[str, Checkpoint],
    *,
    until: Mapping[str, datetime] | None = None,
    as_json: bool,
) -> None:
    """List all refs of a kind with their checkpoints. until: the ends of leases, by name."""
    ends = until or {}
    if as_json:
        output.document(
            [
                {
                    "name": name,
                    **({"until": ends[name].isoformat()} if name in ends else {}),
                    **documents.checkpoint(c),
                }
                for name, c in refs.items()
            ]
        )
    elif not refs:
        output.note(f"There is no {kind} yet.")
    else:
        checkpoints = list(refs.values())
        metrics = replace(listing.Metrics.of(checkpoints), best={})  # no mark: all are heads
        columns = (
            Column(kind, style="bold green", gives_way=3, folds=True),
            Column("id", style="yellow"),
            Column("step", right=True),
            *metrics.columns(drops=5),
            Column("age", style="dim", drops=4),
            *([Column("left")] if ends else []),
            Column("message", gives_way=1, drops=2),
        )
        rows = [
            (
                name,
                c.id.short,
                text.step(c.step),
                *metrics.cells(position, c),
                text.age(c.created, output.now()).removesuffix(" ago"),
                *([_left(ends.get(name))] if ends else []),
                text.first_line(c.message),
            )
            for position, (name, c) in enumerate(refs.items())
        ]
        metrics.explain(output.table(columns, rows))


def print_created(kind: str, name: str, checkpoint: Checkpoint, *, as_json: bool) -> None:
    """Report a new ref and its checkpoint."""
    if as_json:
        output.document({"name": name, **documents.checkpoint(checkpoint)})
    else:
        at = text.checkpoint(checkpoint.id, checkpoint.step)
        output.line(f"Created {kind} {name} at checkpoint {at}.")


def note_training(repo: Repository, branch: str, effect: str) -> None:
    """Say that a training saves to a branch, if one does, and how a command affects it."""
    if holder := repo.holder(branch):
        output.note(f"A training saves to {branch}: {holder}. {effect}")


def print_deleted(
    ctx: click.Context, repo: Repository, kind: str, name: str, id: Digest, *, as_json: bool
) -> None:
    """Report a deleted ref, and the command that brings it back, even after other operations.

    If the ref had more than its checkpoint, an undo of the operation brings back both.
    """
    deletion = _deletion(repo, kind, name)
    if as_json:
        operation = None if deletion is None else deletion.number
        output.document({"deleted": name, "id": id, "operation": operation})
        return
    again = command(ctx, kind, name, id.short)
    lost = _LOST[kind]
    if deletion is None or len(deletion.moves or ()) == 1:
        output.line(f"Deleted {kind} {name}. To bring it back:")
        output.line(f"  {again}")
    else:
        output.line(f"Deleted {kind} {name} and {lost}. To bring both back:")
        output.line(f"  {command(ctx, 'undo', str(deletion.number))}")
        output.line(f"To bring the {kind} back without {lost}:")
        output.line(f"  {again}")


def _deletion(repo: Repository, kind: str, name: str) -> OperationInfo | None:
    """Find the operation that has just deleted a ref."""
    for info in repo.operations(limit=RECENT):
        if any((m.kind, m.name, m.after) == (kind, name, None) for m in info.moves or ()):
            return info
    return None


def _left(until: datetime | None) -> str:
    """The remaining time of a lease."""
    if until is None:
        return ""
    return text.duration((until - output.now()).total_seconds())
