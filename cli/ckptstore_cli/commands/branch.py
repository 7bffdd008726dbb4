"""`ckptstore branch`: list, create and delete branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ckptstore_cli import documents, output, refs, text
from ckptstore_cli.options import common, complete_refs, rename_option, selection_options
from ckptstore_cli.repo import command, open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Digest


@click.command()
@refs.ref_arguments(kind="branch", plural="branches", rev="The checkpoint it starts from.")
@selection_options
@rename_option("Rename arrays")
@click.option(
    "-m",
    "--move",
    metavar="OLD NEW",
    shell_complete=complete_refs(tags=False),
    help="Rename the branch OLD to NEW.",
)
@click.option(
    "--reset",
    metavar="NAME REV",
    shell_complete=complete_refs(tags=False),
    help="Move the branch NAME to the checkpoint REV.",
)
@click.option("--keep-step", is_flag=True, help="Give a derived checkpoint the step of its source.")
@click.option(
    "--keep-metrics", is_flag=True, help="Give a derived checkpoint the metrics of its source."
)
@common
@click.pass_context
def branch(
    ctx: click.Context,
    name: str | None,
    rev: str,
    delete: str | None,
    move: str | None,
    reset: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rename: dict[str, str],
    keep_step: bool,
    keep_metrics: bool,
    as_json: bool,
) -> None:
    """List branches; create, rename, move or delete one.

    Creating a branch copies nothing. Moving or deleting one prints the command that brings it back;
    its checkpoints stay for the grace time, a day by default (see gc).

    With --include, --exclude or --rename, the new branch starts with a derived checkpoint of its
    own: it contains the selected arrays under their new paths, and its parent is the checkpoint at
    REV. No array is read or written for it either.

    \b
    Examples:
      ckptstore branch tuned best:val_loss
      ckptstore branch new --include model --rename 'model/old\\.(.*)=model/new.\\1'
      ckptstore branch -m tuned tuned-on-digits
      ckptstore branch --reset tuned tuned~3
      ckptstore branch -d tuned
    """
    is_derived = bool(include or exclude or rename or keep_step or keep_metrics)
    if move is not None or reset is not None:
        _check_alone(ctx, name, delete, move, reset, is_derived=is_derived)
        repo, other = open_repository(ctx), str(name)
        if move is not None:
            _print_renamed(move, other, repo.rename_branch(move, other), as_json=as_json)
            refs.note_training(repo, move, f"Its next save begins {move} again.")
        elif reset is not None:
            old = repo.reset_branch(reset, other)
            _print_reset(ctx, reset, old, repo.resolve(reset), as_json=as_json)
            refs.note_training(repo, reset, "Its next save fails, as the branch has moved.")
        return
    refs.check_one_ref(ctx, name=name, delete=delete)
    if name is None and is_derived:
        raise click.UsageError("These options need the NAME of a branch to create.", ctx)
    repo = open_repository(ctx)
    if delete is not None:
        id = repo.delete_branch(delete)
        refs.print_deleted(ctx, repo, "branch", delete, id, as_json=as_json)
        refs.note_training(repo, delete, "Its next save begins the branch again.")
    elif name is not None:
        kept = {"step": keep_step, "metrics": keep_metrics}
        checkpoint = repo.branch(
            name,
            rev,
            include=include or None,
            exclude=exclude or None,
            rename=rename or None,
            reset=[field for field, is_kept in kept.items() if not is_kept],
        )
        refs.print_created("branch", name, checkpoint, as_json=as_json)
    else:
        refs.print_refs("branch", repo.branches(), as_json=as_json)


def _check_alone(
    ctx: click.Context,
    name: str | None,
    delete: str | None,
    move: str | None,
    reset: str | None,
    *,
    is_derived: bool,
) -> None:
    """Refuse to rename or reset without the second argument, or together with anything else."""
    is_extra = ctx.get_parameter_source("rev") is ParameterSource.COMMANDLINE
    usage = "-m OLD NEW" if reset is None else "--reset NAME REV"
    if name is None or is_extra or delete is not None or is_derived or (move and reset):
        raise click.UsageError(f"Give {usage}, and nothing else.", ctx)


def _print_renamed(old: str, new: str, id: Digest, *, as_json: bool) -> None:
    if as_json:
        output.document({"renamed": old, "name": new, "id": id})
    else:
        output.line(f"Renamed branch {old} to {new}, at checkpoint {id.short}.")


def _print_reset(
    ctx: click.Context, name: str, old: Digest, checkpoint: Checkpoint, *, as_json: bool
) -> None:
    """Report a branch that moved, and the command that moves it back."""
    if as_json:
        output.document({"name": name, "was": old, **documents.checkpoint(checkpoint)})
        return
    at = text.checkpoint(checkpoint.id, checkpoint.step)
    output.line(f"Reset branch {name} to checkpoint {at}.")
    output.line(f"It was at {old.short}. To move it back:")
    output.line(f"  {command(ctx, 'branch', '--reset', name, old.short)}")
