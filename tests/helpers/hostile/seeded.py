"""Cases that do what no case may do: the harness must catch every one."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import time
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
    "takes 300 MB": (lambda world: len(b"x" * (300 << 20)), "MB of memory"),
    "takes four seconds of processor time": (
        lambda world: _burn(4),
        "s of processor time",
    ),
    "never ends": (lambda world: _burn(3600), "SIGPROF"),
    "dies": (lambda world: os.abort(), "SIGABRT"),
    "says nothing that can be read": (lambda world: _mumble(), "not a sentence"),
    "says too much": (lambda world: _ramble(), "not a sentence of bearable length"),
}


def _burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _mumble() -> None:
    raise ckptstore.InvalidInputError("no")


def _ramble() -> None:
    raise ckptstore.InvalidInputError("x" * 100_000 + ".")


SEEDED: tuple[Case, ...] = tuple(
    call(f"a call that {story}", action) for story, (action, _) in COMPLAINTS.items()
)
WRONGDOERS = {f"a call that {story}": text for story, (_, text) in COMPLAINTS.items()}
