"""JSON that comes with arrays: the header of a .safetensors, an index of shards, the nodes of a Zarr folder.

Held to what a document of ours may have of bytes and values before it is parsed: 30 MB of brackets take a GB of memory.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ckptstore.documents.canonical import DOCUMENT_BYTES_MAX, check_size, unique
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from ckptstore.arrays.file import OpenFile


def read(file: OpenFile, start: int = 0, size: int | None = None) -> bytes:
    """The JSON in these bytes of a file, to its end if no size is given. ValueError for more than is ever parsed."""
    size = file.nbytes - start if size is None else size
    if size > DOCUMENT_BYTES_MAX:
        raise ValueError(f"its JSON has {size} bytes; at most {DOCUMENT_BYTES_MAX} are read")
    data = file.read(start, size)
    check(data)
    return data


def check(data: bytes) -> None:
    """Raise the ValueError with which `read` would refuse this."""
    try:
        check_size(data, name="its JSON")
    except CorruptError as error:
        raise ValueError(str(error).removesuffix(".")) from error


def parse(data: bytes) -> Any:
    """The value of what was read; a ValueError says why there is none."""
    try:
        return json.loads(data, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
