"""Files and folders of torch's that claim what they do not hold, and of which nothing may run."""

from __future__ import annotations

import encodings.latin_1  # noqa: F401  pickles of bytes ask for it
import os
import pickle
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

import ckptstore.formats.dcp.folder  # noqa: F401  so that no import is left for a case to cause
from ckptstore.errors import CkptStoreError
from ckptstore.formats import read_file
from tests.helpers.hostile.cases import Case, World, call
from tests.helpers.hostile.inputs.files import COMMAND, _file, _repacked, _Runs, _saved

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_HUGE = b"\x8a\x08" + struct.pack("<q", 2**62)
_RAN = b"cposix\nsystem\nX" + struct.pack("<I", len(COMMAND)) + COMMAND.encode() + b"\x85R"
_FLOATS = "ctorch\nFloatStorage\n"


def _pt(story: str, change: Callable[[bytes], bytes]) -> Case:
    """A .pt of one tensor of 2 x 3, with another pickle."""
    data = _saved({"w": torch.zeros(2, 3)})

    def write(path: Path) -> object:
        changed = _repacked(data, lambda name, old: change(old) if name.endswith("pkl") else old)
        return path.write_bytes(changed)

    return _file(story, "x.pt", write)


def _put(former: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert data.count(former) == 1, data
        return data.replace(former, new)

    return change


def _old(story: str, *values: Any, behind: bytes = b"") -> Case:
    """A file of the old format with these pickles; bytes are taken as they are."""
    parts = [
        value if isinstance(value, bytes) else pickle.dumps(value, protocol=2) for value in values
    ]
    return _file(story, "x.pt", lambda path: path.write_bytes(b"".join(parts) + behind))


_BEGIN = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


def _tensor(length: bytes, shape: bytes = b"K\x02\x85", key: bytes = b"0") -> bytes:
    """The pickle of a tensor whose storage has this many elements."""
    storage = (
        b"(X\x07\0\0\0storage" + _FLOATS.encode() + b"X\x01\0\0\0" + key + b"X\x03\0\0\0cpu"
    ) + length
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"NtQK\0"
        + shape
        + b"K\x01\x85\x89ccollections\nOrderedDict\n)RtR."
    )


def _numpy(story: str, former: bytes, new: bytes) -> Case:
    """A .pt of a numpy array, with another pickle."""
    data = _saved(np.zeros(3))

    def write(path: Path) -> object:
        change = _put(former, new)
        changed = _repacked(data, lambda name, old: change(old) if name.endswith("pkl") else old)
        return path.write_bytes(changed)

    return _file(story, "x.pt", write)


def _dcp(story: str, edit: Callable[[Any, Path], object]) -> Case:
    """A folder of torch.distributed.checkpoint; returned bytes replace its metadata."""

    def write(world: World) -> Path:
        folder = world.store.parent / "folder"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is the only process
            dcp.save({"w": torch.zeros(2, 3), "step": 3}, checkpoint_id=folder)
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        edited = edit(metadata, folder)
        data = edited if isinstance(edited, bytes) else pickle.dumps(metadata)
        if (folder / ".metadata").is_file() and not (folder / ".metadata").is_symlink():
            (folder / ".metadata").write_bytes(data)
        return folder

    return call(
        f"a folder that {story}",
        lambda world: world.repo.commit(read_file(world.given).state),
        given=write,
        error=CkptStoreError,
    )


def _named(name: str) -> Callable[[Any, Path], object]:
    """Every place is in a file of this name."""

    def edit(metadata: Any, folder: Path) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    return edit


def _linked(metadata: Any, folder: Path) -> None:
    (folder / "__0_0.distcp").rename(folder.parent / "moved")
    (folder / "__0_0.distcp").symlink_to("../moved")


def _linked_metadata(metadata: Any, folder: Path) -> None:
    (folder / ".metadata").rename(folder.parent / "moved")
    (folder / ".metadata").symlink_to("../moved")


def _value_that_runs(metadata: Any, folder: Path) -> None:
    """The bytes of the value are a file of torch's that runs os.system."""
    data = _saved(_Runs(os.system, COMMAND))
    for index, info in metadata.storage_data.items():
        if index.fqn == "step":
            info.offset, info.length = (folder / "__0_0.distcp").stat().st_size, len(data)
    with (folder / "__0_0.distcp").open("ab") as file:
        file.write(data)


def _sizes(*sizes: int) -> Callable[[Any, Path], object]:
    """The tensor says to have this shape, and its one shard too."""

    def edit(metadata: Any, folder: Path) -> None:
        entry = metadata.state_dict_metadata["w"]
        entry.size = entry.chunks[0].sizes = torch.Size(sizes)

    return edit


def _many_shards(metadata: Any, folder: Path) -> None:
    """3,000 shards that overlap, all with a place."""
    entry = metadata.state_dict_metadata["w"]
    index, info = next(item for item in metadata.storage_data.items() if item[0].fqn == "w")
    entry.size = torch.Size([3001, 3])
    entry.chunks = []
    for number in range(3000):
        offset = torch.Size([number, 0])
        entry.chunks.append(_chunk(offset))
        metadata.storage_data[type(index)("w", offset)] = info


def _chunk(offset: torch.Size) -> Any:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    return ChunkStorageMetadata(offset, torch.Size([2, 3]))


def _append(data: bytes) -> Callable[[Any, Path], bytes]:
    """A pickle that begins with this, and has the metadata behind it."""
    return lambda metadata, folder: b"\x80\x04" + data + pickle.dumps(metadata)[2:]


def _bomb() -> bytes:
    """A directory of 150,000 records that are not there."""
    name = b"x/" + b"0" * 6
    end = struct.Struct("<4s4H2LH")
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<HHHHHLL", len(name), 0, 0, 0, 0, 0, 0)
    entries = b"".join(entry + b"x/%06d" % number for number in range(150_000))
    begin = b"PK\x03\x04" + bytes(26)
    return begin + entries + end.pack(b"PK\x05\x06", 0, 0, 65535, 65535, len(entries), 30, 0)


CASES = (
    _pt("a .pt whose storage is larger than the file", _put(b"K\x06tq", _HUGE + b"tq")),
    _pt("a .pt whose storage is larger than its record", _put(b"K\x06tq", b"K\x40tq")),
    _pt("a .pt whose storage has a negative size", _put(b"K\x06tq", b"J\xff\xff\xff\xfftq")),
    _pt("a .pt whose storage is not there", _put(b"X\x01\0\0\0000", b"X\x01\0\0\0007")),
    _pt("a .pt of a view beyond its storage", _put(b"K\x02K\x03\x86", b"K\x02K\x40\x86")),
    _pt("a .pt of a view behind its storage", _put(b"QK\0K\x02", b"QK\x40K\x02")),
    _pt("a .pt of a view before its storage", _put(b"QK\0K\x02", b"QJ\xff\xff\xff\xffK\x02")),
    _pt("a .pt of 2^62 x 3 elements", _put(b"K\x02K\x03\x86", _HUGE + b"K\x03\x86")),
    _pt("a .pt of strides of 2^62", _put(b"K\x03K\x01\x86", _HUGE + b"K\x01\x86")),
    _pt("a .pt whose storage is of an odd kind", _put(b"FloatStorage", b"QUInt8Storage")),
    _pt("a .pt whose storage is no storage", _put(b"ctorch\nFloatStorage", b"ctorch\nfloat32")),
    _pt("a .pt that names a storage by a list", _put(b"X\x01\0\0\0000", b"]")),
    _pt("a .pt that runs os.system beside numpy", lambda data: b"\x80\x02" + _RAN + b"."),
    _file("a .pt of 150,000 records that are not there", "x.pt", lambda p: p.write_bytes(_bomb())),
    _file(
        "a .pt that holds a numpy array and runs os.system",
        "x.pt",
        lambda path: path.write_bytes(_saved([np.zeros(2), _Runs(os.system, COMMAND)])),
    ),
    _numpy("a .pt of a numpy array of 2^62 elements", b"K\x03\x85", _HUGE + b"\x85"),
    _numpy("a .pt of a numpy array of a negative shape", b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
    _numpy("a .pt of a numpy array of objects", b"X\x02\0\0\0f8", b"X\x02\0\0\0O8"),
    _numpy("a .pt of a numpy array of arrays", b"X\x02\0\0\0f8", b"X\x0b\0\0\0(9999999,)f"),
    _old("a .pt of old that ends before its state", *_BEGIN),
    _old("a .pt of old that begins with a tensor", _tensor(b"K\x02")),
    _old("a .pt of old whose version is a tensor", _BEGIN[0], _tensor(b"K\x02")),
    _old("a .pt of old that runs os.system in its state", *_BEGIN, b"\x80\x02" + _RAN + b"."),
    _old("a .pt of old that runs os.system at the very beginning", b"\x80\x02" + _RAN + b"."),
    _old(
        "a .pt of old that runs os.system where its keys are expected",
        *(*_BEGIN, _tensor(b"K\x02"), b"\x80\x02" + _RAN + b"."),
    ),
    _old(
        "a .pt of old whose tensor has 2^62 elements",
        *(*_BEGIN, _tensor(_HUGE, _HUGE + b"\x85"), ["0"]),
        behind=struct.pack("<q", 2**62),
    ),
    _old(
        "a .pt of old whose storage has more elements than its tensor says",
        *(*_BEGIN, _tensor(b"K\x02"), ["0"]),
        behind=struct.pack("<q", 2**40) + bytes(8),
    ),
    _old(
        "a .pt of old whose storage is missing",
        *(*_BEGIN, _tensor(b"K\x02"), []),
        behind=struct.pack("<q", 2) + bytes(8),
    ),
    _old(
        "a .pt of old that lists a storage twice",
        *(*_BEGIN, _tensor(b"K\x02"), ["0", "0"]),
        behind=2 * (struct.pack("<q", 2) + bytes(8)),
    ),
    _old(
        "a .pt of old that lists storages that nothing has",
        *(*_BEGIN, _tensor(b"K\x02"), ["0", "1"]),
        behind=2 * (struct.pack("<q", 2) + bytes(8)),
    ),
    _old("a .pt of old of a text of 4 GB", *_BEGIN, b"\x80\x02X\xff\xff\xff\xffabc"),
    _dcp(
        "runs os.system in its metadata",
        lambda metadata, folder: pickle.dumps(_Runs(os.system, COMMAND)),
    ),
    _dcp(
        "runs os.system deep in its metadata",
        lambda metadata, folder: metadata.planner_data.update(x=_Runs(os.system, COMMAND)),
    ),
    _dcp("runs os.system in a value", _value_that_runs),
    _dcp("runs eval in its metadata", lambda metadata, folder: pickle.dumps(_Runs(eval, "1"))),
    _dcp("asks for a text of 2^62 bytes", _append(b"\x8d" + struct.pack("<Q", 2**62))),
    _dcp("asks for 2^40 bytes", _append(b"\x96" + struct.pack("<Q", 2**40))),
    _dcp("asks for a frame of 2^62 bytes", _append(b"\x95" + struct.pack("<Q", 2**62))),
    _dcp("remembers a value as number 2^31", _append(b"Nr\xff\xff\xff\x7f0")),
    _dcp("has a number of a million digits", _append(b"I" + b"9" * 10**6 + b"\n0")),
    _dcp("sets attributes of a class", _append(b"ctorch\nSize\nN}X\x01\0\0\0aNs\x86b0")),
    _dcp("has metadata of zeros", lambda metadata, folder: bytes(1000)),
    _dcp("has no metadata in its metadata", lambda metadata, folder: pickle.dumps([1])),
    _dcp("has metadata cut in half", lambda metadata, folder: pickle.dumps(metadata)[:900]),
    _dcp("refers to a file outside", _named("../outside/canary")),
    _dcp("refers to /dev/zero", _named("/dev/zero")),
    _dcp("refers to itself", _named(".")),
    _dcp("refers to a file that is not there", _named("none")),
    _dcp("refers to its own metadata", _named(".metadata")),
    _dcp("has a link in place of a file", _linked),
    _dcp("has a link in place of its metadata", _linked_metadata),
    _dcp("has a tensor of 2^61 x 3", _sizes(2**61, 3)),
    _dcp("has a tensor of 2^40 elements more than its file", _sizes(2**40, 3)),
    _dcp("has a tensor of 65 dimensions", _sizes(*[1] * 65)),
    _dcp("has 3,000 shards that overlap", _many_shards),
    _dcp(
        "has a list with position 2^40",
        lambda metadata, folder: metadata.planner_data.update(w=("a", 2**40)),
    ),
)
