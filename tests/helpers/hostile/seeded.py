"""Cases that do forbidden things: the harness must catch every one."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import ckptstore
from tests.helpers.hostile.cases import Case, World, call

if TYPE_CHECKING:
    from collections.abc import Callable

COMPLAINTS: dict[str, tuple[Callable[[World], object], str]] = {
    "refuses nothing": (lambda world: None, "was not refused"),
    "raises an error that is not ours": (lambda world: {}["x"], "KeyError"),
    "runs a pickle": (
        lambda world: pickle.loads(b"cos\ngetcwd\n(tR."),
        "pickle.find_class",
    ),
    "runs code": (lambda world: eval("1 + 1"), "exec"),
    "imports a module": (lambda world: __import__("nturl2path"), "import"),
    "starts a program": (lambda world: subprocess.run(["true"], check=True), "subprocess.Popen"),
    "opens a socket": (lambda world: socket.socket().close(), "socket."),
    "writes beside the repository": (
        lambda world: (world.outside / "new").write_bytes(b"x"),
        "a file outside of the repository changed",
    ),
    "writes a file far away": (lambda world: open("/dev/null", "w").close(), "open"),
    "takes 300 MB": (lambda world: len(b"x" * (300 << 20)), "peak bytes"),
    "compares each of 4,000 things with every other": (lambda world: _compare(4_000), "steps"),
    "compares them in a thread of its own": (lambda world: _in_thread(_compare, 4_000), "steps"),
    "never ends": (lambda world: _compare(1 << 60), "steps without end"),
    "calls a function 8,000,000 times on one line": (lambda world: _call(8_000_000), "steps"),
    "reads a file again for each of 50 names": (lambda world: _reread(world, 50), "read bytes"),
    "reads a file byte by byte": (lambda world: _read_bytes(world), "reads"),
    "copies all parts for each new one": (lambda world: _append(b"x" * 4096, 800), "touched bytes"),
    "dies": (lambda world: os.abort(), "SIGABRT"),
    "says nothing that can be read": (lambda world: _mumble(), "not a sentence"),
    "says too much": (lambda world: _ramble(), "not a sentence of bearable length"),
}


def _compare(count: int) -> None:
    for _ in range(count):
        for _ in range(count):
            pass


def _in_thread(action: Callable[[int], None], count: int) -> None:
    thread = threading.Thread(target=action, args=(count,))
    thread.start()
    thread.join()


def _call(count: int) -> None:
    all(map(_yes, range(count)))


def _yes(_: int) -> bool:
    return True


def _reread(world: World, times: int) -> None:
    path = world.store / "large"
    path.write_bytes(b"x" * (4 << 20))
    for _ in range(times):
        path.read_bytes()


def _read_bytes(world: World) -> None:
    path = world.store / "long"
    path.write_bytes(b"x" * 6_000)
    with path.open("rb", buffering=0) as file:
        while file.read(1):
            pass


def _append(part: bytes, times: int) -> None:
    whole = b""
    for _ in range(times):
        whole += part


def _mumble() -> None:
    raise ckptstore.InvalidInputError("no")


def _ramble() -> None:
    raise ckptstore.InvalidInputError("x" * 100_000 + ".")


_REFUSING = replace(
    call("a call that refuses what is right", lambda world: world.repo.resolve("nothing")),
    refused=(),
    accepted=("call",),
)
SEEDED: tuple[Case, ...] = (
    *(call(f"a call that {story}", action) for story, (action, _) in COMPLAINTS.items()),
    _REFUSING,
)
WRONGDOERS = {
    **{f"a call that {story}": text for story, (_, text) in COMPLAINTS.items()},
    _REFUSING.story: "was not accepted",
}
