"""torch's .pt and .pth, read with weights_only=True: a file that wants to run code is refused, and nothing is run."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from ckptstore.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    """The state in the file."""
    import torch

    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of storage classes: only torch's authors can act on it
            return torch.load(path, map_location="cpu", weights_only=True), {}
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InvalidInputError(
            f"{path} holds more than tensors and plain values{f' ({foreign[1]})' if foreign else ''}, so loading it "
            "could run code, and it is not loaded. If you trust it, load it yourself and commit its state_dict."
        ) from error
    except Exception as error:
        raise InvalidInputError(
            f"{path} is not a file that torch.save wrote: {_first_line(error)}"
        ) from error


def write(state: Any, path: Path, *, drop_values: bool) -> None:
    """Write the state with torch.save."""
    import torch

    del drop_values  # the format holds every value
    try:
        torch.save(state, path)
    except RuntimeError as error:  # of its writer in C++: a full disk, a folder that takes no files
        said = str(error).partition("\n")[0].rpartition(" . ")[2]
        raise OSError(f"torch.save failed, perhaps on a full disk ({said})") from error
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InvalidInputError(f"The state has no .pt form: {_first_line(error)}") from error


def _check_archive(path: Path) -> None:
    """Refuse a zip file that unpacks to more than it is: torch.save packs without compressing."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not a file that torch.save wrote: {error}.") from error
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise InvalidInputError(
            f"{path} is not a file that torch.save wrote: it unpacks to more than it holds, or is compressed. "
            "Unpack it yourself if you trust it."
        )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.split(". ")[0][:300].removesuffix(".") + "."
