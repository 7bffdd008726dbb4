"""`ckptstore checkout`: write a checkpoint to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ckptstore_cli import output, text
from ckptstore_cli.options import common, revision_argument, selection_options
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint


@click.command()
@revision_argument("The checkpoint.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A .pt, .pth or .safetensors file to write.  [default: ckpt-STEP-ID.pt, or ckpt-ID.pt]",
)
@selection_options
@click.option("--force", is_flag=True, help="Write over a file that exists.")
@click.option(
    "--drop-values", is_flag=True, help="Leave out what .safetensors cannot hold: all but arrays."
)
@common
@click.pass_context
def checkout(
    ctx: click.Context,
    rev: str,
    file: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    force: bool,
    drop_values: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint, or the arrays chosen of it, to a file.

    A .pt holds the state as it was committed; torch.load reads it. A .safetensors holds the arrays
    by path. Every byte is verified, and the file appears whole or not at all.

    \b
    Examples:
      ckptstore checkout best:val_loss -o best.pt
      ckptstore checkout main --include model -o model.safetensors
    """
    from ckptstore import formats

    repo = open_repository(ctx)
    checkpoint = repo.resolve(rev)
    path = file or default_file(checkpoint)
    formats.check_free(path, overwrite=force)
    state = repo.checkout(checkpoint.id, include=include or None, exclude=exclude or None)
    formats.write_file(state, path, overwrite=force, drop_values=drop_values)
    size = path.stat().st_size
    if as_json:
        step = checkpoint.step
        output.document({"id": checkpoint.id, "step": step, "file": str(path), "bytes": size})
    else:
        output.line(f"Wrote {path}: checkpoint {checkpoint.id.short}, {text.size(size)}.")


def default_file(checkpoint: Checkpoint) -> Path:
    """The file for a checkpoint when none is given: its step, and the id to find it by again."""
    step = "" if checkpoint.step is None else f"{checkpoint.step}-"
    return Path(f"ckpt-{step}{checkpoint.id.short}.pt")
