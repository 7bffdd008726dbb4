"""A state as the zip archive that torch.save would write of it, a piece of an array at a time.

The state is pickled with stand-ins in place of its tensors, which pickle as torch's own do. zipfile writes the records, and
the checksum of each as it comes by. Every tensor is written in C order, with a storage of its own; tied ones stay tied.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ckptstore.arrays import source as arrays
from ckptstore.arrays.strided import c_strides
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError
from ckptstore.formats.torch.array_text import ArrayTexts
from ckptstore.state import codecs
from ckptstore.state.tree import unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.tree import Flat

PICKLE_PROTOCOL = 2  # the one that weights_only=True reads
ALIGNMENT = 64  # of a storage in the file, so that a map of it is aligned too
WRITE_BYTES = 4 << 20
_PREFIX = "archive/"
_VERSION = b"3\n"
_PADDING = b"FB"  # what torch calls it too
_LOCAL_HEADER_BYTES = 30
_ZIP64_BYTES = 20
_LARGEST_ITEM = max(ITEM_BYTES.values())


def write(flat: Flat[ArraySource], path: Path) -> None:
    """Write a state to a new file."""
    sources: list[ArraySource] = []
    texts = ArrayTexts()

    def stand_in(path: str, kind: str) -> Any:
        source = flat.arrays[path]
        if kind == arrays.NDARRAY and texts.is_long(source):
            return texts.stand_in(source, path)
        if kind == arrays.NDARRAY:
            return arrays.from_bytes(kind, source.dtype, source.shape, source.whole())
        sources.append(source)
        return _Tensor(source, str(len(sources) - 1))

    data = _pickled(unflatten(flat.root, array=stand_in, decode=codecs.decode))
    parts = texts.filled(data)
    with path.open("xb") as file, zipfile.ZipFile(file, "w") as archive:
        # Without .format_version, which would promise that places can be computed the way torch's own writer lays them out.
        size = sum(part.size for part in parts)
        _write(archive, "data.pkl", size, chain.from_iterable(part.pieces() for part in parts))
        _write(archive, "byteorder", len(b"little"), iter([b"little"]))
        _write(archive, "version", len(_VERSION), iter([_VERSION]))
        for number, source in enumerate(sources):
            _write(archive, f"data/{number}", source.nbytes, source.pieces())


class _Storage:
    """Stands for a tensor's storage: a persistent id in the pickle."""

    def __init__(self, persistent_id: tuple[Any, ...]) -> None:
        self.persistent_id = persistent_id


class _Tensor:
    """Pickles as a tensor would whose elements lie in C order in the storage of this key."""

    def __init__(self, source: ArraySource, key: str) -> None:
        self.source, self.key = source, key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        source = self.source
        item = ITEM_BYTES[source.dtype]
        rebuild, kind, more = _form(source.dtype)
        length = source.nbytes if kind is torch.UntypedStorage else source.nbytes // item
        storage = _Storage(("storage", kind, self.key, "cpu", length))
        strides = tuple(step // item for step in c_strides(source.shape, item))
        return rebuild, (storage, 0, source.shape, strides, False, OrderedDict(), *more)


def _form(dtype: str) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """What torch calls to make a tensor of a dtype, its kind of storage, and what follows the usual arguments."""
    raw = torch.zeros(_LARGEST_ITEM, dtype=torch.uint8, device="cpu")
    tensor: Any = raw.view(getattr(torch, dtype))  # made so, complex32 causes no warning
    rebuild, arguments = tensor.__reduce_ex__(PICKLE_PROTOCOL)
    storage, more = arguments[0], arguments[6:]
    if isinstance(storage, torch.UntypedStorage):
        return rebuild, torch.UntypedStorage, more
    return rebuild, getattr(torch, storage._pickle_storage_type()), more  # noqa: SLF001  as torch.save does


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        """What stands for a storage; None for all else."""
        return obj.persistent_id if type(obj) is _Storage else None


def _pickled(state: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=PICKLE_PROTOCOL).dump(state)
    except (
        pickle.PicklingError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise InvalidInputError(f"The state has no .pt form: {said.removesuffix('.')}.") from error
    return buffer.getvalue()


def _write(
    archive: zipfile.ZipFile, name: str, size: int, pieces: Iterator[bytes | memoryview]
) -> None:
    """Write a record, whose bytes begin at a multiple of ALIGNMENT."""
    entry = zipfile.ZipInfo(_PREFIX + name)
    entry.file_size = size
    is_large = size > zipfile.ZIP64_LIMIT // 2  # zipfile asks for some room too
    file: Any = archive.fp
    header = _LOCAL_HEADER_BYTES + len(entry.filename) + (_ZIP64_BYTES if is_large else 0)
    padding = -(file.tell() + header + 2 * len(_PADDING)) % ALIGNMENT
    entry.extra = _PADDING + padding.to_bytes(2, "little") + bytes(padding)
    with archive.open(entry, "w", force_zip64=is_large) as record:
        for piece in pieces:
            for start in range(0, len(piece), WRITE_BYTES):
                record.write(piece[start : start + WRITE_BYTES])
    entry.extra = b""  # of no use in the directory
