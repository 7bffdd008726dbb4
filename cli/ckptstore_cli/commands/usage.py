"""`ckptstore usage`: what a repository contains, and the space it takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Usage


_INTERRUPTED = (
    "of interrupted commits or deleted branches, which gc deletes once they are an hour old"
)
_TORN = (
    "that no checkpoint needs that is there. Some are missing, so gc deletes none of these: see "
    "ckptstore verify"
)


@click.command()
@common
@click.pass_context
def usage(ctx: click.Context, as_json: bool) -> None:
    """Show what the repository contains, and the space it takes."""
    repo = open_repository(ctx)
    total = repo.usage()
    if as_json:
        output.document({"url": repo.url, **asdict(total)})
    else:
        output.fields({"repository": repo.url, **_fields(total)})


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
