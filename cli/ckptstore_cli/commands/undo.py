"""`ckptstore undo`: take back an operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.operations import document, print_operations, sentence
from ckptstore_cli.options import common
from ckptstore_cli.repo import command, open_repository

if TYPE_CHECKING:
    from ckptstore import UndoPlan

LISTED = 20


@click.command()
@click.argument(
    "operation",
    required=False,
    type=click.IntRange(min=1),
    metavar="[OPERATION]",
    help="The number of the operation, as ops lists it.  [default: your newest operation]",
)
@click.option("--list", "is_list", is_flag=True, help="List the newest operations instead.")
@common
@click.pass_context
def undo(ctx: click.Context, operation: int | None, is_list: bool, as_json: bool) -> None:
    """Take back one operation, such as a deleted branch.

    The branches, tags and settings that it moved are put back. Without a number it takes back your
    newest operation that was not taken back yet: a command you ran, or a change of names and
    settings by a program of yours. The commits of a training are left alone, unless you give their
    number. Later operations stay; if one of them moved the same name, the undo is refused.

    To do an operation again, undo the undo. No array is deleted: a checkpoint that no branch refers
    to any more can be found by its id for the grace time (see gc). Arrays that a gc deleted cannot
    come back.

    \b
    Examples:
      ckptstore undo
      ckptstore undo --list
      ckptstore undo 41
    """
    repo = open_repository(ctx)
    if is_list:
        if operation is not None:
            raise click.UsageError("Give an OPERATION or --list, not both.", ctx)
        print_operations(repo.operations(limit=LISTED), as_json=as_json)
        return
    plan = repo.plan_undo(operation)
    if not as_json and plan.operation.number:  # a damaged one has none
        output.note(f"Taking back {sentence(plan.operation)}.")
        _note_others(ctx, plan)
    undone = plan.execute()
    if as_json:
        output.document(
            {
                "operation": undone.operation,
                "description": undone.description,
                "redo": undone.redo,
                "moves": document(plan.operation)["moves"],
                "left_alone": [other.number for other in plan.others],
            }
        )
    else:
        output.line(f"Undone: {undone.description}")
        output.line(f"To do it again: {command(ctx, 'undo', str(undone.redo))}")


def _note_others(ctx: click.Context, plan: UndoPlan) -> None:
    """Report the newer operations that stay."""
    if plan.others:
        newest = plan.others[0]
        count = text.count(len(plan.others), "newer operation")
        output.note(
            f"Left alone: {count} of other programs or users, the newest {sentence(newest)}. "
            f"To take that back: {command(ctx, 'undo', str(newest.number))}"
        )
