"""`ckptstore checkout`: write a checkpoint to a file or folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ckptstore.metric_names import best_in
from ckptstore_cli import output, text
from ckptstore_cli.options import (
    Size,
    common,
    complete_paths,
    rename_option,
    revision_argument,
    selection_options,
)
from ckptstore_cli.parts import part_option
from ckptstore_cli.repo import open_repository

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ckptstore import Checkpoint, Repository

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
_KERAS_WEIGHTS = ".weights.h5"
_KERAS_VARIABLE = re.compile(r"(?:^|/)vars/[0-9]+$")  # the path of one in such a file
_NESTED = (*_TORCH_SUFFIXES, ".zarr", ".dcp")  # formats that hold nested dicts, not paths


@click.command()
@revision_argument("The checkpoint.")
@click.option(
    "-o",
    "--output",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What to write. The suffix decides the format: .pt (or .pth, .ckpt, .bin), "
    ".safetensors, .npz, .npy, or a folder: .zarr, or .dcp of torch.distributed.checkpoint.  "
    "[default: ckpt-STEP-ID.pt, or ckpt-ID.pt]",
)
@click.option(
    "--tensor",
    "array",
    metavar="PATH",
    shell_complete=complete_paths,
    help="Write only this array, for example to a .npy; `ckptstore ls` lists the paths.",
)
@part_option(
    "Write only the value of this key of the state, such as model: torch.load then returns that "
    "dict, and the names in a .safetensors are those of the model. --include and --exclude match "
    "whole paths, as listed by `ckptstore ls`; KEY is one of those after --rename."
)
@selection_options
@rename_option("Write arrays under other paths")
@click.option(
    "--shard-size",
    "shard_bytes",
    type=Size(),
    metavar="SIZE",
    help="Write a folder of .safetensors files of at most this size with an index, as Hugging "
    'Face does; for example "5GB", "500MB" or "2GiB".',
)
@click.option(
    "--unpack-max",
    "bytes_max",
    type=Size(),
    metavar="SIZE",
    help="The most that an array committed through Zarr may take; for "
    'example "5GB".  [default: 64 MiB and 100 times what is stored]',
)
@click.option("--force", is_flag=True, help="Overwrite an existing file or export.")
@click.option(
    "--drop-values",
    is_flag=True,
    help="Leave out plain values, which only .pt, .dcp and .zarr can hold.",
)
@common
@click.pass_context
def checkout(
    ctx: click.Context,
    rev: str,
    file: Path | None,
    array: str | None,
    part: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rename: dict[str, str],
    shard_bytes: int | None,
    bytes_max: int | None,
    force: bool,
    drop_values: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint, or some of its arrays, to a file or folder.

    A .pt contains the state as it was committed, for torch.load, and a .zarr the same for any Zarr
    reader. The other formats contain the arrays by path. A folder of Hugging Face that was
    committed comes back under a name without a suffix. Every byte is verified, and the file or
    folder appears either complete or not at all.

    \b
    Examples:
      ckptstore checkout best:val_loss -o best.pt
      ckptstore checkout main --part model -o model.safetensors
      ckptstore checkout main --part model --shard-size 5GB -o exported
      ckptstore checkout main --rename 'model/(.*)=net/module.\\1' -o net.pt
      ckptstore checkout main --tensor model/head.weight -o head.npy
      ckptstore checkout main@step=500 -o checkpoint-500
    """
    from ckptstore import formats

    if array is not None and (include or exclude or rename or part is not None):
        raise click.UsageError(
            "--tensor names one array; --part, --include, --exclude and --rename are for many.", ctx
        )
    repo = open_repository(ctx)
    checkpoint = repo.resolve(rev)
    if checkpoint.expired:
        repo.checkout(rev, lazy=True)  # raises with the revision as typed, not the id
    if part is not None and "/" in part and any(part == a.path for a in checkpoint.arrays):
        raise click.UsageError(f"{part} is an array: --tensor {part} writes it.", ctx)
    state = _state(repo, checkpoint, file, array, part, include, exclude, rename, bytes_max)
    is_folder = shard_bytes is not None or formats.holds_folder(state)
    path = file or default_file(
        checkpoint, suffix=".npy" if array is not None else "" if is_folder else ".pt"
    )
    formats.check_free(path, overwrite=force, shard_bytes=shard_bytes, state=state)
    formats.write_file(
        state, path, overwrite=force, drop_values=drop_values, shard_bytes=shard_bytes
    )
    size = _size(path)
    if as_json:
        step = checkpoint.step
        output.document({"id": checkpoint.id, "step": step, "file": str(path), "bytes": size})
    else:
        chosen = array if part is None else part
        what = "checkpoint" if chosen is None else f"{chosen} of checkpoint"
        best = best_in(rev)
        output.line(
            f"Wrote {path}: {what} {checkpoint.id.short}{f', {best}' if best else ''}, "
            f"{text.size(size)}."
        )
        if path.suffix.lower() in _TORCH_SUFFIXES and (numpy := list(_numpy_arrays(state, ()))):
            output.note(_pickled(numpy))
        if path.name.lower().endswith(_KERAS_WEIGHTS) and not _is_of_keras(checkpoint):
            output.note(
                "Keras' own load_weights does not take this file, as a training saves variables "
                "under other names than Keras. Call ckptstore.load_weights(model, repo, rev), and "
                "model.save_weights for such a file."
            )
        if include and path.suffix.lower() not in _NESTED and (key := _only_key(state)):
            output.note(
                f"Every name in it begins with {key}/. If another tool reads it, leave that out "
                f"with --part {shlex.quote(key)}"
            )


def _is_of_keras(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has the layout of a .weights.h5, as after a commit of one."""
    return any(_KERAS_VARIABLE.search(array.path) for array in checkpoint.arrays)


def _numpy_arrays(state: object, keys: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    """The keys that lead to each numpy array of a state."""
    if isinstance(state, dict):
        items: Iterable[tuple[object, object]] = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    else:
        if getattr(state, "kind", "") == "ndarray":
            yield keys
        return
    for key, value in items:
        yield from _numpy_arrays(value, (*keys, key))


def _only_key(state: object) -> str | None:
    """The one key that a state has, if there is a dict of several arrays under it."""
    if not isinstance(state, dict) or len(state) != 1:
        return None
    ((key, value),) = state.items()
    return key if isinstance(key, str) and isinstance(value, dict) else None


def _pickled(numpy: list[tuple[object, ...]]) -> str:
    """A sentence about a .pt that a plain torch.load refuses."""
    first = "/".join(map(str, numpy[0])) or "the state"
    return (
        f"{text.count(len(numpy), 'numpy array')} in it, such as {first}: torch.load reads the "
        "file only with weights_only=False. Leave them out with --part model or --include."
    )


def default_file(checkpoint: Checkpoint, *, suffix: str = ".pt") -> Path:
    """The default file name of a checkpoint: its step, and its id to find it by."""
    step = "" if checkpoint.step is None else f"{checkpoint.step}-"
    return Path(f"ckpt-{step}{checkpoint.id.short}{suffix}")


def _state(
    repo: Repository,
    checkpoint: Checkpoint,
    file: Path | None,
    array: str | None,
    part: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    rename: dict[str, str],
    bytes_max: int | None,
) -> Any:
    """The lazy state to write; for a whole .zarr, the stored hierarchy where there is one."""
    from ckptstore import formats

    if array is not None:
        return formats.named({array: checkpoint.array(array, bytes_max=bytes_max)})
    is_zarr = file is not None and file.suffix.lower() == ".zarr"
    if is_zarr and not (include or exclude or rename or part is not None):
        values = checkpoint.zarr_values()
        if values is not None:
            return values
    return repo.checkout(
        checkpoint.id,
        include=include or None,
        exclude=exclude or None,
        part=part,
        rename=rename or None,
        lazy=True,
        bytes_max=bytes_max,
    )


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    inside = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in inside if file.is_file())
