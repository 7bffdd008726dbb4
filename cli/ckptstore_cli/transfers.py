"""What push, pull, fetch and clone share: their options, and how a transfer is shown."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypedDict

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import complete_refs
from ckptstore_cli.output import Column
from ckptstore_cli.repo import FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Unpack

    from ckptstore import Digest, RefMove, TransferPlan, TransferReport

    Command = Callable[..., None]

MARKER = "ckptstore.json"

_COLUMNS = (
    Column("", style="green"),
    Column("name", style="green", gives_way=2, shortens=True),
    Column("from", style="yellow"),
    Column("to", style="yellow"),
    Column("", gives_way=1, folds=True),
)

remote_argument = click.argument(
    "remote",
    metavar="[REMOTE]",
    required=False,
    help="A remote, URL or path.  [default: origin, else the only remote]",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be copied and moved, and change nothing."
)
tags_option = click.option(
    "--tags",
    is_flag=True,
    help="Take all tags, instead of those in the history of the branches.",
)
depth_option = click.option(
    "--depth",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copy the arrays of the newest N checkpoints of each branch. Older ones that are new "
    "there keep step, metrics and lineage, as expired ones do.",
)

policies_option = click.option(
    "--policies",
    is_flag=True,
    help="Take saved retention policies along: all of them with all branches, else for each "
    "branch the one that applies to it.",
)


def revs_argument(metavar: str, help: str) -> Callable[[Command], Command]:
    """The arguments REV..., passed on as `revs`."""
    return click.argument(
        "revs", metavar=metavar, nargs=-1, shell_complete=complete_refs(), help=help
    )


def moving_options(function: Command) -> Command:
    """The options of push and pull that decide which refs move, and where."""
    mirror = click.option(
        "--mirror",
        is_flag=True,
        help="Give the target exactly the branches and tags of the source, and delete others.",
    )
    force = click.option(
        "--force",
        is_flag=True,
        help="Move branches and tags even if that drops checkpoints of the target.",
    )
    named = click.option(
        "--as", "name", metavar="NAME", help="The name of the one REV at the target."
    )
    function = force(mirror(policies_option(dry_run_option(function))))
    return named(tags_option(depth_option(function)))


class Asked(TypedDict):
    """The arguments and options of push and pull that say what is transferred."""

    remote: str | None
    revs: tuple[str, ...]
    name: str | None
    tags: bool
    depth: int | None
    force: bool
    mirror: bool
    policies: bool


def planned(
    ctx: click.Context, plan: Callable[..., TransferPlan], **asked: Unpack[Asked]
) -> TransferPlan:
    """Make a plan of what is asked for. plan: `Repository.plan_push` or `plan_pull`."""
    revs, name, mirror = asked["revs"], asked["name"], asked["mirror"]
    branches: Mapping[str, str] | tuple[str, ...] | None = revs or None
    if mirror and revs:
        raise click.UsageError("--mirror takes all branches: name none.", ctx)
    if name is not None:
        if len(revs) != 1:
            raise click.UsageError("--as needs the one REV that gets the NAME.", ctx)
        branches = {revs[0]: name}
    return plan(
        place(asked["remote"]),
        branches=branches,
        tags=asked["tags"] or None,
        depth=asked["depth"],
        force=asked["force"],
        mirror=mirror,
        policies=asked["policies"],
    )


def place(remote: str | None) -> str | None:
    """The repository that is meant, which may be in the .ckptstore of a folder."""
    if remote is None or "://" in remote or not os.path.isdir(remote):
        return remote
    inside = os.path.join(remote, FOLDER)
    if not os.path.exists(os.path.join(remote, MARKER)) and os.path.isdir(inside):
        return inside
    return remote


def run(plan: TransferPlan, *, is_pull: bool, dry_run: bool, as_json: bool) -> None:
    """Show the plan, or execute it and show what was done."""
    url = plan.source if is_pull else plan.target
    if not as_json:
        output.note(f"{'From' if is_pull else 'To'} {url}")
    report = plan if dry_run else plan.execute()
    if as_json:
        output.document(document(report) | {"dry_run": dry_run})
        return
    show(report, dry_run=dry_run)


def show(report: TransferReport, *, dry_run: bool = False) -> None:
    """Print a row for each ref, and a line for what was copied."""
    if report.moves:
        output.table(_COLUMNS, [_row(move) for move in report.moves])
    copied_any = report.checkpoints or report.expired or report.notes or report.policies
    if not (report.moves or copied_any):
        output.line("Everything is up to date.")
        return
    parts = [text.count(len(report.checkpoints), "checkpoint")]
    if report.expired:
        parts.append(f"{len(report.expired):,} without arrays")
    if report.notes:
        parts.append(text.count(report.notes, "note"))
    if report.policies:
        parts.append(text.count(report.policies, "policy", "policies"))
    copied = f"{text.size(report.bytes)} in {text.count(report.objects, 'object')}"
    done = "would be copied. Nothing was changed." if dry_run else "copied."
    output.line(f"{', '.join(parts)}: {copied} {done}")


def document(report: TransferReport) -> dict[str, Any]:
    """A transfer as JSON."""
    return {
        "source": report.source,
        "target": report.target,
        "checkpoints": list(report.checkpoints),
        "expired": list(report.expired),
        "objects": report.objects,
        "bytes": report.bytes,
        "notes": report.notes,
        "policies": report.policies,
        "moves": [
            {
                "kind": move.kind,
                "name": move.name,
                "source": move.source,
                "before": move.before,
                "after": move.after,
                "forced": move.is_forced,
            }
            for move in report.moves
        ],
    }


def _row(move: RefMove) -> tuple[str, ...]:
    if move.after is None:
        how = "deleted"
    elif move.before is None:
        how = "new" if move.name == move.source else f"new, of {move.source}"
    else:
        how = "forced" if move.is_forced else ""
    return move.kind, move.name, _short(move.before), _short(move.after), how


def _short(id: Digest | None) -> str:
    return "" if id is None else id.short
