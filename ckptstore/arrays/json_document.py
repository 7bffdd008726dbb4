"""JSON in files with arrays: the header of a .safetensors, an index of shards, a Zarr document.

It has the same limits on bytes and values as a repository's own documents, which are checked before
it is parsed: 30 MB of brackets would take 1 GB of memory.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ckptstore.documents.canonical import DOCUMENT_BYTES_MAX, check_size, unique
from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from ckptstore.arrays.file import OpenFile


def read(file: OpenFile, start: int = 0, size: int | None = None) -> bytes:
    """Return JSON from a file.

    Args:
        file: What to read.
        start: Position of the first byte.
        size: Number of bytes; None for all bytes up to the end of the file.

    Raises:
        ValueError: It is larger than the limits allow.
    """
    size = file.nbytes - start if size is None else size
    if size > DOCUMENT_BYTES_MAX:
        raise ValueError(f"its JSON has {size} bytes; at most {DOCUMENT_BYTES_MAX} are read")
    data = file.read(start, size)
    check(data)
    return data


def check(data: bytes) -> None:
    """Raise ValueError for JSON that is larger than the limits allow."""
    try:
        check_size(data, name="its JSON")
    except CorruptError as error:
        raise ValueError(str(error).removesuffix(".")) from error


def parse(data: bytes) -> Any:
    """Return the value of JSON, or raise ValueError. A name may occur once in an object."""
    try:
        return json.loads(data, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
