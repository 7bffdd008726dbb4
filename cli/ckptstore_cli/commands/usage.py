"""`ckptstore usage`: what a repository holds, and what that takes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import common
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Usage


@click.command()
@common
@click.pass_context
def usage(ctx: click.Context, as_json: bool) -> None:
    """Show what the repository holds, and the space it takes."""
    repo = open_repository(ctx)
    used = repo.usage()
    if as_json:
        output.document({"url": repo.url, **asdict(used)})
    else:
        output.fields({"repository": repo.url, **_fields(used)})


def _fields(used: Usage) -> dict[str, str]:
    refs = f"{text.count(used.branches, 'branch', 'branches')}, {text.count(used.tags, 'tag')}"
    objects = text.count(used.objects, "object")
    return {
        "checkpoints": f"{used.checkpoints:,} ({refs})",
        "arrays": f"{text.size(used.array_bytes)} in all checkpoints together",
        "stored": f"{text.size(used.stored_bytes)} in {objects}{_saved(used)}",
        "metadata": text.size(used.metadata_bytes),
    }


def _saved(used: Usage) -> str:
    if used.stored_bytes >= used.array_bytes:
        return ""
    return f", {used.array_bytes / used.stored_bytes:.1f} times less"
