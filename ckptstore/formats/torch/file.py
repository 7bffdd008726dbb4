"""torch's files, read as weights_only=True reads them: a file that wants to run code is refused, and nothing is run.

They have many suffixes: .pt and .pth, .ckpt of Lightning, .bin of Hugging Face. Arrays are read from the file, and written to it, a piece at a time. torch is imported once such a file is met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.lazy import LazyArray
from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.tree import Flat


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The state in the file, with arrays that read it."""
    from ckptstore.formats.torch.load import load

    return load(OpenFile(path)), {}


def read_tensors(path: Path, *, follow: bool = True) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """The tensors by name of a file that holds nothing else. follow: whether it may be a link."""
    from ckptstore.formats.torch.load import load

    state = load(OpenFile(path, follow=follow))
    if not isinstance(state, dict) or not all(
        type(name) is str and isinstance(tensor, LazyArray) for name, tensor in state.items()
    ):
        raise InvalidInputError(
            f"{path} holds something else than tensors by name, so it is no part of a model. Commit it by its name."
        )
    return dict(state), {}


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write the state as torch.save would."""
    from ckptstore.formats.torch import save as torch_save

    del drop_values  # the format holds every value
    torch_save.write(flat, path)
