"""`ckptstore gc`: expire checkpoints, and delete unreachable objects."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ckptstore_cli import listing, output, text
from ckptstore_cli.options import Duration, common, complete_refs
from ckptstore_cli.output import Column
from ckptstore_cli.policies import policy_of, policy_options
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptstore import GcPlan, GcReport
    from ckptstore.retention import Verdict

WHY_WIDTH_MIN = 30


@click.command()
@policy_options
@click.option(
    "-b",
    "--branch",
    "branches",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_refs(tags=False),
    help="Apply the policy only to this branch. May be repeated.",
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be done and why, and change nothing."
)
@click.option(
    "--grace",
    type=Duration(allows_numbers=True),
    metavar="TIME",
    help="Keep checkpoints that lost their branch or tag less than this ago, such as 12h or 7d; 0 "
    "frees them at once. Objects that a commit in progress may need are kept for an hour at most.  "
    "[default: 1d, or the saved one]",
)
@click.option(
    "--no-keep-seeds",
    is_flag=True,
    help="Do not keep a checkpoint because a branch was started from it: the policy of its own "
    "branch decides.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask, even on a terminal.")
@common
@click.pass_context
def gc(
    ctx: click.Context,
    /,
    branches: tuple[str, ...],
    dry_run: bool,
    grace: float | None,
    no_keep_seeds: bool,
    yes: bool,
    as_json: bool,
    **policy: Any,
) -> None:
    """Expire what no policy keeps, and free its space.

    A checkpoint is kept if any of the options keeps it. Heads of branches, tagged checkpoints and
    those that a branch was started from are always kept. Without options, the policy saved with
    "config retention" applies; without a saved policy, every checkpoint of a branch stays. A tag
    keeps its own checkpoint, not those before it. The step and metrics of an expired checkpoint
    remain, and log --all lists them. gc can run while other processes commit and read.

    \b
    Examples:
      ckptstore gc --max-to-keep 5 --keep-best val_loss --dry-run
      ckptstore gc --max-to-keep 3 --keep-best val_acc:max:2
      ckptstore gc --keep-all --grace 0
    """
    from ckptstore.retention import KeepAll

    repo = open_repository(ctx)
    given = policy_of(policy)
    plan = repo.plan_gc(given, branches=branches or None, grace=grace, keep_seeds=not no_keep_seeds)
    if given is None and plan.sentences == (str(KeepAll()),):
        output.note(
            "No policy is given or saved, so the checkpoints of all branches stay. Pass one, such "
            "as --max-to-keep 5, or save one with 'ckptstore config retention'."
        )
    if dry_run:
        _print_plan(plan, as_json=as_json, end=" Nothing was changed.")
        return
    if plan.bytes or plan.expired:
        output.ask_before_deleting(
            "Delete this?", is_answered=yes or as_json, show=partial(_show_deleted, plan)
        )
    _print_report(plan, plan.execute(), as_json=as_json)


def _show_deleted(plan: GcPlan) -> None:
    _print_plan(plan, as_json=False)
    if plan.expired:
        output.note("The arrays of expired checkpoints cannot come back, not even with undo.")


def _print_plan(plan: GcPlan, *, as_json: bool, end: str = "") -> None:
    if as_json:
        output.document(
            {
                "policy": " ".join(plan.sentences),
                "checkpoints": [_document(verdict, plan) for verdict in plan.verdicts],
                "leftover_objects": plan.leftover_objects,
                "leftover_bytes": plan.leftover_bytes,
                "young_checkpoints": plan.young_checkpoints,
                "young_objects": plan.young_objects,
                "young_bytes": plan.young_bytes,
                "young_seconds": plan.young_seconds,
                "temporary_bytes": plan.temporary_bytes,
                "bytes": plan.bytes,
                "next_to_go": list(plan.next_to_go),
                "warning": plan.warning,
            }
        )
        return
    if plan.warning:
        output.note(plan.warning)
    for sentence in plan.sentences:
        output.note(sentence)
    _print_verdicts(plan)
    if plan.leftover_objects:
        leftover = text.count(plan.leftover_objects, "object")
        output.note(
            f"{leftover} of interrupted commits ({text.size(plan.leftover_bytes)}) would be "
            "deleted too."
        )
    _note_young(plan)
    if plan.temporary_bytes:
        output.note(
            f"{text.size(plan.temporary_bytes)} that killed processes left half written would be "
            "deleted too."
        )
    if plan.next_to_go:
        output.note(f"Next to go: {_few(plan.next_to_go)}, when the next checkpoint comes.")
    output.note(
        f"{text.count(len(plan.expired), 'checkpoint')} of {len(plan.verdicts)} would expire, "
        f"which frees {text.size(plan.bytes)}.{end}"
    )


def _print_report(plan: GcPlan, report: GcReport, *, as_json: bool) -> None:
    if as_json:
        output.document(
            {
                "policy": " ".join(plan.sentences),
                "expired": list(report.expired),
                "kept": [verdict.id for verdict in plan.kept],
                "objects": report.objects,
                "bytes": report.bytes,
                "temporary_bytes": report.temporary_bytes,
                "warning": report.warning,
            }
        )
        return
    if report.warning:
        output.note(report.warning)
    _note_young(plan)
    objects = text.count(report.objects, "object")
    output.line(
        f"{text.count(len(report.expired), 'checkpoint')} expired{_ids(report.expired)}, "
        f"{len(plan.verdicts) - len(report.expired)} kept. "
        f"{text.size(report.bytes)} freed in {objects}{_swept(report)}."
    )


def _note_young(plan: GcPlan) -> None:
    """Say what is only kept because it is new."""
    if not (plan.young_checkpoints or plan.young_objects):
        return
    what = f"{text.count(plan.young_objects, 'object')} that a commit in progress may need"
    if plan.young_checkpoints:
        what = f"{text.count(plan.young_checkpoints, 'checkpoint')} on no branch"
    output.note(
        f"{what}, {text.size(plan.young_bytes)}, become free in "
        f"{text.duration(plan.young_seconds)}; --grace 0 frees them now."
    )


def _swept(report: GcReport) -> str:
    if not report.temporary_bytes:
        return ""
    return f", and {text.size(report.temporary_bytes)} that killed processes left"


def _ids(ids: Iterable[Any]) -> str:
    few = _few(ids)
    return f" ({few})" if few else ""


def _few(ids: Iterable[Any]) -> str:
    """The first few ids: "4f3a12c4, 56f8f174, …"."""
    shown = [id.short for id in ids]
    return f"{', '.join(shown[:5])}{', …' if len(shown) > 5 else ''}"


def _print_verdicts(plan: GcPlan) -> None:
    """Print a row for each checkpoint of the branches that the policy is for.

    If room is short, metrics are left out before reasons.
    """
    verdicts = [verdict for verdict in plan.verdicts if not _is_left_alone(verdict)]
    manifests = [verdict.manifest for verdict in verdicts]
    judged = dict.fromkeys(plan.metrics, "")
    metrics = replace(listing.Metrics.of(manifests, first=judged), best={})
    numbers = metrics.columns(drops=1)
    turn = max(len(numbers), 1)
    columns = (
        Column("id", style="yellow"),
        Column("branch", style="green", gives_way=turn, shortens=True),
        Column("step", right=True),
        *(replace(column, drops=turn + 2) if not column.drops else column for column in numbers),
        Column("verdict", style="bold"),
        Column("frees", right=True),
        Column("why", folds=True, gives_way=turn + 1, width_min=WHY_WIDTH_MIN),
    )
    rows = [
        (
            verdict.id.short,
            verdict.manifest.branch or "",
            text.step(verdict.manifest.step),
            *metrics.cells(position, verdict.manifest),
            "kept" if verdict.kept else "expires",
            "" if verdict.kept else text.size(plan.frees[verdict.id]),
            "; ".join(reason.beside(verdict.manifest.branch) for reason in verdict.reasons),
        )
        for position, verdict in enumerate(verdicts)
    ]
    expired = {number for number, verdict in enumerate(verdicts) if not verdict.kept}
    output.table(columns, rows, dimmed=expired)
    if others := len(plan.verdicts) - len(verdicts):
        output.note(
            f"{text.count(others, 'checkpoint')} of other branches stay and are not listed."
        )


def _is_left_alone(verdict: Verdict) -> bool:
    """Whether a checkpoint stays because only other branches were chosen."""
    return any(reason.kind == "left_alone" for reason in verdict.reasons)


def _document(verdict: Verdict, plan: GcPlan) -> dict[str, Any]:
    return {
        "id": verdict.id,
        "step": verdict.manifest.step,
        "metrics": dict(verdict.manifest.metrics),
        "branches": list(verdict.branches),
        "kept": verdict.kept,
        "reasons": [reason.to_json() for reason in verdict.reasons],
        "frees": plan.frees.get(verdict.id, 0),
    }
