"""`ckptstore commit`: store the checkpoint in a file or folder."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import click

from ckptstore.errors import CkptStoreError, UnsupportedValueError
from ckptstore.formats import FORMATS
from ckptstore_cli import changes, documents, output, text
from ckptstore_cli.options import (
    Size,
    branch_option,
    common,
    metric_option,
    pairs,
    step_option,
)
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from ckptstore import Checkpoint, Repository


@click.command()
@click.argument(
    "file",
    type=click.Path(exists=True),
    help="A .safetensors, .npz or .npy file, a file of torch.save (.pt, .pth, .ckpt, .bin or any "
    "name: its first bytes decide), or a folder: one of Hugging Face (a model, or a checkpoint "
    "of Trainer, accelerate or PEFT), a .zarr, or "
    "one of torch.distributed.checkpoint. No code in it is run: a .pt is loaded with "
    "weights_only=True.",
)
@branch_option("The branch to commit to.")
@click.option("--step", type=int, callback=step_option, metavar="N", help="The training step.")
@metric_option
@click.option("-m", "--message", default="", metavar="TEXT", help="Description of the checkpoint.")
@click.option(
    "--meta",
    multiple=True,
    callback=pairs(str),
    metavar="NAME=VALUE",
    help="A string to store with the checkpoint. May be repeated.",
)
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="The format of the file, if neither its first bytes nor its suffix tell.",
)
@click.option(
    "--unpack-max",
    "bytes_max",
    type=Size(),
    metavar="SIZE",
    help="The most that compressed arrays of a .npz may unpack to; for "
    'example "5GB".  [default: 64 MiB and 100 times what is stored]',
)
@click.option(
    "--retry",
    is_flag=True,
    help="If the branch moves during the commit, commit on top of its new head.",
)
@click.option(
    "--no-record-run",
    "records_run",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Do not record the host, the program, its arguments and the git revision of the working "
    "folder in the checkpoint's meta.",
)
@common
@click.pass_context
def commit(
    ctx: click.Context,
    file: str,
    branch: str,
    step: int | None,
    metrics: dict[str, float],
    message: str,
    meta: dict[str, str],
    format: str | None,
    bytes_max: int | None,
    retry: bool,
    records_run: bool,
    as_json: bool,
) -> None:
    """Store the checkpoint in FILE as the newest of a branch.

    Arrays are read as they are stored, so even large ones need little memory. Arrays that are
    already in the repository are not stored again. The checkpoint is durable when the command
    returns. The last line summarizes the changes since the checkpoint before.

    A folder of Hugging Face is stored whole, its weights under the key "model". Without --step and
    --metric they are those in its trainer_state.json.

    The meta of the checkpoint records the file, and the host, program, arguments and git revision
    of this run. Arguments that look like secrets are left out.

    \b
    Examples:
      ckptstore commit ckpt_100.pt --step 100 --metric val_loss=0.31 -m "warm-up"
      ckptstore commit tuned.safetensors -b tuned
      ckptstore commit Llama-3.2-1B/ -b base
      ckptstore commit out/checkpoint-500/
    """
    from ckptstore import formats, run_meta

    repo = open_repository(ctx)
    run = run_meta(".") if records_run else {}
    contents = formats.read_file(file, format=format, bytes_max=bytes_max)
    try:
        checkpoint = repo.commit(
            contents.state,
            branch=branch,
            step=contents.step if step is None else step,
            metrics={**contents.metrics, **metrics},
            message=message,
            meta={**run, **contents.meta, **meta},
            retry=retry,
        )
    except UnsupportedValueError as error:
        raise UnsupportedValueError(f"{file}: {error}") from error
    if as_json:
        output.document(
            {
                "branch": branch,
                **documents.checkpoint(checkpoint),
                "left_out": list(contents.left_out),
            }
        )
    else:
        output.line(f"Committed {checkpoint.id.short} to {branch}: {_changes(repo, checkpoint)}.")
        if contents.left_out:
            output.note(_left_out(contents.left_out))


def _left_out(names: tuple[str, ...]) -> str:
    """A sentence about the files of a folder that are not committed."""
    return (
        f"Not committed, as it is not part of this checkpoint: {text.some(names)}. To commit one, "
        "pass its own name."
    )


def _changes(repo: Repository, checkpoint: Checkpoint) -> str:
    """The changes since the parent, or the contents if the parent cannot be read."""
    with suppress(CkptStoreError):
        for parent in checkpoint.parents:
            difference = repo.diff(parent, checkpoint.id)
            paths = [] if difference.is_empty else [array.path for array in checkpoint.arrays]
            return changes.sentence(checkpoint, difference, paths)
    arrays = text.arrays(checkpoint.array_count, checkpoint.array_bytes)
    return f"{arrays}, {text.size(checkpoint.new_bytes)} new"
