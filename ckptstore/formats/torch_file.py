"""torch's .pt and .pth, read as weights_only=True reads them: a file that wants to run code is refused, and nothing is run.

Arrays are read from the file, and written to it, a piece at a time. torch is imported once such a file is met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckptstore.formats.file_array import OpenFile

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays import ArraySource
    from ckptstore.state import Flat


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The state in the file, with arrays that read it."""
    from ckptstore.formats.torch_load import load

    return load(OpenFile(path)), {}


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write the state as torch.save would."""
    from ckptstore.formats import torch_save

    del drop_values  # the format holds every value
    torch_save.write(flat, path)
