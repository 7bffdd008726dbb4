"""`ckptstore branch`: list, create and delete branches."""

from __future__ import annotations

import click

from ckptstore_cli import refs
from ckptstore_cli.options import common, pairs, selection_options
from ckptstore_cli.repo import open_repository


@click.command()
@refs.ref_arguments(kind="branch", plural="branches", rev="The checkpoint it starts from.")
@selection_options
@click.option(
    "--rename",
    multiple=True,
    metavar="OLD=NEW",
    callback=pairs(str),
    help="Rename arrays: OLD is a regular expression that has to match a whole path, and NEW may "
    "refer to its groups as \\1. May be repeated; the first match applies.",
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
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rename: dict[str, str],
    keep_step: bool,
    keep_metrics: bool,
    as_json: bool,
) -> None:
    """List branches, create one, or delete one.

    Creating a branch copies nothing. Deleting one leaves its checkpoints in the repository, and
    prints the command that brings it back.

    With --include, --exclude or --rename, the new branch starts with a derived checkpoint of its
    own: it contains the selected arrays under their new paths, and its parent is the checkpoint at
    REV. No array is read or written for it either.

    \b
    Examples:
      ckptstore branch tuned best:val_loss
      ckptstore branch new --include model --rename 'model/old\\.(.*)=model/new.\\1'
      ckptstore branch -d tuned
    """
    refs.check_one_ref(ctx, name=name, delete=delete)
    if name is None and (include or exclude or rename or keep_step or keep_metrics):
        raise click.UsageError("These options need the NAME of a branch to create.", ctx)
    repo = open_repository(ctx)
    if delete is not None:
        refs.print_deleted("branch", delete, repo.delete_branch(delete), as_json=as_json)
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
