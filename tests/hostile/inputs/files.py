"""Files that read_file must refuse, and of which nothing may run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import torch

from ckptstore.errors import CkptStoreError
from ckptstore.formats import read_file
from tests.hostile.cases import Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COMMAND = "touch ../outside/ran"


class _Runs:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def _file(story: str, name: str, write: Callable[[Path], object]) -> Case:
    """Reading it, and committing what was read, must fail."""

    def given(world: World) -> Path:
        path = world.store.parent / name
        write(path)
        return path

    return call(
        f"a file that is {story}",
        lambda world: world.repo.commit(read_file(world.given).state),
        given=given,
        error=CkptStoreError,
    )


def _bytes(story: str, name: str, data: bytes | Callable[[], bytes]) -> Case:
    return _file(story, name, lambda path: path.write_bytes(data() if callable(data) else data))


def _safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(start: int, end: int, *, dtype: str = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


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


def _zip_bomb() -> bytes:
    """A .pt file of 400 KB whose one tensor unpacks to 400 MB."""
    state = {"w": torch.zeros(1)}
    return _repacked(
        _saved(state),
        lambda name, old: bytes(400 << 20) if name.endswith("data/0") else old,
        compression=zipfile.ZIP_DEFLATED,
    )


def _pickle_bomb() -> bytes:
    """A .pt file whose data.pkl unpacks to 400 MB."""
    return _repacked(
        _saved({"w": torch.zeros(1)}),
        lambda name, old: old + bytes(400 << 20) if name.endswith("data.pkl") else old,
        compression=zipfile.ZIP_DEFLATED,
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


GOOD = _safetensors({"w": _tensor(0, 8)}, bytes(8))

CASES = (
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
        lambda: _safetensors(
            {f"w{number}": _tensor(0, 0, shape=(0,)) for number in range(500_000)}
        ),
    ),
    _bytes("a pickle called .safetensors", "x.safetensors", pickle.dumps({"w": 1})),
    _bytes("an empty .pt", "x.pt", b""),
    _bytes("a .pt of zeros", "x.pt", bytes(1000)),
    _bytes("a .pt cut in half", "x.pt", lambda: _saved({"w": torch.zeros(1000)})[:2500]),
    _bytes("a zip called .pt", "x.pt", lambda: _repacked(_saved({}), lambda name, old: b"")),
    _bytes("a .safetensors called .pt", "x.pt", GOOD),
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
    _bytes("a .pt of a set", "x.pt", lambda: _saved({"x": {1, 2}})),
    _bytes("a .bin", "x.bin", GOOD),
    _bytes("without a suffix", "x", GOOD),
    _file("a folder", "x.pt", lambda path: path.mkdir()),
    _file("a FIFO", "x.safetensors", os.mkfifo),
    _file("a link to nowhere", "x.pt", lambda path: path.symlink_to("nowhere.pt")),
    _file("a link to itself", "x.pt", lambda path: path.symlink_to("x.pt")),
    _file("a link to /dev/zero", "x.pt", lambda path: path.symlink_to("/dev/zero")),
)
