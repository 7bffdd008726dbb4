"""First bytes: recognize the format of a file by its contents, or a file that is no checkpoint.

File names say little: `model_best.pth.tar` is a file of torch.save, and a `model.safetensors` can
be a Git LFS pointer or the web page of a failed download. So the beginning of a file decides, and
its suffix only if the beginning is of no known kind.
"""

from __future__ import annotations

import json
import re
import struct
from typing import NamedTuple

from ckptstore.errors import shown

HEAD_BYTES = 4096
TORCH, SAFETENSORS, NPZ, NPY = "torch", "safetensors", "npz", "npy"
HDF5, KERAS = "hdf5", "keras"
_ZIP = b"PK\x03\x04"
_TORCH_RECORD = re.compile(
    rb"[^/]*/(data\.pkl|version|byteorder|constants\.pkl|\.format_version|data/.*|code/.*)"
)
_TAR = b"ustar"
_TAR_PLACE = 257
_TORCH_TAR = (b"sys_info", b"pickle", b"tensors", b"storages")
_KERAS = re.compile(rb"metadata\.json|config\.json|(model|_model)?\.?weights\.h5|assets/.*")
_UNPACK = "Unpack it, and commit what is in it"


class Foreign(NamedTuple):
    """A kind of file that holds no checkpoint, with its description and the way out."""

    what: str
    way_out: str


POINTER = Foreign(
    "a pointer of Git LFS to the file, not the file", "Get the contents with 'git lfs pull'"
)
_MAGICS: tuple[tuple[bytes, Foreign], ...] = (
    (b"version https://git-lfs.github.com/spec/", POINTER),
    (
        b"GGUF",
        Foreign(
            "a GGUF file of llama.cpp, whose quantized tensors no checkpoint can hold",
            "Commit the .safetensors or .pt that it was made from",
        ),
    ),
    (b"\x1f\x8b", Foreign("compressed with gzip", "Unpack it with gunzip, and commit the result")),
    (b"BZh", Foreign("compressed with bzip2", "Unpack it with bunzip2, and commit the result")),
    (b"\xfd7zXZ\0", Foreign("compressed with xz", "Unpack it with unxz, and commit the result")),
    (
        b"\x28\xb5\x2f\xfd",
        Foreign("compressed with zstd", "Unpack it with unzstd, and commit the result"),
    ),
    (b"7z\xbc\xaf\x27\x1c", Foreign("a 7z archive", _UNPACK)),
    (b"\x89PNG", Foreign("a PNG image", "Pass the file of the checkpoint")),
    (b"\xff\xd8\xff", Foreign("a JPEG image", "Pass the file of the checkpoint")),
    (b"GIF8", Foreign("a GIF image", "Pass the file of the checkpoint")),
    (b"%PDF", Foreign("a PDF document", "Pass the file of the checkpoint")),
    (b"\x7fELF", Foreign("a program or a library", "Pass the file of the checkpoint")),
)
_ONNX = Foreign(
    "an ONNX model, a graph with its weights",
    "Commit the file that it was exported from, or read its initializers with "
    "onnx.numpy_helper.to_array and commit a dict of them",
)
_TFLITE = Foreign("a TensorFlow Lite model", "Commit the model that it was converted from")
_PAGE = Foreign(
    "an HTML page, as a failed download or a login leaves it", "Download the file again"
)
_INDEX = Foreign("the index of a folder of weights", "Commit its folder")
_JSON = Foreign("a JSON document", "Pass the file or folder that holds the arrays")
_TEXT = Foreign("a text file", "Pass the file or folder that holds the arrays")
_EMPTY = Foreign("empty, as an interrupted copy or a full disk leaves it", "Get the file again")
_ZEROS = Foreign(
    "a file whose beginning is all zeros, as a crash or an interrupted copy leaves it",
    "Get the file again",
)


def identify(head: bytes, *, size: int) -> str | Foreign | None:
    """Recognize a file by its beginning.

    Args:
        head: The first `HEAD_BYTES` bytes, or all.
        size: The size of the file in bytes.

    Returns:
        `TORCH`, `SAFETENSORS`, `NPZ`, `NPY`, `HDF5` or `KERAS`, a `Foreign` kind, or None if it is
        not recognized.
    """
    if not size:
        return _EMPTY
    if _is_safetensors(head, size):  # first, as the length of its header may look like a magic
        return SAFETENSORS
    if head.startswith(_ZIP):
        return _of_zip(head)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):  # a pickle
        return TORCH
    if head[_TAR_PLACE:].startswith(_TAR):
        return TORCH if head.startswith(_TORCH_TAR) else Foreign("a tar archive", _UNPACK)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return HDF5
    if head.startswith(b"\x93NUMPY"):
        return NPY
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    return _of_the_rest(head)


def _of_zip(head: bytes) -> str | Foreign | None:
    """Recognize a zip archive by the name of its first record."""
    if len(head) < 30:
        return None
    (length,) = struct.unpack_from("<H", head, 26)
    name = head[30 : 30 + length]
    if _TORCH_RECORD.fullmatch(name):
        return TORCH
    if name.endswith(b".npy"):
        return NPZ
    if _KERAS.fullmatch(name):
        return KERAS
    return None


def _is_safetensors(head: bytes, size: int) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _of_the_rest(head: bytes) -> Foreign | None:
    """Recognize a file without a magic number of its own."""
    begin = head.lstrip().lower()
    if begin.startswith((b"<!doctype html", b"<html")):
        return _PAGE
    if head[4:8] == b"TFL3":
        return _TFLITE
    if re.match(rb"\x08[\x01-\x20](\x12.[\x20-\x7e]+|\x3a)", head, re.DOTALL):
        return _ONNX
    if not head.strip(b"\0"):
        return _ZEROS
    if _is_text(head):
        if begin.startswith((b"{", b"[")):
            return _INDEX if b'"weight_map"' in head else _named(head) or _JSON
        return _TEXT
    return None


def _named(head: bytes) -> Foreign | None:
    """Recognize a file that names a checkpoint, as `CkptStoreIO` of Lightning writes it."""
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    url, id = document.get("ckptstore"), document.get("id")
    if not (isinstance(url, str) and isinstance(id, str)):
        return None
    return Foreign(
        f"a file that names checkpoint {shown(id[:12])} of the repository {shown(url)}",
        "The arrays are there: use that checkpoint, or pull its branch",
    )


def _is_text(head: bytes) -> bool:
    """Return True if the beginning of a file is text; its last character may be cut off."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) < HEAD_BYTES or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character.isspace() for character in text)
