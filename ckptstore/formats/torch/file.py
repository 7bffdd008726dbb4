"""Files of torch.save: .pt and .pth, .ckpt of Lightning, .bin of Hugging Face.

They are read as `weights_only=True` reads them: a file that could run code is refused, and there is
no fallback. Tensors are read and written a piece at a time. Importing this module does not import
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile
from ckptstore.arrays.lazy import LazyArray
from ckptstore.errors import InvalidInputError
from ckptstore.formats.torch import lightning

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """Return the state in a file, with arrays that read it, and what Lightning notes in it."""
    from ckptstore.formats.torch.load import load

    state = load(OpenFile(path))
    return state, lightning.meta(state) if lightning.is_lightning(state) else {}


def facts(path: Path, state: Any) -> dict[str, Any]:
    """Return the step, the epoch and the metrics of a file, as far as Lightning notes them."""
    return lightning.facts(state, path.name)


def read_tensors(path: Path, *, follow: bool = True) -> tuple[dict[str, LazyArray], dict[str, str]]:
    """Return the tensors by name of a file that holds nothing else, and no metadata.

    Args:
        path: Path of the file.
        follow: Whether it may be a link.
    """
    from ckptstore.formats.torch.load import load

    state = load(OpenFile(path, follow=follow))
    if not isinstance(state, dict) or not all(
        type(name) is str and isinstance(tensor, LazyArray) for name, tensor in state.items()
    ):
        raise InvalidInputError(
            f"{path} holds more than tensors by name, so it is not a part of a model. Commit it by "
            "its name."
        )
    return dict(state), {}


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write a state as torch.save does."""
    from ckptstore.formats.torch import save

    del drop_values  # the format holds every value
    save.write(flat, path)
