"""`ckptstore commit`: store the checkpoint in a file or folder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import click

from ckptstore_cli import documents, output, text
from ckptstore_cli.options import DEFAULT_BRANCH, common, complete_refs
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = TypeVar("Value")
_WHOLE = re.compile(r"[+-]?[0-9]{1,30}")


class Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "pair"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Split at the first "="."""
        if isinstance(value, tuple):
            return value
        name, sign, content = value.partition("=")
        if not name or not sign:
            self.fail(f"{value!r} is not NAME=VALUE.", param, ctx)
        return name, content


class Metric(click.ParamType[tuple[str, float]]):
    """NAME=NUMBER; whole numbers are ints."""

    name = "metric"

    def convert(
        self,
        value: str | tuple[str, float],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, float]:
        """Split at the last "=", as a metric's name may contain one, and parse the number."""
        if isinstance(value, tuple):
            return value
        name, sign, content = value.rpartition("=")
        if not name or not sign:
            self.fail(f"{value!r} is not NAME=NUMBER.", param, ctx)
        try:
            return name, int(content) if _WHOLE.fullmatch(content) else float(content)
        except ValueError:
            self.fail(f"{content!r} is not a number, in {value!r}.", param, ctx)


@click.command()
@click.argument(
    "file",
    type=click.Path(exists=True),
    help="A .safetensors, .npz or .npy file, a file of torch.save (.pt, .pth, .ckpt or .bin), or a "
    "folder: one of Hugging Face with .safetensors files or an index of .bin files, a .zarr, or "
    "one of torch.distributed.checkpoint. No code in it is run: a .pt is loaded with "
    "weights_only=True.",
)
@click.option(
    "-b",
    "--branch",
    metavar="BRANCH",
    default=DEFAULT_BRANCH,
    show_default=True,
    shell_complete=complete_refs(tags=False),
    help="The branch to commit to. It is created if it does not exist.",
)
@click.option("--step", type=int, metavar="N", help="The training step.")
@click.option(
    "--metric",
    "metrics",
    type=Metric(),
    multiple=True,
    metavar="NAME=NUMBER",
    help="A metric, as in val_loss=0.31. May be repeated.",
)
@click.option("-m", "--message", default="", metavar="TEXT", help="A message for people.")
@click.option(
    "--meta",
    type=Pair(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A text to store with the checkpoint. May be repeated.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="If the branch moves during the commit, commit on top of its new head.",
)
@common
@click.pass_context
def commit(
    ctx: click.Context,
    file: str,
    branch: str,
    step: int | None,
    metrics: tuple[tuple[str, float], ...],
    message: str,
    meta: tuple[tuple[str, str], ...],
    retry: bool,
    as_json: bool,
) -> None:
    """Store the checkpoint in FILE as the newest of a branch.

    Arrays are read as they are stored, so even large ones need little memory. Arrays that are
    already in the repository are not stored again. The checkpoint is durable when the command
    returns.

    \b
    Examples:
      ckptstore commit ckpt_100.pt --step 100 --metric val_loss=0.31 -m "warm-up done"
      ckptstore commit tuned.safetensors -b tuned
      ckptstore commit Llama-3.2-1B/ -b base
    """
    from ckptstore import formats

    repo = open_repository(ctx)
    contents = formats.read_file(file)
    checkpoint = repo.commit(
        contents.state,
        branch=branch,
        step=step,
        metrics=_once(ctx, metrics, option="--metric"),
        message=message,
        meta={**contents.meta, **_once(ctx, meta, option="--meta")},
        retry=retry,
    )
    if as_json:
        output.document({"branch": branch, **documents.checkpoint(checkpoint)})
    else:
        arrays = text.arrays(checkpoint.array_count, checkpoint.array_bytes)
        new = text.size(checkpoint.new_bytes)
        output.line(f"Committed {checkpoint.id.short} to {branch}: {arrays}, {new} new.")


def _once(
    ctx: click.Context, pairs: Iterable[tuple[str, Value]], *, option: str
) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, value in pairs:
        if name in values:
            raise click.UsageError(f"{option} {name} is given twice.", ctx)
        values[name] = value
    return values
