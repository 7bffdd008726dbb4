"""Event files: the scalars that TensorBoard shows, as rows of metrics.

They are read without TensorFlow. The frames are read here, piece by piece and with a limit, and the
messages in them by the protocol buffers of the tensorboard package. A run that was killed leaves a
cut frame, where its file ends.
"""

from __future__ import annotations

import math
import re
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO

import google_crc32c
import numpy as np

from ckptstore.errors import InvalidInputError, StorageError, printable
from ckptstore.imports.metrics_file import EVENT_FILE
from ckptstore.regular_file import NotRegularError, open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES_MAX = 10_000
RECORD_BYTES_MAX = 16 << 20  # of an event that is read; larger ones hold images
SCALARS_MAX = 4_000_000
_FRAME = struct.Struct("<QI")  # the length of an event, and its checksum
_MASK = 0xA282EAD8
_VALIDATION = frozenset({"validation", "val", "valid", "eval"})  # folders that loggers write
_OWN = "checkpoint/"  # what ckptstore writes of checkpoints
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of TensorFlow's DataType
_LISTS = {1: "float_val", 2: "double_val", 3: "int_val", 9: "int64_val"}
_EPOCH = re.compile(r"epoch_(.+)")

Row = dict[str, int | float]


def rows_of(path: Path) -> tuple[list[Row], list[str]]:
    """Return the scalars in event files by step and by epoch, and notes on damaged files.

    The name of a metric is its tag. Keras' "epoch_loss" is "loss" of an epoch, and what is in a
    folder called "validation" begins with "val_". What is in another folder below, except "train",
    begins with the name of that folder.

    Args:
        path: An event file, or a folder with such files in it or below.

    Raises:
        InvalidInputError: There are none, too many, or too many scalars.
        StorageError: A file cannot be read.
    """
    files = sorted(path.rglob(f"*{EVENT_FILE}*")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]
    if not files or len(files) > FILES_MAX:
        raise InvalidInputError(
            f"{path} holds {len(files) or 'no'} event files of TensorBoard; 1 to {FILES_MAX} are "
            "expected."
        )
    event_type = _event_type()
    rows: dict[tuple[str, int], Row] = {}
    notes: list[str] = []
    count = 0
    for file in files:
        run = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
        for tag, step, value in _scalars(file, event_type, notes):
            kind, name = _named(tag, run)
            rows.setdefault((kind, step), {kind: step})[name] = value
            count += 1
            if count > SCALARS_MAX:
                raise InvalidInputError(f"{path} holds more than {SCALARS_MAX} scalars.")
    return [rows[key] for key in sorted(rows)], notes


def _named(tag: str, run: str) -> tuple[str, str]:
    """Return "step" or "epoch", which the number of a scalar is, and the name of the metric."""
    match = _EPOCH.fullmatch(tag)
    kind, name = ("epoch", match[1]) if match else ("step", tag.removeprefix(_OWN))
    *others, last = run.split("/")
    if last in _VALIDATION:
        prefix, name = "/".join(others), name if name.startswith("val_") else f"val_{name}"
    else:
        prefix = "" if last in ("train", ".") and not others else run
    return kind, f"{prefix}/{name}" if prefix else name


def _event_type() -> Any:
    try:
        return import_module("tensorboard.compat.proto.event_pb2").Event
    except ImportError as error:
        raise InvalidInputError(
            "Event files are read with the tensorboard package, which cannot be imported "
            f"({error}): pip install 'ckptstore[tensorboard]'."
        ) from error


def _scalars(
    path: Path, event_type: Any, notes: list[str]
) -> Iterator[tuple[str, int, int | float]]:
    """Yield the tag, the step and the value of the scalars in a file. notes: receives damage."""
    try:
        descriptor, status = open_regular(path, follow=True)
        with open(descriptor, "rb") as file:
            for data in _events(file, status.st_size, path, notes):
                try:
                    event = event_type.FromString(data)
                except Exception:  # noqa: BLE001 - any error of another parser
                    notes.append(_damage(path, "an event in it cannot be parsed"))
                    return
                for value in event.summary.value:
                    number = _number(value)
                    if number is not None and value.tag:
                        yield value.tag, event.step, number
    except NotRegularError as error:
        raise InvalidInputError(f"{path} is not a regular file.") from error
    except OSError as error:
        raise StorageError(f"{path} could not be read: {error.strerror}.") from error


def _events(file: BinaryIO, size: int, path: Path, notes: list[str]) -> Iterator[bytes]:
    """Yield the events in a file up to where it is cut or damaged, without those too large."""
    place = 0
    while place + _FRAME.size <= size:
        head = file.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return
        length, checksum = _FRAME.unpack(head)
        if _masked(head[:8]) != checksum:
            notes.append(_damage(path, f"its checksums are wrong from byte {place} on"))
            return
        place += _FRAME.size + length + 4
        if place > size:
            return  # the run was killed while it wrote
        if length > RECORD_BYTES_MAX:
            file.seek(place)
            continue
        data = file.read(length)
        (checksum,) = struct.unpack("<I", file.read(4))
        if _masked(data) != checksum:
            notes.append(_damage(path, f"its checksums are wrong before byte {place}"))
            return
        yield data


def _masked(data: bytes) -> int:
    """Return the CRC-32C of bytes as these files have it."""
    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


def _damage(path: Path, why: str) -> str:
    return f"{printable(str(path))} is damaged: {why}. Only what precedes is used."


def _number(value: Any) -> int | float | None:
    """Return the number of a summary's value; None for a text, an image or a histogram."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.metadata.plugin_data.plugin_name not in ("scalars", ""):
        return None
    tensor = value.tensor
    if tensor.dtype not in _DTYPES or math.prod(dim.size for dim in tensor.tensor_shape.dim) != 1:
        return None
    dtype = np.dtype(_DTYPES[tensor.dtype])
    if len(tensor.tensor_content) == dtype.itemsize:
        number: int | float = np.frombuffer(tensor.tensor_content, dtype)[0].item()
        return number
    listed = getattr(tensor, _LISTS[tensor.dtype])
    return listed[0] if len(listed) == 1 else None
