"""Hugging Face's .safetensors: tensors by name. It has no place for plain values, nor for nesting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore import arrays, codecs
from ckptstore.errors import InvalidInputError
from ckptstore.format.structure import array_path
from ckptstore.state import flatten, leaves

if TYPE_CHECKING:
    from pathlib import Path

HEADER_BYTES_MAX = 16 << 20  # some 100,000 tensors; a structure names about 250,000


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors by name, mapped from the file, and its metadata."""
    from safetensors import SafetensorError, safe_open

    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no __iter__)
            metadata = file.metadata()
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        raise InvalidInputError(f"{path} is not a safetensors file: {error}.") from error
    return tensors, {"safetensors": dict(metadata)} if metadata else {}


def _check_header(path: Path) -> None:
    """Refuse a header that is larger than any that could be committed, before it is parsed."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEADER_BYTES_MAX:
        raise InvalidInputError(
            f"{path} is not a safetensors file that can be committed: its header has {length} bytes; at most "
            f"{HEADER_BYTES_MAX} are read."
        )


def write(state: Any, path: Path, *, drop_values: bool) -> None:
    """Write every array under its path; a state with plain values is refused unless they are to be dropped."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    flat = flatten(state, describe=arrays.describe, encode=codecs.encode)
    values = [name or "the state" for name, node in leaves(flat.root) if array_path(node) is None]
    if values and not drop_values:
        raise InvalidInputError(
            f"A .safetensors file holds arrays only, and the state has {len(values)} plain values "
            f"({', '.join(values[:5])}{', …' if len(values) > 5 else ''}). "
            "Leave them out with --drop-values, choose arrays (--include), or write a .pt file."
        )
    try:
        save_file({name: _tensor(source) for name, source in flat.arrays.items()}, path)
    except SafetensorError as error:  # a full disk, a folder that takes no files
        raise OSError(str(error)) from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise InvalidInputError(f"The state has no .safetensors form: {error}") from error


def _tensor(source: arrays.ArraySource) -> Any:
    """The array as a contiguous tensor of its own memory: the format refuses arrays that share."""
    return arrays.from_bytes(arrays.TENSOR, source.dtype, source.shape, source.whole())
