"""`ckptstore usage`: what a repository contains, and the space it takes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import common, revisions_argument
from ckptstore_cli.output import Column
from ckptstore_cli.repo import open_repository
from ckptstore_cli.verbs import for_this_repo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ckptstore import Repository, Share, Usage

SECONDS_PER_DAY = 86400
SECONDS_MAX = 1000 * SECONDS_PER_DAY  # a longer forecast means nothing

_INTERRUPTED = "of interrupted commits or deleted branches, which gc deletes after the grace time"
_TORN = (
    "that no checkpoint needs that is there. Some are missing, so gc deletes none of these: see "
    "ckptstore verify"
)


_COLUMNS = (
    Column("checkpoints", right=True),
    Column("own", right=True),
    Column("shared", right=True),
)


@click.command()
@revisions_argument("List the shares of these checkpoints.")
@click.option("--checkpoints", "of_each", is_flag=True, help="List the share of each checkpoint.")
@common
@click.pass_context
def usage(ctx: click.Context, revs: tuple[str, ...], of_each: bool, as_json: bool) -> None:
    """Show what is stored and its size, by branch or checkpoint.

    "own" are the bytes that no other branch or checkpoint reaches: they become free when this one
    is deleted. "shared" are the bytes that others reach too. The column "own" adds up to the size
    of the repository.
    """
    repo = open_repository(ctx)
    ids = {repo.resolve(rev).id for rev in revs}
    total = repo.usage(by_checkpoint=of_each or bool(revs))
    if as_json:
        output.document({"url": repo.url, **asdict(total), "bytes": total.bytes})
        return
    if ids:
        shares = [share for share in total.by_checkpoint if share.name in ids]
        output.table((*_NAMES, *_COLUMNS[1:]), _rows_of_checkpoints(repo, shares))
        return
    facts = {"repository": repo.url, **_fields(total), **_growth(repo, total)}
    output.fields({name: for_this_repo(fact) for name, fact in facts.items()})
    if of_each and total.by_checkpoint:
        rows = _rows_of_checkpoints(repo, total.by_checkpoint)
        rest = _rest(total, sum(share.own_bytes for share in total.by_checkpoint), "checkpoints")
        output.line()
        output.table(
            (*_NAMES, *_COLUMNS[1:]), [*rows, *((name, "", "", *row) for name, *row in rest)]
        )
    elif total.by_branch:
        rows = [
            (_name(share), f"{share.checkpoints:,}", *_sizes(share)) for share in total.by_branch
        ]
        rest = _rest(total, sum(share.own_bytes for share in total.by_branch), "branches")
        output.line()
        output.table(
            (Column("branch", gives_way=1, shortens=True, width_min=26), *_COLUMNS),
            [*rows, *((name, "", *row) for name, *row in rest)],
        )


_NAMES = (
    Column("checkpoint", style="yellow", width_min=26),
    Column("branch", gives_way=1, shortens=True),
    Column("step", right=True),
)


def _rows_of_checkpoints(repo: Repository, shares: Sequence[Share]) -> list[tuple[str, ...]]:
    """A row for each checkpoint."""
    found = [(share, repo.resolve(share.name)) for share in shares]
    return [(c.id.short, c.branch or "", text.step(c.step), *_sizes(share)) for share, c in found]


def _name(share: Share) -> str:
    """The branch of a share."""
    return f"{share.name or '(none recorded)'}{' (deleted)' if share.is_deleted else ''}"


def _sizes(share: Share) -> tuple[str, str]:
    return text.size(share.own_bytes), text.size(share.shared_bytes)


def _rest(total: Usage, own: int, several: str) -> list[tuple[str, str, str]]:
    """Rows of everything that belongs to no single branch or checkpoint, and the sum."""
    parts = {
        f"(shared by several {several})": total.stored_bytes - total.unreached_bytes - own,
        "(on no branch and no tag)": total.unreached_bytes,
        "(manifests, operations)": total.metadata_bytes,
        "(being written)": total.temporary_bytes,
        "(reserve for a full disk)": total.reserve_bytes,
    }
    rows = [(name, text.size(size), "") for name, size in parts.items() if size]
    return [*rows, ("together", text.size(total.bytes), "")]


def _fields(total: Usage) -> dict[str, str]:
    refs = f"{text.count(total.branches, 'branch', 'branches')}, {text.count(total.tags, 'tag')}"
    objects = text.count(total.objects, "object")
    return {
        "checkpoints": f"{total.checkpoints:,} ({refs}){_unreachable(total)}",
        "arrays": f"{text.size(total.array_bytes)} in all checkpoints together",
        "stored": f"{text.size(total.stored_bytes)} in {objects}, with structure and pages"
        f"{_saving(total)}",
        "metadata": text.size(total.metadata_bytes),
    } | _leftovers(total)


def _growth(repo: Repository, total: Usage) -> dict[str, str]:
    """A forecast of the growth, if it continues like this."""
    growth = total.growth
    if growth is None:
        return {}
    added = growth.checkpoints - 1
    newest = "checkpoint" if added == 1 else f"{added} checkpoints"
    said = (
        f"the newest {newest} stored {text.size(growth.new_bytes)} in "
        f"{text.duration(growth.seconds)}, of which {text.size(growth.kept_bytes)} are kept: about "
        f"{text.size(round(growth.bytes_per_day))} a day"
    )
    with suppress(OSError):
        free = shutil.disk_usage(repo.url).free
        said += f", with {text.size(free)} free"
        if growth.kept_bytes:
            seconds = free / growth.bytes_per_day * SECONDS_PER_DAY
            said += f" for {text.duration(seconds)}" if seconds < SECONDS_MAX else ""
    return {"forecast": said}


def _leftovers(total: Usage) -> dict[str, str]:
    """What is there beside the checkpoints, if there is anything."""
    fields = {}
    if total.unreached_objects:
        objects = text.count(total.unreached_objects, "object")
        name = "unexplained" if total.is_torn else "leftovers"
        what = _TORN if total.is_torn else _INTERRUPTED
        fields[name] = f"{text.size(total.unreached_bytes)} of these in {objects} {what}"
    if total.temporary_files:
        files = text.count(total.temporary_files, "file")
        fields["temporary"] = f"{text.size(total.temporary_bytes)} in {files} being written"
        if total.left_bytes:
            fields["temporary"] += (
                f", {text.size(total.left_bytes)} of it left by killed processes, which gc deletes"
            )
    return fields


def _unreachable(total: Usage) -> str:
    if not total.unreachable:
        return ""
    return f", and {total.unreachable:,} that none reaches: see ckptstore verify"


def _saving(total: Usage) -> str:
    if not 0 < total.stored_bytes < total.array_bytes:
        return ""
    return f", {total.array_bytes / total.stored_bytes:.1f} times less"
