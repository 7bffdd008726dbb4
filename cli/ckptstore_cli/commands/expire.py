"""`ckptstore expire`: give up the arrays of chosen checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import common, complete_refs
from ckptstore_cli.output import Column
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import GcPlan, GcReport

_COLUMNS = (
    Column("id", style="yellow"),
    Column("branch", style="green", gives_way=1, folds=True),
    Column("step", right=True),
    Column("frees", right=True),
    Column("message", gives_way=2, drops=3),
)


@click.command()
@click.argument(
    "revs",
    metavar="REV...",
    nargs=-1,
    required=True,
    shell_complete=complete_refs(),
    help="The checkpoints.",
)
@click.option("--dry-run", is_flag=True, help="Show what would expire, and change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@common
@click.pass_context
def expire(
    ctx: click.Context, revs: tuple[str, ...], dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Expire chosen checkpoints: their arrays are deleted.

    This happens whatever the policies are. The plan is shown first, and on a terminal you are
    asked. Arrays that other checkpoints share stay. Step, metrics and message remain. undo cannot
    bring the arrays back. Heads of branches, tagged checkpoints and those that a branch was started
    from are refused.

    \b
    Examples:
      ckptstore expire main@step=100 main@step=200 --dry-run
    """
    plan = open_repository(ctx).expire(revs)
    if not as_json:
        _print_plan(plan)
    if dry_run:
        if as_json:
            output.document(_document(plan, None))
        else:
            output.note("Nothing was changed.")
        return
    output.ask_before_deleting("Delete the arrays for good?", is_answered=yes or as_json)
    report = plan.execute()
    if as_json:
        output.document(_document(plan, report))
        return
    output.line(
        f"{text.count(len(report.expired), 'checkpoint')} expired, "
        f"{text.size(report.bytes)} freed in {text.count(report.objects, 'object')}."
    )


def _print_plan(plan: GcPlan) -> None:
    """Print a row for each checkpoint that expires, and what all of them free."""
    if plan.warning:
        output.note(plan.warning)
    rows = [
        (
            verdict.id.short,
            verdict.manifest.branch or "",
            text.step(verdict.manifest.step),
            text.size(plan.frees[verdict.id]),
            text.first_line(verdict.manifest.message),
        )
        for verdict in plan.expired
    ]
    output.table(_COLUMNS, rows)
    whose = "Its" if len(rows) == 1 else "Their"
    output.note(
        f"{text.count(len(rows), 'checkpoint')} would expire, which frees "
        f"{text.size(sum(plan.frees.values()))}. {whose} arrays cannot come back."
    )


def _document(plan: GcPlan, report: GcReport | None) -> dict[str, object]:
    return {
        "expired": [verdict.id for verdict in plan.expired] if report is None else report.expired,
        "bytes": plan.bytes if report is None else report.bytes,
        "is_done": report is not None,
        "warning": plan.warning,
    }
