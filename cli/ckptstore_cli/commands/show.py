"""`ckptstore show`: show one checkpoint."""

from __future__ import annotations

import click

from ckptstore.metric_names import best_in
from ckptstore_cli import documents, fields, output
from ckptstore_cli.options import common, revision_argument
from ckptstore_cli.repo import open_repository


@click.command()
@revision_argument("The checkpoint.")
@click.option("--id", "only_id", is_flag=True, help="Print only the id, for a script.")
@click.option(
    "--why", "with_reasons", is_flag=True, help="Add why gc by the saved policies keeps it or not."
)
@common
@click.pass_context
def show(ctx: click.Context, rev: str, only_id: bool, with_reasons: bool, as_json: bool) -> None:
    """Show everything that is recorded about a checkpoint.

    Only the outermost plain values (learning rate, epoch, arguments) are listed; `ckptstore ls
    --values` lists all.
    """
    if only_id and as_json:
        raise click.UsageError("Give --id or --json, not both.", ctx)
    repo = open_repository(ctx)
    checkpoint = repo.resolve(rev)
    if only_id:
        output.line(checkpoint.id)
        return
    refs = documents.refs_by_id(repo).get(checkpoint.id, documents.NO_REFS)
    values = None if checkpoint.expired else checkpoint.values
    seed = checkpoint.seed
    verdict = repo.why(checkpoint.id) if with_reasons else None
    if as_json:
        count = None if values is None else len(values)
        judged = (
            {
                "kept": verdict.kept,
                "why": [reason.to_json() for reason in verdict.reasons],
                "is_next_to_go": verdict.is_next_to_go,
            }
            if verdict
            else {}
        )
        expiry = {"expiry": checkpoint.expiry} if checkpoint.expired else {}
        output.document(
            {
                **documents.checkpoint(checkpoint, refs),
                "seed": seed,
                "values": count,
                **expiry,
                **judged,
            }
        )
    else:
        source = None if seed is None else repo.resolve(seed)
        shown = fields.of_checkpoint(checkpoint, refs, values, seed=source)
        if verdict:
            reasons = [*map(str, verdict.reasons)]
            if verdict.is_next_to_go:
                reasons.append("expires when the next checkpoint of its branch comes")
            if not checkpoint.expired:  # else they are in a field of their own
                shown["kept" if verdict.kept else "not kept"] = reasons
        output.fields(shown)
        best = best_in(rev)
        if best:
            output.note(f"{checkpoint.id.short} is the {best}.")
