"""Keras' .keras: a zip archive of a model's config, its weights as HDF5, and its assets.

The state has an entry for each member, by its name: the texts config.json and metadata.json
verbatim, the weights as `ckptstore.formats.hdf5` reads them, anything else as an array of bytes. A
config is never interpreted, so nothing that it names is imported or run.
"""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.file import OpenFile, Scratch
from ckptstore.arrays.strided import FileArray
from ckptstore.documents.nodes import ArrayNode, DictNode
from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats import hdf5, zip_members
from ckptstore.formats.names import nested
from ckptstore.formats.window import ReadTooLargeError, Window

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ckptstore.arrays.file import ByteSource
    from ckptstore.arrays.source import ArraySource
    from ckptstore.documents.nodes import Node
    from ckptstore.state.flatten import Flat

TEXT_BYTES_MAX = 8 << 20
CONFIG, METADATA = "config.json", "metadata.json"
_FORM, _WEIGHTS = ".keras", ".h5"


def read(path: Path, *, bytes_max: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the members of an archive by name, nested where the names are paths, and no metadata.

    Args:
        path: The file.
        bytes_max: The most bytes that compressed arrays may unpack to; see `check_unpacked`.
    """
    file, scratch = OpenFile(path), Scratch(path)
    try:
        with zipfile.ZipFile(Window(file, read_bytes_max=zip_members.READ_BYTES_MAX)) as archive:
            members = {
                name: _member(name, zip_members.placed(archive, info, file, scratch), path, scratch)
                for name, info in zip_members.checked(archive, file, bytes_max).items()
                if not name.endswith("/")
            }
    except InvalidInputError:
        raise
    except ReadTooLargeError as error:
        raise zip_members.unreadable(
            file, f"its list of members is too long: {error}", form=_FORM
        ) from error
    except zip_members.ERRORS as error:
        raise zip_members.unreadable(file, error, form=_FORM) from error
    if CONFIG not in members or not any(name.endswith(_WEIGHTS) for name in members):
        raise zip_members.unreadable(file, f"it has no {CONFIG} or no weights", form=_FORM)
    return nested(members), {}


def _member(name: str, place: tuple[ByteSource, int, int], path: Path, scratch: Scratch) -> Any:
    """Return what stands for a member. place: where it is read, its position and size."""
    source, start, size = place
    where = f"The member {shown(name)} of {path}"
    if name.endswith(_WEIGHTS):
        return hdf5.read_in(source, start, size, scratch, name=where)
    if name in (CONFIG, METADATA):
        if size > TEXT_BYTES_MAX:
            raise InvalidInputError(f"{where} has more than {TEXT_BYTES_MAX} bytes.")
        return source.read(start, size).decode()
    return FileArray(source, kind=hdf5.KIND, dtype="uint8", shape=(size,), offset=start)


def write(flat: Flat[ArraySource], path: Path, *, drop_values: bool) -> None:
    """Write an archive from a state that was read from one; Keras loads it."""
    if not isinstance(flat.root, DictNode) or CONFIG not in flat.root.items:
        raise InvalidInputError(
            f"A .keras file holds a model, and the state has no {CONFIG}, as that of a committed "
            ".keras file has. Write the arrays to a .weights.h5 or .safetensors."
        )
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, node in _members(flat.root, ""):
            if isinstance(node, str):
                archive.writestr(name, node)
            elif isinstance(node, ArrayNode) and flat.arrays[node.path].dtype == "uint8":
                with archive.open(name, "w", force_zip64=True) as member:
                    for piece in flat.arrays[node.path].pieces():
                        member.write(piece)
            elif isinstance(node, DictNode):
                weights = path.with_name("weights")  # in the folder of the export
                hdf5.write(replace(flat, root=node), weights, drop_values=drop_values)
                with weights.open("rb") as source, archive.open(name, "w", force_zip64=True) as to:
                    shutil.copyfileobj(source, to, zip_members.PIECE_BYTES)
                weights.unlink()
            else:
                raise InvalidInputError(
                    f"{shown(name)} cannot be in a .keras file: a text, an array of bytes or "
                    "weights is expected."
                )


def _members(node: DictNode, prefix: str) -> Iterator[tuple[str, Node]]:
    """Yield the members of an archive: folders are dicts whose name does not end as weights do."""
    for key, below in node.items.items():
        name = f"{prefix}{key}"
        if isinstance(below, DictNode) and not name.endswith(_WEIGHTS):
            yield from _members(below, f"{name}/")
        else:
            yield name, below
