"""A state as the zip archive that torch.save would write of it.

The state is pickled with stand-ins for its tensors, which pickle as torch's own do. zipfile writes
the records, with checksums, and tensors a piece at a time. Every tensor is written with a storage
of its own, in the order of its memory; tied ones stay tied. numpy arrays are part of the pickle and
written whole.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any

import torch

from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.arrays.pytrees import KEY_IMPLS
from ckptstore.arrays.source import NDARRAY
from ckptstore.arrays.strided import c_strides
from ckptstore.documents.chunks import reversed_order, stored_order
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.errors import InvalidInputError, first_line, shown
from ckptstore.formats.torch.text import ARRAYS_BYTES_MAX
from ckptstore.state.classes import NamedValue
from ckptstore.state.flatten import unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from ckptstore.arrays.source import ArraySource
    from ckptstore.state.flatten import Flat

PICKLE_PROTOCOL = 2  # the one that weights_only=True reads
ALIGNMENT = 64  # of a storage in the file, so that a map of it is aligned too
WRITE_BYTES = 4 << 20
_PREFIX = "archive/"
_VERSION = b"3\n"
_PADDING = b"FB"  # torch's name for it, too
_LOCAL_HEADER_BYTES = 30
_ZIP64_BYTES = 20
_LARGEST_ITEM = max(ITEM_BYTES.values())


def write(flat: Flat[ArraySource], path: Path) -> None:
    """Write a state to a new file."""
    with path.open("xb") as file:
        write_archive(flat, file)


def write_archive(flat: Flat[ArraySource], file: IO[bytes]) -> None:
    """Write a state to a file that is open and empty."""
    _check_arrays(flat)
    sources: list[ArraySource] = []

    def stand_in(path: str, kind: str) -> Any:
        source = flat.arrays[path]
        if kind == NDARRAY:
            return arrays.from_bytes(kind, source.dtype, source.shape, source.whole())
        sources.append(source.stored())
        return _Tensor(sources[-1], str(len(sources) - 1))

    data = _pickled(unflatten(flat.root, array=stand_in, decode=_decoded))
    with zipfile.ZipFile(file, "w") as archive:
        # No .format_version: it would promise that places can be computed as in torch's own files.
        _write(archive, "data.pkl", len(data), [data])
        _write(archive, "byteorder", len(b"little"), [b"little"])
        _write(archive, "version", len(_VERSION), [_VERSION])
        for number, source in enumerate(sources):
            _write(archive, f"data/{number}", source.nbytes, source.pieces())


def _decoded(name: str, form: object) -> object:
    """A value of a type; plain fields if its class is not known, so that torch.load needs none.

    Of a random key of JAX it has the data.
    """
    if name in KEY_IMPLS.values():
        return form
    value = codecs.decode(name, form)
    return form if isinstance(value, NamedValue) else value


def _check_arrays(flat: Flat[ArraySource]) -> None:
    """Refuse numpy arrays that are too large to be part of a pickle."""
    sizes = {path: source.nbytes for path, source in flat.arrays.items() if source.kind == NDARRAY}
    if sum(sizes.values()) > ARRAYS_BYTES_MAX:
        largest = max(sizes, key=sizes.__getitem__)
        raise InvalidInputError(
            f"A .pt file has room for {ARRAYS_BYTES_MAX} bytes of numpy arrays, and those of the "
            f"state have {sum(sizes.values())}; the largest is {shown(largest)}. Choose other "
            "arrays (include), or write a .zarr or .npz."
        )


class _Storage:
    """Stands for a tensor's storage: a persistent id in the pickle."""

    def __init__(self, persistent_id: tuple[Any, ...]) -> None:
        self.persistent_id = persistent_id


class _Tensor:
    """Pickles as a tensor would whose elements are all of the storage of this key.

    source: of the tensor in the order of its memory.
    """

    def __init__(self, source: ArraySource, key: str) -> None:
        self.source, self.key = source, key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        source = self.source
        item = ITEM_BYTES[source.dtype]
        rebuild, kind, more = _form(source.dtype)
        length = source.nbytes if kind is torch.UntypedStorage else source.nbytes // item
        storage = _Storage(("storage", kind, self.key, "cpu", length))
        shape, strides = source.shape, tuple(step // item for step in c_strides(source.shape, item))
        if source.order is not None:
            axes = reversed_order(source.order)
            shape, strides = stored_order(shape, axes), stored_order(strides, axes)
        return rebuild, (storage, 0, shape, strides, False, OrderedDict(), *more)


def _form(dtype: str) -> tuple[Callable[..., Any], Any, tuple[Any, ...]]:
    """torch's function for a tensor of a dtype, its kind of storage, and more arguments."""
    raw = torch.zeros(_LARGEST_ITEM, dtype=torch.uint8, device="cpu")
    tensor: Any = raw.view(getattr(torch, dtype))  # a view of complex32 causes no warning
    rebuild, arguments = tensor.__reduce_ex__(PICKLE_PROTOCOL)
    storage, more = arguments[0], arguments[6:]
    if isinstance(storage, torch.UntypedStorage):
        return rebuild, torch.UntypedStorage, more
    kind = storage._pickle_storage_type()  # noqa: SLF001  as torch.save does
    return rebuild, getattr(torch, kind), more


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        """Return what stands for a storage; None for anything else."""
        return obj.persistent_id if type(obj) is _Storage else None


def _pickled(state: Any) -> memoryview:
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
        raise InvalidInputError(f"The state has no .pt form: {first_line(error)}.") from error
    return buffer.getbuffer()


def _write(
    archive: zipfile.ZipFile, name: str, size: int, pieces: Iterable[bytes | memoryview]
) -> None:
    """Write a record whose bytes begin at a multiple of ALIGNMENT."""
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
