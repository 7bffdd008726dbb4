"""Files of which nothing may run. read_file refuses them, but for those that are only misnamed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tempfile
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import h5py
import torch

from ckptstore.errors import CkptStoreError, InvalidInputError
from ckptstore.formats import read_file, write_file
from tests.helpers.hostile.cases import Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

COMMAND = "touch ../outside/ran"

for module in (
    "ckptstore.formats.hdf5",
    "ckptstore.formats.hugging_face",
    "ckptstore.formats.keras_archive",
    "ckptstore.formats.npz",
    "ckptstore.formats.sharded",
    "ckptstore.formats.tensor_bundle",
    "ckptstore.formats.trainer_state",
    "numpy.lib.format",
    "tokenize",
):
    import_module(module)  # now, as no case may import anything


class _Runs:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def _file(
    story: str,
    name: str,
    write: Callable[[Path], object],
    *,
    error: type[CkptStoreError] = CkptStoreError,
) -> Case:
    """Reading it, and committing what was read, must fail."""

    def given(world: World) -> Path:
        path = world.store.parent / name
        write(path)
        return path

    return call(
        f"a file that is {story}",
        lambda world: world.repo.commit(read_file(world.given).state),
        given=given,
        error=error,
    )


def _bytes(story: str, name: str, data: bytes | Callable[[], bytes]) -> Case:
    return _file(story, name, lambda path: path.write_bytes(data() if callable(data) else data))


def _accepted(story: str, name: str, data: bytes | Callable[[], bytes]) -> Case:
    """Its first bytes say what it is, whatever its name is: VALUES must be read from it."""
    return replace(
        _bytes(story, name, data), calls={"call": _read_values}, refused=(), accepted=("call",)
    )


def _read_values(world: World) -> None:
    checkpoint = world.repo.commit(read_file(world.given).state)
    state = world.repo.checkout(checkpoint.id)
    assert (state["w"] if isinstance(state, dict) else state).tolist() == VALUES


def _safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, *, dtype: str = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _tensors_of_nothing(name: str, count: int) -> bytes:
    """The header of so many tensors without an element. name: what a number is put into."""
    one = f'"{name}": {json.dumps(_tensor(0, 0, shape=(0,)))}'.encode()
    return b"{" + b", ".join([one % number for number in range(count)]) + b"}"


def _saved(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _repacked(data: bytes, change: Callable[[str, bytes], bytes], **options: Any) -> bytes:
    """A zip file with other contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", **options) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def _with_pickle(data: bytes) -> bytes:
    """A .pt file whose data.pkl is this."""
    return _repacked(
        _saved({"w": torch.zeros(2)}),
        lambda name, old: data if name.endswith("data.pkl") else old,
    )


def _hdf5(write: Callable[[Any], object]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        write(file)
    return buffer.getvalue()


def _one_array(file: Any) -> None:
    file["w"] = list(range(500))


def _external_link(file: Any) -> None:
    file["w"] = h5py.ExternalLink("../outside/secret", "/")


def _external_data(file: Any) -> None:
    file.create_dataset("w", shape=(2,), dtype="f4", external=[("../outside/secret", 0, 8)])


def _inside_itself(file: Any) -> None:
    file["a/b"] = file.create_group("a")


def _unwritten(file: Any) -> None:
    file.create_dataset("w", shape=(1 << 40,), dtype="f8", chunks=(1 << 10,))


def _keras(weights: bytes) -> bytes:
    members = [("metadata.json", b"{}"), ("config.json", b"{}"), ("model.weights.h5", weights)]
    return _zip(members)


def _zip_bomb() -> bytes:
    """A .pt file of 2 MB whose one tensor unpacks to 400 MB."""
    state = {"w": torch.zeros(1)}
    return _repacked(
        _saved(state),
        lambda name, old: bytes(400 << 20) if name.endswith("data/0") else old,
        compression=zipfile.ZIP_DEFLATED,
        compresslevel=1,
    )


def _pickle_bomb() -> bytes:
    """A .pt file whose data.pkl unpacks to 400 MB."""
    return _repacked(
        _saved({"w": torch.zeros(1)}),
        lambda name, old: old + bytes(400 << 20) if name.endswith("data.pkl") else old,
        compression=zipfile.ZIP_DEFLATED,
        compresslevel=1,
    )


def _laughing_pickle() -> bytes:
    """60 lists, each holding the one before it twice."""
    state: Any = [1]
    for _ in range(60):
        state = [state, state]
    return _with_pickle(pickle.dumps(state, protocol=2))


def _pickle_inside_itself() -> bytes:
    state: dict[str, Any] = {}
    state["self"] = state
    return _with_pickle(pickle.dumps(state, protocol=2))


def _deep_pickle() -> bytes:
    return _with_pickle(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def _expanded() -> bytes:
    return _saved({"w": torch.zeros(1).expand(2**50)})


def _huge_legacy_storage() -> bytes:
    """A file of the old format that says its storage has 2^40 elements."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()[:-16] + struct.pack("<q", 2**40) + bytes(8)


def _tarred() -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("pickle", "storages", "tensors"):
            data = pickle.dumps(_Runs(os.system, COMMAND))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _brackets(before: bytes, after: bytes) -> Callable[[], bytes]:
    """30 MB of JSON that takes a GB once it is parsed."""
    return lambda: before + b"[]," * 10_000_000 + b"[]" + after


def _zarr(story: str, **documents: bytes | Callable[[], bytes]) -> Case:
    """A Zarr folder as we write it, but for these documents; "root" is the root's."""

    def write(path: Path) -> None:
        write_file({"w": torch.zeros(3)}, path)
        for name, data in documents.items():
            file = (path if name == "root" else path / name) / "zarr.json"
            file.write_bytes(data() if callable(data) else data)

    return _file(f"a Zarr folder {story}", "x.zarr", write, error=InvalidInputError)


def _folder(story: str, **files: bytes | str | Callable[[], bytes] | None) -> Case:
    """A folder "model" with these files: text is a link's target, None removes a file."""

    def write(path: Path) -> None:
        path.mkdir()
        (path.parent / "beside.safetensors").write_bytes(GOOD)
        good = {"a_safetensors": GOOD, "model_safetensors_index_json": _index(w="a.safetensors")}
        for name, data in (good | files).items():
            file = path / name.replace("_", ".")
            if isinstance(data, str):
                file.symlink_to(data)
            elif data is not None:
                file.write_bytes(data() if callable(data) else data)

    return _file(f"a folder {story}", "model", write, error=InvalidInputError)


def _index(**places: Any) -> bytes:
    return json.dumps({"weight_map": places}).encode()


def _npy(
    shape: str = "(2,)", data: bytes = bytes(8), *, descr: str = "'<f4'", order: str = "False"
) -> bytes:
    """A .npy with such a header."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def _zip(members: Sequence[tuple[str, bytes]], *, packed: bool = False) -> bytes:
    """An archive; what is unpacked from it has to lie in the folder of the repository."""
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def _npz(*, packed: bool = False, **change: int) -> bytes:
    """A .npz of one array, with changes to its entry in the list of members. packed: compressed."""
    data = bytearray(_zip([("w.npy", _npy("(1000,)", bytes(4000)))], packed=packed))
    entry = data.rindex(b"PK\1\2")
    places = {"method": (10, "<H"), "crc": (16, "<I"), "packed": (20, "<I"), "size": (24, "<I")}
    for name, value in change.items():
        offset, form = places[name.removesuffix("_")]
        struct.pack_into(form, data, entry + offset, value)
    return bytes(data)


def _overlapping(count: int) -> bytes:
    """An archive whose list of members names one array many times, under many names."""
    one = _zip([("w000000.npy", _npy("(100000,)", bytes(400_000)))])
    start, end = one.rindex(b"PK\1\2"), one.rindex(b"PK\5\6")
    entry = one[start:end]
    entries = b"".join(entry.replace(b"w000000", b"w%06d" % number) for number in range(count))
    counts = struct.pack("<HHLL", count, count, len(entries), start)
    return one[:start] + entries + one[end : end + 8] + counts + bytes(2)


def _members(count: int) -> bytes:
    """An archive of members without a byte."""
    entries, data = io.BytesIO(), io.BytesIO()
    for number in range(count):
        name = b"w%06d.npy" % number
        common = struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0)
        entries.write(
            b"PK\1\2\x14\0" + common + struct.pack("<3HLL", 0, 0, 0, 0, data.tell()) + name
        )
        data.write(b"PK\3\4" + common + name)
    size = len(entries.getvalue())
    long = struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, size, data.tell())
    locator = struct.pack("<LQL", 0, data.tell() + size, 1)
    end = struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    return (
        data.getvalue()
        + entries.getvalue()
        + b"PK\6\6"
        + long
        + b"PK\6\7"
        + locator
        + b"PK\5\6"
        + end
    )


def _unpacking(case: Case) -> Case:
    """The case, with files that are unpacked in the folder where it may write."""

    def given(world: World) -> Any:
        world.store.mkdir(exist_ok=True)
        tempfile.tempdir = str(world.store)
        return case.given(world)

    return replace(case, given=given)


VALUES = [1.0, 2.0]
GOOD = _safetensors({"w": _tensor(0, 8)}, struct.pack("<2f", *VALUES))

# numpy.dtype ends the process at some, evaluates others as Python, and believes the rest.
DTYPES = {
    "a divided date": "M8[D/0]",
    "a divided span": "m8[7/0s]",
    "a date of 10^20 days": "M8[99999999999999999999D]",
    "a comma": ",f8",
    "two commas": "f8,,f8",
    "a list": "f8,i4",
    "3,000 of a list": "f8," * 3000 + "f8",
    "an open bracket": "(1,f8",
    "2,000 brackets": "(" * 2000 + "1" + ")" * 2000 + "f8",
    "9,000 open brackets": "(" * 9000 + "f8",
    "a sum": "(1+1,)f8",
    "a power": "(9**9**9,)f8,f8",
    "a call": "(__import__,)f8,i4",
    "a huge shape": "(99999999,99999999)f8,f8",
    "a negative shape": "(-1,)f8,f8",
    "5,000 digits": "(" + "9" * 5000 + ",)f8,f8",
    "texts of 100 GB": "U99999999999",
    "20 digits of void": "V99999999999999999999",
    "2 GB of letters": "S2147483647",
    "another letter": "\xe9",
    "objects": "O",
    "a word": "int",
    "nothing": "",
    "a space": " ",
    "a dict": "{",
    "long doubles": "<f16",
    "complex numbers of 32 bytes": "<c32",
    "a line break": "<f8\\n",
}


def _npy_of(dtype: str) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': (1,), }}".encode("latin-1")
    text += b" " * (-(len(text) + 13) % 64) + b"\n"
    return b"\x93NUMPY\2\0" + len(text).to_bytes(4, "little") + text + bytes(8)


def _in_npz(dtype: str) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("a.npy", _npy_of(dtype))
    return file.getvalue()


def _packed(size: int) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "a.npy", _npy_of("|u1").replace(b"(1,)", f"({size},)".encode())[:-8] + bytes(size)
        )
    return file.getvalue()


CASES = (
    *(
        _bytes(f"an .npy of {name}", "x.npy", partial(_npy_of, dtype))
        for name, dtype in DTYPES.items()
    ),
    *(
        _bytes(f"an .npz of {name}", "x.npz", partial(_in_npz, dtype))
        for name, dtype in list(DTYPES.items())[:4]
    ),
    _bytes("an .npz of 128 MB of zeros", "x.npz", partial(_packed, 128 << 20)),
    _bytes("an empty .safetensors", "x.safetensors", b""),
    _bytes("a .safetensors cut in its header", "x.safetensors", GOOD[:20]),
    _bytes("a .safetensors cut in its data", "x.safetensors", GOOD[:-1]),
    _bytes("a .safetensors with bytes behind its data", "x.safetensors", GOOD + b"x"),
    _bytes(
        "a .safetensors whose header has 2^63 bytes",
        "x.safetensors",
        _safetensors({}, length=2**63),
    ),
    _bytes(
        "a .safetensors whose header has 2^40 bytes",
        "x.safetensors",
        _safetensors({}, length=2**40),
    ),
    _bytes("a .safetensors whose header is no JSON", "x.safetensors", _safetensors(b"{" * 100)),
    _bytes("a .safetensors whose header is a list", "x.safetensors", _safetensors([])),
    _bytes("a .safetensors 100,000 levels deep", "x.safetensors", _safetensors(b'{"a":' * 100_000)),
    _bytes("a .safetensors that is not UTF-8", "x.safetensors", _safetensors(b'{"\xff":1}')),
    _bytes(
        "a .safetensors with a hole",
        "x.safetensors",
        _safetensors({"w": _tensor(8, 16)}, bytes(16)),
    ),
    _bytes(
        "a .safetensors whose tensors overlap",
        "x.safetensors",
        _safetensors({"v": _tensor(0, 8), "w": _tensor(4, 12)}, bytes(12)),
    ),
    _bytes(
        "a .safetensors whose tensor lies behind its end",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 80)}, bytes(8)),
    ),
    _bytes(
        "a .safetensors whose tensor ends before it begins",
        "x.safetensors",
        _safetensors({"w": _tensor(8, 0)}, bytes(8)),
    ),
    _bytes(
        "a .safetensors with negative offsets",
        "x.safetensors",
        _safetensors({"w": _tensor(-8, 0)}, bytes(8)),
    ),
    _bytes(
        "a .safetensors of shape 2^62 x 4",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 8, shape=(2**62, 4))}, bytes(8)),
    ),
    _bytes(
        "a .safetensors of a negative shape",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 8, shape=(-2,))}, bytes(8)),
    ),
    _bytes(
        "a .safetensors of an unknown dtype",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 8, dtype="O")}, bytes(8)),
    ),
    _bytes(
        "a .safetensors of 65 dimensions",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 8, shape=(1,) * 65 + (2,))}, bytes(8)),
    ),
    _bytes(
        "a .safetensors with a name of a million characters",
        "x.safetensors",
        _safetensors({"w" * 10**6: _tensor(0, 8)}, bytes(8)),
    ),
    _bytes(
        "a .safetensors of a header of 60 MB",
        "x.safetensors",
        lambda: _safetensors(b'{"__metadata__":{"a":"' + b"x" * (60 << 20) + b'"},"w":5}'),
    ),
    _bytes(
        "a .safetensors of 500,000 tensors of nothing",
        "x.safetensors",
        lambda: _safetensors(_tensors_of_nothing("w%d", 500_000)),
    ),
    _bytes(
        "a .safetensors of 250,000 tensors of short names",
        "x.safetensors",
        lambda: _safetensors(_tensors_of_nothing("%x", 250_000)),
    ),
    _bytes(
        "a .safetensors whose last of 80,000 names is there twice",
        "x.safetensors",
        lambda: _safetensors(
            b"{"
            + b",".join(
                b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % min(number, 79_998)
                for number in range(80_000)
            )
            + b"}"
        ),
    ),
    _bytes("a pickle called .safetensors", "x.safetensors", pickle.dumps({"w": 1})),
    _bytes(
        "a .safetensors with a tensor twice",
        "x.safetensors",
        _safetensors(
            b'{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
            b'"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
            bytes(4),
        ),
    ),
    _bytes(
        "a .safetensors of half a byte",
        "x.safetensors",
        _safetensors({"w": _tensor(0, 3, dtype="F4", shape=(2, 3))}, bytes(3)),
    ),
    _folder(
        "whose index leads out", model_safetensors_index_json=_index(w="../beside.safetensors")
    ),
    _folder("whose index names /etc/passwd", model_safetensors_index_json=_index(w="/etc/passwd")),
    _folder("whose index names a number", model_safetensors_index_json=_index(w=7)),
    _folder(
        "whose index names what is not there",
        model_safetensors_index_json=_index(w="a.safetensors", v="a.safetensors"),
    ),
    _folder("whose index forgets a tensor", model_safetensors_index_json=_index()),
    _folder(
        "whose index names another file",
        b_safetensors=_safetensors({}),
        model_safetensors_index_json=_index(w="b.safetensors"),
    ),
    _folder("whose index is a link out", model_safetensors_index_json="../beside.safetensors"),
    _folder("whose index is no JSON", model_safetensors_index_json=b"{" * 1000),
    _folder("whose index is 100,000 levels deep", model_safetensors_index_json=b"[" * 100_000),
    _folder("whose index is a list", model_safetensors_index_json=b"[]"),
    _folder("whose index has 33 MB", model_safetensors_index_json=lambda: b" " * (33 << 20)),
    _folder(
        "whose index names 100,000 files",
        model_safetensors_index_json=_index(
            **{f"w{n}": f"{n}.safetensors" for n in range(100_000)}
        ),
    ),
    _folder("whose file is a link out", a_safetensors="../beside.safetensors"),
    _folder("whose file is a link to itself", a_safetensors="a.safetensors"),
    _folder("whose file is a link to /dev/zero", a_safetensors="/dev/zero"),
    _folder("whose file is cut", a_safetensors=GOOD[:-1]),
    _folder("with a tensor in two files", b_safetensors=GOOD, model_safetensors_index_json=None),
    _folder(
        "whose index holds 10 million lists",
        model_safetensors_index_json=_brackets(b'{"weight_map":{"w":"a.safetensors"},"x":[', b"]}"),
    ),
    _zarr(
        "whose root holds 10 million lists",
        root=_brackets(b'{"zarr_format":3,"node_type":"group","attributes":{"x":[', b"]}}"),
    ),
    _zarr(
        "whose array holds 10 million lists",
        w=_brackets(b'{"zarr_format":3,"node_type":"array","attributes":{"x":[', b"]}}"),
    ),
    _zarr("whose root is cut", root=b'{"zarr_format":3,'),
    _zarr("whose root is a list", root=b"[]"),
    _folder("without a checkpoint", a_safetensors=None, model_safetensors_index_json=None),
    _bytes("an empty .npy", "x.npy", b""),
    _bytes("a .npy cut in its header", "x.npy", _npy()[:20]),
    _bytes("a .npy cut in its data", "x.npy", _npy()[:-1]),
    _bytes("a .npy with bytes behind its data", "x.npy", _npy() + b"x"),
    _bytes("a .npy of shape 2^40 x 2^40", "x.npy", _npy("(1099511627776, 1099511627776)")),
    _bytes("a .npy of shape 2^62", "x.npy", _npy("(4611686018427387904,)")),
    _bytes("a .npy of a negative shape", "x.npy", _npy("(-2,)")),
    _bytes("a .npy of two negative lengths", "x.npy", _npy("(-1, -2)")),
    _bytes("a .npy of 65 dimensions", "x.npy", _npy(f"({'1,' * 64}2)")),
    _bytes(
        "a .npy of an array in Fortran's order that is cut", "x.npy", _npy("(2, 2)", order="True")
    ),
    _bytes(
        "a .npy of objects",
        "x.npy",
        _npy("()", pickle.dumps(_Runs(os.system, COMMAND)), descr="'|O'"),
    ),
    _bytes("a .npy of fields", "x.npy", _npy(descr="[('a', '<f4')]")),
    _bytes("a .npy of 1,000 fields in one another", "x.npy", _npy(descr="[('a'," * 1000)),
    _bytes("a .npy of text", "x.npy", _npy(descr="'<U1'")),
    _accepted(
        "a .npy of another machine", "x.npy", _npy(data=struct.pack(">2f", *VALUES), descr="'>f4'")
    ),
    _bytes("a .npy whose header calls", "x.npy", _npy(f"__import__('os').system({COMMAND!r})")),
    _bytes("a .npy whose header is 9,000 brackets", "x.npy", _npy("(" * 9000)),
    _bytes("a .npy whose header is 9,000 signs", "x.npy", _npy("-" * 9000 + "1")),
    _bytes("a .npy whose header has 4 GB", "x.npy", b"\x93NUMPY\2\0" + b"\xff" * 4 + bytes(99)),
    _bytes("a .npy whose header has 60,000 characters", "x.npy", _npy(" " * 60_000 + "(2,)")),
    _bytes("a pickle called .npy", "x.npy", pickle.dumps(_Runs(os.system, COMMAND))),
    _bytes("a beginning of HDF5 alone", "x.h5", b"\x89HDF\r\n\x1a\n"),
    _bytes("an HDF5 file of ones", "x.h5", b"\x89HDF\r\n\x1a\n" + b"\xff" * 4000),
    _bytes("an HDF5 file cut in half", "x.h5", lambda: _hdf5(_one_array)[:1500]),
    _bytes("an .h5 with a link to another file", "x.h5", lambda: _hdf5(_external_link)),
    _bytes("an .h5 with data in another file", "x.h5", lambda: _hdf5(_external_data)),
    _bytes("an .h5 inside itself", "x.h5", lambda: _hdf5(_inside_itself)),
    _bytes("an .h5 that claims 8 TB", "x.h5", lambda: _hdf5(_unwritten)),
    _bytes(
        "a .keras whose weights are a pickle",
        "x.keras",
        lambda: _keras(pickle.dumps(_Runs(os.system, COMMAND))),
    ),
    _bytes(
        "a .keras whose weights lead to another file",
        "x.keras",
        lambda: _keras(_hdf5(_external_link)),
    ),
    _bytes("an empty file called .npz", "x.npz", b""),
    _bytes("a .npz of zeros", "x.npz", bytes(1000)),
    _bytes("a .npz cut in half", "x.npz", _npz()[:2000]),
    _bytes("a .npz without its end", "x.npz", _npz()[:-1]),
    _bytes("a pickle called .npz", "x.npz", pickle.dumps(_Runs(os.system, COMMAND))),
    _accepted("a .pt called .npz", "x.npz", lambda: _saved({"w": torch.tensor(VALUES)})),
    _bytes(
        "a .npz of objects",
        "x.npz",
        _zip([("w.npy", _npy("()", pickle.dumps(_Runs(os.system, COMMAND)), descr="'|O'"))]),
    ),
    _bytes(
        "a .npz of what is no array",
        "x.npz",
        _zip([("w.npy", _npy()), ("setup.py", b"raise SystemExit")]),
    ),
    _bytes("a .npz with an array twice", "x.npz", _zip([("w.npy", _npy()), ("w.npy", _npy())])),
    _bytes("a .npz that claims 4 GB", "x.npz", _npz(size=2**32 - 2)),
    _bytes("a .npz whose compressed array claims 4 GB", "x.npz", _npz(packed=True, size=2**32 - 2)),
    _bytes("a .npz of another checksum", "x.npz", _npz(crc=1)),
    _bytes("a .npz compressed otherwise", "x.npz", _npz(method=14)),
    _unpacking(
        _bytes(
            "a .npz whose compressed array has another checksum", "x.npz", _npz(packed=True, crc=1)
        )
    ),
    _unpacking(
        _bytes(
            "a .npz whose compressed array is longer than it claims",
            "x.npz",
            _npz(packed=True, size=200),
        )
    ),
    _unpacking(
        _bytes(
            "a .npz whose compressed array is shorter than it claims",
            "x.npz",
            _npz(packed=True, size=9000),
        )
    ),
    _unpacking(
        _bytes(
            "a .npz that unpacks to less than its header claims",
            "x.npz",
            _zip([("w.npy", _npy("(1099511627776,)"))], packed=True),
        )
    ),
    _bytes("a .npz whose members overlap", "x.npz", lambda: _overlapping(1000)),
    _bytes("a .npz of 200,000 members", "x.npz", lambda: _members(200_000)),
    _bytes("a .npz of 70,000 members of nothing", "x.npz", lambda: _members(70_000)),
    _bytes("an empty .pt", "x.pt", b""),
    _bytes("a .pt of zeros", "x.pt", bytes(1000)),
    _bytes("a .pt cut in half", "x.pt", lambda: _saved({"w": torch.zeros(1000)})[:2500]),
    _bytes("a zip called .pt", "x.pt", lambda: _repacked(_saved({}), lambda name, old: b"")),
    _accepted("a .safetensors called .pt", "x.pt", GOOD),
    _bytes("a .pt that runs os.system", "x.pt", lambda: _saved(_Runs(os.system, COMMAND))),
    _bytes(
        "a .pth that runs os.system",
        "x.pth",
        lambda: _saved({"w": torch.zeros(2), "x": _Runs(os.system, COMMAND)}),
    ),
    _bytes(
        "a .pt that runs eval",
        "x.pt",
        lambda: _saved(_Runs(eval, f"__import__('os').system({COMMAND!r})")),
    ),
    _bytes(
        "a .pt that runs exec",
        "x.pt",
        lambda: _saved(_Runs(exec, f"import os; os.system({COMMAND!r})")),
    ),
    _bytes(
        "a .pt that opens a file to write",
        "x.pt",
        lambda: _saved(_Runs(open, "../outside/ran", "w")),
    ),
    _bytes(
        "a .pt that loads another pickle",
        "x.pt",
        lambda: _saved(_Runs(pickle.loads, pickle.dumps(_Runs(os.system, COMMAND)))),
    ),
    _bytes("a .pt that calls torch.load", "x.pt", lambda: _saved(_Runs(torch.load, "y.pt"))),
    _bytes(
        "a pickle called .pt that runs os.system",
        "x.pt",
        lambda: pickle.dumps(_Runs(os.system, COMMAND)),
    ),
    _bytes(
        "a .pt of old that runs os.system",
        "x.pt",
        lambda: b"".join(
            map(pickle.dumps, (0x1950A86A20F9469CFC6C, 1001, {}, _Runs(os.system, COMMAND)))
        ),
    ),
    _bytes("a tar called .pt that runs os.system", "x.pt", _tarred),
    _bytes("a .pt that holds a whole module", "x.pt", lambda: _saved(torch.nn.Linear(1, 1))),
    _bytes("a .pt of 100,000 lists in one another", "x.pt", _deep_pickle),
    _bytes("a .pt of 2^60 values by way of lists", "x.pt", _laughing_pickle),
    _bytes("a .pt that holds itself", "x.pt", _pickle_inside_itself),
    _bytes("a .pt whose pickle ends early", "x.pt", lambda: _with_pickle(b"\x80\x02}")),
    _bytes(
        "a .pt whose pickle pops what is not there", "x.pt", lambda: _with_pickle(b"\x80\x020.")
    ),
    _bytes(
        "a .pt that asks for bytes it does not have",
        "x.pt",
        lambda: _with_pickle(b"\x80\x02\x8e" + struct.pack("<Q", 2**40) + b"."),
    ),
    _bytes("a .pt whose tensor unpacks to 400 MB", "x.pt", _zip_bomb),
    _bytes("a .pt whose pickle unpacks to 400 MB", "x.pt", _pickle_bomb),
    _bytes("a .pt of 2^50 elements in 4 bytes", "x.pt", _expanded),
    _bytes("a .pt of old whose storage has 2^40 elements", "x.pt", _huge_legacy_storage),
    _accepted("a .bin of safetensors", "x.bin", GOOD),
    _accepted("without a suffix", "x", GOOD),
    _file("a folder", "x.pt", lambda path: path.mkdir()),
    _file("a FIFO", "x.safetensors", os.mkfifo),
    _file("a link to nowhere", "x.pt", lambda path: path.symlink_to("nowhere.pt")),
    _file("a link to itself", "x.pt", lambda path: path.symlink_to("x.pt")),
    _file("a link to /dev/zero", "x.pt", lambda path: path.symlink_to("/dev/zero")),
)
