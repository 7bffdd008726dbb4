"""Imports everything once, and runs each case in a fork of its own.

Reads one line (story, folder) at a time from stdin and answers with one line of JSON. A case's
calls run under an audit hook, and their work is counted. A case that dies ends only its fork.
"""

from __future__ import annotations

import ctypes
import encodings.cp437
import encodings.utf_16_be
import encodings.utf_16_le
import encodings.utf_32_be
import encodings.utf_32_le  # noqa: F401  json asks for these
import gc
import json
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import torch
import zarr
from zarr.core.sync import _get_loop

import ckptstore
from ckptstore.formats import read_file, write_file
from tests.helpers.hostile.cases import VERBS, ZARR_VERBS, Case, World
from tests.helpers.hostile.corpus import CASES
from tests.helpers.hostile.forge import Forge
from tests.helpers.hostile.seeded import SEEDED
from tests.helpers.hostile.work import Meter, Work, allowed
from tests.helpers.peak import status

GIVEN_SECONDS = 120
CPU_SECONDS_MAX = 120  # of all calls; SIGXCPU, then SIGKILL
SPACE_BYTES_MAX = 2 << 30  # beyond what the server has: what is allocated and never touched
WALL_SECONDS = 120  # ends a call that waits forever
MESSAGE_LENGTH_MAX = 1000
MADV_COLLAPSE = 25  # Linux 6.1 and later
NONBLOCKING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = (
    "pickle.find_class",
    "exec",
    "compile",
    "import",
    "marshal.",
    "code.__new__",
    "ctypes.",
    "subprocess.",
    "socket.",
    "urllib.",
    "http.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "os.chmod",
    "os.chown",
    "os.symlink",
    "os.truncate",
    "os.putenv",
    "os.chdir",
    "shutil.copy",
    "shutil.move",
    "shutil.chown",
    "shutil.make_archive",
    "shutil.unpack_archive",
    "sys.addaudithook",
    "sys._current_frames",
)
PATHS = ("os.rename", "os.link", "os.remove")


class Guard:
    """An audit hook that records forbidden events while `armed`."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.armed = False
        self.seen: list[str] = []
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Record an event; an error raised here could be caught by the code under test."""
        if self.armed and (event.startswith(FORBIDDEN) or self.is_outside(event, args)):
            self.seen.append(f"{event} {args!r}"[:300])

    def is_outside(self, event: str, args: tuple[Any, ...]) -> bool:
        """True if a file outside the repository is to be written, created, moved or removed.

        A name relative to an open folder is not resolved; the folders are compared afterwards.
        """
        if event == "open":
            path, mode, flags = args
            writes = (
                flags & NONBLOCKING if isinstance(flags, int) else set(mode or "") & set("wax+")
            )
            return bool(writes) and self.leaves(path)
        if event.startswith(PATHS):
            return any(self.leaves(path) for path in args)
        return False

    def leaves(self, path: object) -> bool:
        """True for a path outside the repository, in any spelling."""
        if isinstance(path, (bytes, os.PathLike)):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return False
        return "/" in path and not os.path.abspath(path).startswith(self.root)


def run(case: Case, folder: Path, say: Any) -> None:
    """Run one case in this process, and report the outcome of each call."""
    world = World(folder)
    world.outside.mkdir()
    (world.outside / "canary").write_bytes(b"untouched")
    here = folder / "here"
    here.mkdir()
    os.chdir(here)
    signal.alarm(GIVEN_SECONDS)
    world.given = case.given(world)
    calling: dict[str, str] = {}

    def give_up() -> None:
        say({**calling, "unexpected": "steps without end"})
        os._exit(0)

    meter = Meter(give_up)
    _get_loop()  # zarr-python's, which no fork inherits, has a pair of sockets
    guard = Guard(world.store)
    before = _everything(world)
    for name, action in case.calls.items():
        if name != "open" and not hasattr(world, "repo"):
            break
        calling["call"] = name
        say(calling)
        most = allowed(_stored(world) if name == "verify" else 0)
        say({**calling, **_measured(action, world, guard, meter, most)})
    if before != _everything(world):
        say({"call": "afterwards", "unexpected": "a file outside of the repository changed"})


def _everything(world: World) -> list[tuple[str, bytes]]:
    """All files beside the repository."""
    found = []
    for folder in (world.outside, world.folder / "here"):
        for path in sorted(folder.rglob("*")):
            regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 20
            found.append((str(path), path.read_bytes() if regular else b""))
    return found


def _stored(world: World) -> int:
    """The bytes in the repository, all of which verify may read."""
    total, folders = 0, [str(world.store)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _measured(action: Any, world: World, guard: Guard, meter: Meter, most: Work) -> dict[str, Any]:
    signal.alarm(WALL_SECONDS)
    meter.begin(most)
    guard.armed = True
    outcome = _outcome(action, world)
    guard.armed = False
    work = meter.end()
    signal.alarm(0)
    seen, guard.seen = guard.seen, []
    if "raised" in outcome:
        outcome = _of_error(outcome["raised"])
    return {**outcome, "work": asdict(work), "excess": work.excess(most), "seen": seen}


def _outcome(action: Any, world: World) -> dict[str, Any]:
    try:
        returned = action(world)
    except BaseException as error:  # noqa: BLE001  judged by the caller
        return {"raised": error}
    return {"returned": type(returned).__name__}


def _of_error(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, ckptstore.CkptStoreError):
        trace = "".join(traceback.format_exception(error, limit=-4))
        return {"unexpected": f"{type(error).__name__}: {trace[-1500:]}"}
    kinds = [kind.__name__ for kind in type(error).__mro__]
    message = str(error)
    outcome: dict[str, Any] = {"error": kinds, "message": message[:MESSAGE_LENGTH_MAX]}
    if not message.endswith((".", "?")) or len(message) > MESSAGE_LENGTH_MAX:
        outcome["unexpected"] = f"not a sentence of bearable length: {message[:200]!r}"
    elif str(pickle.loads(pickle.dumps(error))) != message:
        outcome["unexpected"] = "the error changes when pickled"
    return outcome


def serve() -> None:
    """Answer requests until stdin ends."""
    _warm_up()
    gc.collect()
    gc.freeze()  # a fork that walks this heap would copy all of it
    _collapse()
    by_story = {case.story: case for case in (*CASES, *SEEDED)}
    for request in sys.stdin:
        story, folder = json.loads(request)
        answer = _in_fork(by_story[story], Path(folder))
        subprocess.run(["rm", "-rf", folder], check=True)  # shutil gives up on folders this deep
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _collapse() -> None:
    """Use large pages where the kernel can: most of a fork is copying the page table."""
    madvise = ctypes.CDLL(None).madvise
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, inode, *name = line.split()
        if access.startswith("rw") and inode == "0" and name != ["[stack]"]:
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_COLLAPSE)


def _in_fork(case: Case, folder: Path) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(case, folder, writer)
    os.close(writer)
    text = _read_all(reader)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return {"said": [json.loads(line) for line in text.splitlines()], "status": status}


def _child(case: Case, folder: Path, writer: int) -> None:
    code = 1
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS_MAX, CPU_SECONDS_MAX))
    space = status("VmSize") + SPACE_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    try:
        run(case, folder, lambda said: os.write(writer, json.dumps(said).encode() + b"\n"))
        code = 0
    except BaseException:  # noqa: BLE001  reported to the parent
        os.write(
            writer, json.dumps({"unexpected": traceback.format_exc()[-2000:]}).encode() + b"\n"
        )
    finally:
        os._exit(code)


def _read_all(fd: int) -> bytes:
    parts = []
    deadline = time.monotonic() + GIVEN_SECONDS + WALL_SECONDS * len(VERBS)
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(fd, 1 << 16)
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


def _warm_up() -> None:
    """Do everything once, so that no import is left for a case to cause."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        Forge(world.store, world.outside).honest()
        for action in (*VERBS.values(), _write_zarr, *ZARR_VERBS.values()):
            with suppress(Exception):
                action(world)
        for name in ("x.pt", "x.safetensors"):
            path = Path(folder) / name
            write_file({"w": torch.zeros(2)}, path)
            world.repo.commit(read_file(path).state)
    warnings.simplefilter("error")


def _write_zarr(world: World) -> None:
    """Write Zarr arrays of all kinds, and read them."""
    with world.repo.session("main") as session:
        zarr.create_array(session.store, name="x", shape=(2,), shards=(2,), chunks=(1,), dtype="f4")
        zarr.create_array(session.store, name="y", data=np.zeros(2), zarr_format=2)
        zarr.create_array(
            session.store, name="z", data=np.zeros(2), compressors=zarr.codecs.GzipCodec()
        )
        session.commit()
    world.repo.checkout()
    for name in ("pickle", "vlen-utf8", "msgpack2"):
        with suppress(Exception):
            zarr.registry.get_codec_class(name)
        numcodecs.get_codec({"id": name})


if __name__ == "__main__":
    serve()
