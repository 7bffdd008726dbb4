"""Fuzz targets: what is done with the bytes that a fuzzer makes up.

The first line of most inputs says what the rest is. The bytes around it are made to fit: digests,
lengths, checksums and zip directories, else nearly every input would end at the first check.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr
from safetensors.numpy import save as safetensors

import ckptstore
from ckptstore.documents import ref_page, structure
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.manifest import Manifest
from ckptstore.documents.marker import Marker
from ckptstore.documents.operation import Operation
from ckptstore.documents.page import Page
from ckptstore.documents.zarr_page import NodePage
from ckptstore.errors import CkptStoreError
from ckptstore.formats import read_file
from tests.helpers.hostile.cases import GROUP, VERBS, ZARR_VERBS, World
from tests.helpers.hostile.forge import MISSING, W_BYTES, Forge, digest_of, dumps, sealed
from tests.helpers.hostile.repositories import zarr_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_READING = ("open", "refs", "log", "show", "checkout", "into", "verify")
_ZARR = ("zarr", "lazy", "array", "diff")
_NAME = "The document"
_NODES = (zarr_nodes.document(), zarr_nodes.v2_document())
_OBJECTS = (  # what the documents of the seeds name
    GROUP,
    dumps({"structure": {"dict": []}}),
    *(json.dumps(document).encode() for document in _NODES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One kind of input.

    Attributes:
        call: Takes an input and an empty folder. It may return, or raise a CkptStoreError.
        seeds: Makes up the first inputs in an empty folder.
        is_text: Inputs are lines of JSON, which are changed value by value.
    """

    call: Callable[[bytes, Path], object]
    seeds: Callable[[Path], Iterator[bytes]]
    is_text: bool = False


def _json(data: bytes) -> Any:
    """The document in some bytes; None if there is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


# Documents


def _sealed(kind: str) -> Callable[[bytes], bytes]:
    def seal(data: bytes) -> bytes:
        document = _json(data)
        return data if document is None else sealed(kind, document)

    return seal


def _ref_page(data: bytes) -> object:
    return ref_page.decode(data, kind="tag", name=f"{7:012}-{digest_of(data)}", file=_NAME)


_DECODERS: dict[bytes, Callable[[bytes], Any]] = {
    b"marker": lambda data: Marker.decode(_sealed("repository")(data), name=_NAME).encode(),
    b"manifest": lambda data: Manifest.decode(data, name=_NAME).encode(),
    b"page": lambda data: Page.decode(data, name=_NAME).encode(),
    b"nodes": lambda data: NodePage.decode(data, name=_NAME).encode(),
    b"structure": lambda data: structure.decode(data, name=_NAME),
    b"expiry": lambda data: Expiry.decode(_sealed("expiry")(data), name=_NAME).encode(),
    b"refs": _ref_page,
}


def _document(data: bytes, folder: Path) -> None:
    """Decode a document; then read a repository that has it."""
    kind, _, text = data.partition(b"\n")
    if kind not in _DECODERS:
        return
    text = text.removesuffix(b"\n")
    _DECODERS[kind](text)
    world = World(folder)
    forge = Forge(world.store, world.outside)
    forge.honest()
    for data in _OBJECTS:
        forge.object(data)
    if kind == b"manifest":
        forge.operation(heads={"main": forge.manifest_bytes(text)})
    elif kind == b"page":
        document = _json(text)
        forge.honest(arrays=document["arrays"], page=text)
    elif kind == b"nodes":
        _with_nodes(forge, _json(text), text)
    elif kind == b"structure":
        forge.honest(structure_bytes=text)
    else:
        return
    _call(world, *_READING, *_ZARR)


def _with_nodes(forge: Forge, document: Any, text: bytes) -> None:
    with suppress(KeyError, IndexError, TypeError):  # honest claims, where that makes sense
        zarr_nodes.checkpoint(forge, document["nodes"], page=text)


def _call(world: World, *names: str) -> None:
    """Use a repository through these verbs, as far as it can be opened."""
    for name in names:
        with suppress(CkptStoreError):
            if name == "open" or hasattr(world, "repo"):
                {**VERBS, **ZARR_VERBS}[name](world)


def _documents(folder: Path) -> Iterator[bytes]:
    world = World(folder)
    forge = Forge(world.store, world.outside)
    honest = forge.honest()
    yield b"marker\n" + dumps(
        {"format": 1, "store": "f" * 32, "hash": "blake3", "chunk_size": 65536}
    )
    yield b"manifest\n" + forge.manifest_path(honest).read_bytes()
    yield b"manifest\n" + dumps(
        forge.manifest_document(
            structure=digest_of(dumps({"structure": {"dict": []}})),
            parents=[MISSING],
            metrics={"loss": "nan", "acc": 1},
            hierarchy=[],
            branch="main",
        )
    )
    yield b"page\n" + dumps({"arrays": [forge.entry()]})
    yield b"page\n" + dumps({"arrays": [forge.small()], **forge.bundle()})
    node = [["zarr.json", len(GROUP), None, digest_of(GROUP)]]
    yield b"nodes\n" + dumps({"nodes": [{"path": "x", "values": node}], "segment_bytes": 65536})
    for document in _NODES:
        zarr_nodes.array(forge, document)
    yield from (
        b"nodes\n" + data
        for data in (path.read_bytes() for path in sorted(forge.root.glob("objects/*/*")))
        if data.startswith(b'{"bundle"') and b"nodes" in data
    )
    for state in (
        {"dict": [["w", {"tensor": "w"}], [2, [None, True, {"float": "7ff0000000000000"}]]]},
        {"ordered_dict": [["w", {"tuple": [{"ndarray": "w"}]}]], "metadata": {"dict": []}},
        {"tuple": [{"int": "f" * 20}, {"bytes": "AAAA"}, {"complex": ["7ff0000000000000"] * 2}]},
        [{"str": "eda080"}, {"type": "torch.Size", "value": {"tuple": [1, 2]}}],
    ):
        yield b"structure\n" + dumps({"structure": state})
    yield b"expiry\n" + dumps({"format": 1, "time": 1, "why": "old", "ancestors": [MISSING]})
    yield b"refs\n" + dumps({"format": 1, "refs": {"a": MISSING, "b": MISSING}})


# Operations


def _operations(data: bytes, folder: Path) -> None:
    """Use a repository whose newest operations are these, one a line."""
    lines = data.splitlines()[:4]
    for line in lines:
        Operation.decode(_sealed("operation")(line), name=_NAME).encode()
    world = World(folder)
    forge = Forge(world.store, world.outside)
    forge.honest()
    for seq, line in enumerate(lines, 1):
        forge.operation_path(seq).write_bytes(_sealed("operation")(line))
    _call(world, *VERBS, "gc")


def _operation_seeds(folder: Path) -> Iterator[bytes]:
    forge = Forge(folder / "store", folder / "outside")
    head = forge.honest()

    def line(seq: int, **fields: Any) -> bytes:
        path = forge.operation(at=seq, seq=seq, **fields)
        return dumps(json.loads(path.read_bytes())["operation"])

    yield line(1, heads={"main": head})
    yield b"\n".join(
        [
            line(1, heads={"main": head}, settings={"policy": "keep all"}),
            line(2, heads={"main": head}, tags={"v1": head}, undoes=1),
        ]
    )
    condemned = {
        "since": 1,
        "objects": [digest_of(W_BYTES)],
        "checkpoints": [head],
        "deadline": 1_700_000_000_000_000,
        "owner": "f" * 16,
    }
    yield line(1, heads={"main": head}, condemned=condemned)
    yield from _real_operations(folder / "real")


def _real_operations(folder: Path) -> Iterator[bytes]:
    """What a gc and other verbs publish."""
    repo = ckptstore.init(folder)
    for step in (1, 2, 3):
        repo.commit({"w": torch.full((3,), float(step))}, step=step, metrics={"loss": step})
    repo.tag("v1", at="main~1")
    repo.gc(ckptstore.retention.MaxToKeep(1), grace=0)
    repo.undo()
    for path in sorted(folder.glob("ops/*.json")):
        yield dumps(json.loads(path.read_bytes())["operation"])


# .pt files


def _pt(data: bytes, folder: Path) -> None:
    """Read a .pt: a whole file, or a pickle that gets a zip file."""
    kind, _, rest = data.partition(b"\n")
    if kind == b"pickle":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("x/data.pkl", rest)
            archive.writestr("x/byteorder", "little")
            archive.writestr("x/data/0", bytes(24))
            archive.writestr("x/data/1", bytes(24))
            archive.writestr("x/version", "3\n")
        rest = file.getvalue()
    _read(folder / "x.pt", rest)


def _read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _commit(path)


def _commit(path: Path) -> None:
    """Commit what a file holds, and check it out."""
    repo = ckptstore.init("memory://", chunk_size=64 << 10)
    repo.commit(read_file(path).state)
    repo.checkout()


_STATES: tuple[Any, ...] = (
    {"w": torch.zeros(2, 3)},
    {"w": torch.zeros(6, dtype=torch.int64)[::2], "n": {"step": 1, "x": [1.5, None, (True, "y")]}},
    OrderedDict(a=torch.zeros(2, dtype=torch.bfloat16), b=torch.Size([1])),
    {"p": torch.nn.Parameter(torch.ones(2)), "d": torch.float16, "b": b"xyz"},
    {"n": np.zeros(3), "s": np.float32(1)},
)


def _pt_seeds(folder: Path) -> Iterator[bytes]:
    for state in _STATES:
        for new in (True, False):
            file = io.BytesIO()
            torch.save(state, file, _use_new_zipfile_serialization=new)
            yield b"file\n" + file.getvalue()
            if new:
                with zipfile.ZipFile(file) as archive:
                    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                    yield b"pickle\n" + archive.read(name)
    yield b"pickle\n" + pickle.dumps({"a": [1, 2.5, None]}, protocol=2)


# Files of arrays


def _arrays(data: bytes, folder: Path) -> None:
    """Read a .npy, .npz or .safetensors: a whole file, or its header and data."""
    kind, _, rest = data.partition(b"\n")
    header, _, body = rest.partition(b"\n")
    match kind:
        case b"npy" | b"npz" | b"safetensors":
            _read(folder / f"x.{kind.decode()}", rest)
        case b"npy-header":
            _read(folder / "x.npy", _npy(header, body))
        case b"npz-header":
            file = io.BytesIO()
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("a.npy", _npy(header, body))
            _read(folder / "x.npz", file.getvalue())
        case b"safetensors-header":
            _read(folder / "x.safetensors", struct.pack("<Q", len(header)) + header + body)


def _npy(header: bytes, body: bytes) -> bytes:
    header += b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + body


def _array_seeds(folder: Path) -> Iterator[bytes]:
    samples = (np.zeros((2, 3), "<f4"), np.zeros(3, ">i8"), np.asfortranarray(np.ones((2, 2))))
    for array in samples:
        file = io.BytesIO()
        np.save(file, array)
        yield b"npy\n" + file.getvalue()
        packed = io.BytesIO()
        np.savez_compressed(packed, a=array, b=array)
        yield b"npz\n" + packed.getvalue()
        header = repr(np.lib.format.header_data_from_array_1_0(array)).encode()
        yield b"npy-header\n" + header + b"\n" + array.tobytes()
        yield b"npz-header\n" + header + b"\n" + array.tobytes()
    yield b"npy-header\n{'descr': '<M8[D]', 'fortran_order': False, 'shape': (2,)}\n" + bytes(16)
    yield b"npy-header\n{'descr': '<U2', 'fortran_order': False, 'shape': (2,)}\n" + bytes(16)
    yield b"npy-header\n{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': ()}\n" + bytes(8)
    tensors = safetensors({"a": samples[0], "b.c": np.zeros(0)}, {"format": "pt"})
    yield b"safetensors\n" + tensors
    header_bytes, body = tensors[8:].split(b"}}", 1)
    yield b"safetensors-header\n" + header_bytes + b"}}\n" + body.lstrip(b" ")


# .zarr folders


def _zarr_folder(data: bytes, folder: Path) -> None:
    """Commit a folder of one array, and use every verb that decodes it.

    The first line is the array's document; the rest, the bytes of its first chunks.
    """
    text, _, chunk = data.partition(b"\n")
    node = folder / "x.zarr" / "x"
    (node / "c" / "0").mkdir(parents=True)
    document = _json(text)
    is_v2 = isinstance(document, dict) and document.get("zarr_format") == 2
    (node / (".zarray" if is_v2 else "zarr.json")).write_bytes(text)
    (folder / "x.zarr" / (".zgroup" if is_v2 else "zarr.json")).write_bytes(
        b'{"zarr_format":2}' if is_v2 else GROUP
    )
    for key in ("0", "0.0") if is_v2 else ("c/0/0", "c/1"):
        (node / key).write_bytes(chunk)
    world = World(folder)
    world.repo = ckptstore.init("memory://", chunk_size=64 << 10)
    world.repo.commit(read_file(folder / "x.zarr").state)
    _call(world, "show", "checkout", *_ZARR)


def _zarr_seeds(folder: Path) -> Iterator[bytes]:
    codecs = zarr.codecs
    options: tuple[dict[str, Any], ...] = (
        {},
        {"compressors": codecs.GzipCodec()},
        {"compressors": codecs.ZstdCodec()},
        {"compressors": codecs.BloscCodec()},
        {"compressors": None, "shards": (4, 4)},
        {"filters": codecs.TransposeCodec(order=(1, 0)), "compressors": codecs.Crc32cCodec()},
        {"zarr_format": 2, "compressors": None},
        {"zarr_format": 2},
        {"zarr_format": 2, "order": "F"},
    )
    for number, more in enumerate(options):
        for dtype in ("float32", "int64"):
            root = folder / f"{number}-{dtype}"
            array = zarr.create_array(root, shape=(4, 4), chunks=(2, 2), dtype=dtype, **more)
            array[...] = np.arange(16).reshape(4, 4)
            is_v2 = more.get("zarr_format") == 2
            document = _json((root / (".zarray" if is_v2 else "zarr.json")).read_bytes())
            yield dumps(document) + b"\n" + (root / ("0.0" if is_v2 else "c/0/0")).read_bytes()
    for filters in ([{"id": "delta", "dtype": "<f8"}], [{"id": "shuffle", "elementsize": 8}]):
        document = zarr_nodes.v2_document(filters=filters)
        yield dumps(document) + b"\n" + bytes(16)


TARGETS = {
    "documents": Target(call=_document, seeds=_documents, is_text=True),
    "operations": Target(call=_operations, seeds=_operation_seeds, is_text=True),
    "pt": Target(call=_pt, seeds=_pt_seeds),
    "arrays": Target(call=_arrays, seeds=_array_seeds, is_text=True),
    "zarr": Target(call=_zarr_folder, seeds=_zarr_seeds, is_text=True),
}
