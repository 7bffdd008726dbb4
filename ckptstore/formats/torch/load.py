"""The two formats of torch.save: a zip archive and, before torch 1.6, pickles before storages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from ckptstore.errors import InvalidInputError, shown
from ckptstore.formats.torch.checked import CheckedRecords
from ckptstore.formats.torch.text import PickleStream
from ckptstore.formats.torch.unpickle import Loader
from ckptstore.formats.torch.zip import Archive
from ckptstore.formats.window import Window
from ckptstore.formats.zip_directory import MAGIC

if TYPE_CHECKING:
    from ckptstore.arrays.file import ByteSource

_LENGTH_BYTES = 8  # before each storage of the old format: its number of elements
_TAR_MAGIC, _TAR_PLACE, _TAR_BYTES = b"ustar", 257, 512


def load(file: ByteSource, *, start: int = 0, size: int | None = None) -> Any:
    """Return what torch.save wrote to a file, or to a part of one.

    Args:
        file: What to read.
        start: Position of the first byte.
        size: Number of bytes; None for all bytes up to the end of the file.

    Returns:
        The state. Its tensors are replaced by arrays that read the file, its numpy arrays are read.

    Raises:
        InvalidInputError: The file is damaged, could run code, or is larger than the limits allow.
    """
    window = Window(file, start=start, size=size)
    head = window.read(_TAR_BYTES)
    if head.startswith(MAGIC):
        return _load_zip(window)
    if head[_TAR_PLACE:].startswith(_TAR_MAGIC):
        raise InvalidInputError(
            f"{file.path} has the oldest format of torch, a tar archive, which cannot be read "
            "without running its code. If you trust it, load it yourself and commit its state_dict."
        )
    return _load_old(window)


def _load_zip(window: Window) -> Any:
    archive, file = Archive(window), CheckedRecords(window.file)
    loader = Loader(file)
    order = archive.read("byteorder") if "byteorder" in archive else b"little"
    if order not in (b"little", b"big"):
        raise archive.invalid(f"it has the byte order {shown(order)}.")
    start, size = archive.place("data.pkl")
    file.add("data.pkl", start=start, size=size, crc=archive.crc("data.pkl"))
    state = loader.unpickle(PickleStream(Window(file, start=start, size=size)))
    places = {}
    for key, storage in loader.roots.items():
        record = f"data/{key}"
        places[key], size = archive.place(record)
        file.add(record, start=places[key], size=size, crc=archive.crc(record))
        if storage.root_nbytes > size:
            raise loader.invalid(
                f"its storage {shown(key)} should have {storage.root_nbytes} bytes, and has {size}."
            )
    return loader.with_arrays(state, places.__getitem__, is_swapped=order == b"big")


def _load_old(window: Window) -> Any:
    window.seek(0)
    loader, stream = Loader(window.file), PickleStream(window)
    if not _is_number(loader.unpickle(stream), MAGIC_NUMBER):
        raise loader.invalid(
            "it is a pickle of another program. If you trust it, load it yourself, and commit a "
            "dict of its arrays and values."
        )
    if not _is_number(loader.unpickle(stream), PROTOCOL_VERSION):
        raise loader.invalid("it has an unknown version.")
    system = loader.unpickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise loader.invalid("it is from a machine with another byte order.")
    state = loader.unpickle(stream)
    keys = loader.unpickle(stream)
    places = _places(loader, window, keys, stream.tell())
    for key in loader.roots:
        if key not in places:
            raise loader.invalid(f"its storage {shown(key)} is missing.")
    return loader.with_arrays(state, places.__getitem__, is_swapped=False)


def _is_number(value: object, number: int) -> bool:
    """Whether a value is this number. A tensor cannot even be compared with one that large."""
    return type(value) is int and value == number


def _places(loader: Loader, window: Window, keys: object, position: int) -> dict[str, int]:
    """Where each storage begins. They follow each other, each after its number of elements."""
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else [keys]:
        storage = loader.roots.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in places:
            raise loader.invalid(f"it lists a storage {shown(key)} that no tensor has.")
        room = window.size - position - _LENGTH_BYTES - storage.root_nbytes
        if room < 0:
            raise loader.invalid(f"its storage {shown(key)} is beyond its end.")
        begin = window.start + position
        length = int.from_bytes(window.file.read(begin, _LENGTH_BYTES), "little")
        if length * storage.item_bytes != storage.root_nbytes:
            raise loader.invalid(
                f"its storage {shown(key)} should have {storage.root_nbytes} bytes, and has "
                f"{length * storage.item_bytes}."
            )
        places[storage.key] = begin + _LENGTH_BYTES
        position += _LENGTH_BYTES + storage.root_nbytes
    return places
