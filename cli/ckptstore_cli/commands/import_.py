"""`ckptstore import`: import a folder of checkpoint files as the history of a branch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import branch_option, common, rename_option
from ckptstore_cli.output import PATH_WIDTH_MIN, Column
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Import, ImportPlan

EXIT_REFUSED = 1
_COLUMNS = (
    Column("file", gives_way=2, shortens=True, width_min=PATH_WIDTH_MIN),
    Column("step", right=True),
    Column("metrics", gives_way=1),
    Column("size", right=True),
    Column("time", drops=1),
    Column("plan", style="bold"),
)


@click.command("import")
@click.argument(
    "templates",
    nargs=-1,
    required=True,
    metavar="TEMPLATE",
    help="The files, as in 'old/ckpt_{step}.pt'.",
)
@click.option(
    "--pattern",
    metavar="TEMPLATE",
    help="The names in a folder: import old --pattern 'ckpt_{step}.pt'.",
)
@branch_option("The branch to import to.")
@click.option(
    "--metrics",
    "metrics",
    type=click.Path(exists=True),
    metavar="FILE",
    help="Metrics of each step, epoch or file: CSV with a header, JSON lines, trainer_state.json, "
    "or an event file of TensorBoard or a folder of them.",
)
@rename_option("Rename arrays")
@click.option("--dry-run", is_flag=True, help="Show the plan, and import nothing.")
@common
@click.pass_context
def import_(
    ctx: click.Context,
    templates: tuple[str, ...],
    pattern: str | None,
    branch: str,
    metrics: str | None,
    rename: dict[str, str],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Import a folder of checkpoint files as the history of a branch.

    In TEMPLATE, {step}, {epoch} or the name of a metric in braces stands for a number, * and ? for
    text. Quote it for the shell. The order is that of the steps. Steps and metrics come from the
    names, from inside the files (keys such as step, epoch, val_loss), from the trainer_state.json
    of Hugging Face, and from --metrics. Each checkpoint gets the time of its file. Files imported
    before are skipped, so an interrupted import can be run again. Given a folder, the command
    proposes templates for the names in it.

    \b
    Examples:
      ckptstore import 'old/ckpt_{step}.pt' --dry-run
      ckptstore import 'logs/epoch={epoch}-val_loss={val_loss}.ckpt' -b run-3
      ckptstore import 'out/checkpoint-{step}' --metrics metrics.csv
      ckptstore import old --pattern 'ckpt_{step}.pt' --metrics runs/tensorboard
    """
    from ckptstore import plan_import

    if len(templates) > 1:
        raise click.UsageError(
            "Quote the template, so that the shell does not expand it, as in 'old/*.pt'.", ctx
        )
    repo = open_repository(ctx)
    plan = plan_import(
        repo,
        templates[0],
        pattern=pattern,
        branch=branch,
        metrics=metrics,
        rename=rename or None,
    )
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return
    failed: dict[str, str] = {}
    made = plan.execute(
        done=None if as_json else _print_one,
        failed=lambda item, error: failed.setdefault(item.name, str(error)),
    )
    if as_json:
        output.document(
            {
                **_document(plan),
                "made": [documents.checkpoint(checkpoint) for checkpoint in made],
                "failed": failed,
            }
        )
    else:
        for item in plan.imports:
            if item.name in failed:
                _print_refused(item, failed[item.name])
        _print_notes(plan)
        new = text.size(sum(checkpoint.new_bytes for checkpoint in made))
        skipped = sum(item.checkpoint is not None for item in plan.imports)
        there = f", {skipped} there before" if skipped else ""
        output.line(
            f"Imported {text.count(len(made), 'checkpoint')} to {branch}, {new} new{there}."
        )
    if plan.refused or failed:
        ctx.exit(EXIT_REFUSED)


def _print_one(item: Import, checkpoint: Checkpoint) -> None:
    output.line(f"{checkpoint.id.short} {item.name}: {text.size(checkpoint.new_bytes)} new")


def _print_plan(plan: ImportPlan, *, as_json: bool) -> None:
    if as_json:
        output.document(_document(plan))
        return
    output.table(_COLUMNS, [_row(item) for item in plan.imports])
    _print_notes(plan)
    output.note(
        f"{text.count(len(plan.due), 'checkpoint')} of {len(plan.imports)} would be imported to "
        f"{plan.branch}. Nothing was changed."
    )


def _print_notes(plan: ImportPlan) -> None:
    """Report the files that are not imported, and why."""
    for item in plan.refused:
        _print_refused(item, item.problem)
    for note in plan.notes:
        output.note(note)
    if plan.others:
        output.note(f"Not matched by the template: {text.some(plan.others)}.")
    for item in plan.due:
        if item.left_out:
            output.note(f"Left out of {item.name}: {text.some(item.left_out)}.")


def _print_refused(item: Import, why: str) -> None:
    named = "" if why.startswith(f"{item.path} ") else f"{item.name}. "
    output.note(f"Not imported: {named}{why}")


def _row(item: Import) -> tuple[str, ...]:
    plan = "import" if item.is_due else "refused"
    return (
        item.name,
        text.step(item.step),
        text.metrics(item.metrics),
        text.size(item.bytes),
        f"{item.created:%Y-%m-%d %H:%M}",
        plan if item.checkpoint is None else f"there: {item.checkpoint.id.short}",
    )


def _document(plan: ImportPlan) -> dict[str, Any]:
    return {
        "branch": plan.branch,
        "imports": [
            {
                "file": item.name,
                "step": item.step,
                "epoch": item.epoch,
                "metrics": dict(item.metrics),
                "created": item.created.isoformat(),
                "bytes": item.bytes,
                "left_out": list(item.left_out),
                "checkpoint": None if item.checkpoint is None else item.checkpoint.id,
                "problem": item.problem,
            }
            for item in plan.imports
        ],
        "others": list(plan.others),
        "notes": list(plan.notes),
    }
