"""numpy's .npz: a zip archive of .npy files.

Stored members are read in place. Compressed ones are unpacked to a temporary file first, once the
archive's claims about them are plausible. Pickles are never read.
"""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile, Scratch
from ckptstore.documents.dtypes import NUMPY_DTYPES
from ckptstore.errors import InvalidInputError
from ckptstore.formats import npy, safetensors, zip_members
from ckptstore.formats.arrays_only import check_dtypes, check_values
from ckptstore.formats.names import nested
from ckptstore.formats.window import ReadTooLargeError, Window

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

_FORM, _SUFFIX = ".npz", ".npy"


def read(path: Path, *, bytes_max: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays by name, as nested dicts where the names are paths, and no metadata.

    Args:
        path: The file.
        bytes_max: The most bytes that compressed arrays may unpack to; see `check_unpacked`.
    """
    file, scratch = OpenFile(path), Scratch(path)
    try:
        with zipfile.ZipFile(Window(file, read_bytes_max=zip_members.READ_BYTES_MAX)) as archive:
            _check_names(archive, file)
            arrays = {
                name.removesuffix(_SUFFIX): npy.array_in(
                    *zip_members.placed(archive, info, file, scratch),
                    name=zip_members.name_of(info, file),
                )
                for name, info in zip_members.checked(archive, file, bytes_max).items()
            }
    except InvalidInputError:
        raise
    except ReadTooLargeError as error:
        raise zip_members.unreadable(
            file, f"its list of members is too long: {error}", form=_FORM
        ) from error
    except zip_members.ERRORS as error:
        raise zip_members.unreadable(file, error, form=_FORM) from error
    return nested(arrays), {}


def _check_names(archive: zipfile.ZipFile, file: OpenFile) -> None:
    for info in archive.infolist():
        if not info.filename.endswith(_SUFFIX):
            raise InvalidInputError(
                f"{zip_members.name_of(info, file)} is not an array: its name does not end in "
                f"{_SUFFIX}."
            )


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write every array under its path, which is its name in numpy.load."""
    form = "A .npz file"
    check_values(flat, form=form, drop_values=drop_values)
    check_dtypes(flat, NUMPY_DTYPES, form=form, safetensors=safetensors.DTYPES)
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, source in flat.arrays.items():
            with archive.open(f"{name}{_SUFFIX}", "w", force_zip64=True) as member:
                npy.write_array(source, member)  # type: ignore[arg-type]
