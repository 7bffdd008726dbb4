"""`ckptstore show`: show one checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import common, revision_argument
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint
    from ckptstore_cli.documents import Refs


@click.command()
@revision_argument("The checkpoint.")
@common
@click.pass_context
def show(ctx: click.Context, rev: str, as_json: bool) -> None:
    """Show everything that is recorded about a checkpoint."""
    repo = open_repository(ctx)
    checkpoint = repo.resolve(rev)
    refs = documents.refs_by_id(repo).get(checkpoint.id, documents.NO_REFS)
    values = None if checkpoint.expired else len(checkpoint.values)
    if as_json:
        output.document({**documents.checkpoint(checkpoint, refs), "values": values})
    else:
        output.fields(_fields(checkpoint, refs, values))


def _fields(checkpoint: Checkpoint, refs: Refs, values: int | None) -> dict[str, str | list[str]]:
    created = checkpoint.created.astimezone()
    fields: dict[str, str | list[str]] = {
        "id": checkpoint.id,
        "refs": str(refs),
        "branch": checkpoint.branch or "",
        "step": "" if checkpoint.step is None else str(checkpoint.step),
        "created": f"{created:%Y-%m-%d %H:%M:%S %z} ({text.age(created, output.now())})",
        "message": checkpoint.message.strip().splitlines(),
        "metrics": [f"{name} = {value}" for name, value in checkpoint.metrics.items()],
        "parents": list(checkpoint.parents),
        "arrays": f"{checkpoint.array_count:,}, {text.size(checkpoint.array_bytes)}",
        "values": "" if values is None else f"{values:,} plain",
        "new": f"{text.size(checkpoint.new_bytes)} stored by this commit",
        "expired": "yes, its arrays are no longer stored" if checkpoint.expired else "",
        "meta": [f"{name} = {_value(value)}" for name, value in checkpoint.meta.items()],
    }
    return {name: value for name, value in fields.items() if value}


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
