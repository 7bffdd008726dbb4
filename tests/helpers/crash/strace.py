"""Runs a victim under strace: records its system calls, kills it at one, or makes one fail.

Victims are forked (see `spawner.py`) and traced from their first call. strace counts the
calls of each name for each thread by itself, so a victim with one thread makes the same calls with
the same numbers in every run.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.crash.checker import Told
from tests.helpers.root import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OPENS = ("open", "openat", "openat2", "creat")
WRITES = ("write", "writev", "pwrite64", "pwritev", "pwritev2")
CALLS = (
    *OPENS,
    *WRITES,
    *("sendfile", "copy_file_range"),
    *("fsync", "fdatasync", "sync_file_range", "syncfs", "io_uring_enter"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat"),
    *("unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "mknod", "mknodat"),
    *("truncate", "ftruncate", "fallocate"),
)
_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_ENDED = re.compile(r"(.*)\) += (-?\d+|\?)")
_QUOTED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_UNFINISHED = " <unfinished ...>"
_DESCRIPTOR = re.compile(r"(-?\d+|AT_FDCWD)(?:<((?:\\x[0-9a-f]{2})+)>)?")


@cache
def works() -> bool:
    """Whether strace is installed and may trace."""
    if not shutil.which("strace"):
        return False
    with tempfile.TemporaryDirectory() as folder, suppress(UntraceableError):
        return run(Path(folder, "log"), Path(folder, "store"), 1, 2).status == 0
    return False


class UntraceableError(Exception):
    """strace could not attach, with its reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A system call, from line `began` of the log to line `ended`; `result` is None when it never
    returned.

    number: counts this thread's calls of this name, from 1.
    """

    thread: int
    name: str
    number: int
    arguments: str
    result: int | None
    began: int
    ended: int

    @property
    def fd(self) -> int:
        """The first argument, if it is a descriptor."""
        match = _DESCRIPTOR.match(self.arguments)
        return int(match[1]) if match and match[1] != "AT_FDCWD" else -1

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths it names, relative to their folders, or else those of its descriptors."""
        named: list[str] = []
        descriptors: list[str] = []
        for part in self.arguments.split(", "):
            if (quoted := _QUOTED.match(part)) and self.name not in WRITES:
                folder = descriptors[-1] if descriptors else ""
                named.append(os.path.join(folder, os.fsdecode(_bytes(quoted[1]))))
            elif (found := _DESCRIPTOR.match(part)) and found[2]:
                descriptors.append(os.fsdecode(_bytes(found[2])))
        return tuple(named or descriptors)

    @property
    def data(self) -> bytes:
        """The bytes of a write."""
        match = _QUOTED.search(self.arguments)
        return _bytes(match[1] if match else "")[: self.result or 0]

    @property
    def creates(self) -> bool:
        """Whether it is an open that may create a file."""
        return self.name in OPENS and "O_CREAT" in self.arguments

    def changes(self, base: Path) -> bool:
        """Whether it changes files below a folder, or makes them durable, or acknowledges."""
        if self.name in OPENS and not self.creates:
            return False
        if self.name in WRITES and self.fd == 1:
            return True
        below = any(Path(path).is_relative_to(base) for path in self.paths)
        return below or self.name == "io_uring_enter"  # says nothing of what it does


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The exit status and output of a victim, and its traced calls."""

    status: int
    told: Told
    log: tuple[str, ...]

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls, in the order of their ends."""
        return tuple(parse(self.log))


def run(
    log: Path, *arguments: object, trace: Sequence[str] = CALLS, inject: str | None = None
) -> Run:
    """Run a victim under strace, which writes to `log`.

    inject: the value of strace's option of that name, e.g. "fsync:signal=KILL:when=3".
    """
    output = log.with_suffix(".out")
    spawner = _spawner()
    victim = int(spawner.ask(json.dumps([[str(part) for part in arguments], str(output)])))
    command = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-o", str(log), "-p", str(victim)]
    command += ["-e", "trace=" + ",".join(f"?{name}" for name in trace)]
    command += ["-e", f"inject={inject}"] if inject else []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        said = tracer.stderr.readline()
        is_attached = "attached" in said
        if not is_attached:
            os.kill(victim, signal.SIGKILL)
        status = int(spawner.ask("begin"))
        tracer.communicate()
    if not is_attached:
        raise UntraceableError(said)
    told = Told.parse(output.read_bytes())
    return Run(status=status, told=told, log=tuple(log.read_text().splitlines()))


class _Spawner:
    """The process that forks victims; it ends with this one."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",  # the order of sets, and so of calls
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.crash.spawner"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._process.communicate)

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the spawner of victims died"
        return answer


@cache
def _spawner() -> _Spawner:
    return _Spawner()


def points(run: Run, base: Path) -> list[tuple[str, int]]:
    """The calls of a run that change files, numbered as by strace: where to kill or fail."""
    return [(call.name, call.number) for call in run.calls if call.changes(base)]


def parse(lines: Sequence[str]) -> Iterator[Call]:
    """The calls, in the order of their ends."""
    counts: Counter[tuple[int, str]] = Counter()
    unfinished: dict[int, tuple[str, str, int, int]] = {}
    for place, line in enumerate(lines):
        if match := _RESUMED.match(line):
            thread = int(match[1])
            name, text, number, began = unfinished.pop(thread)
            text += match[3]
        elif match := _LINE.match(line):
            thread, name, text = int(match[1]), match[2], match[3]
            counts[thread, name] += 1
            number, began = counts[thread, name], place
        else:
            continue
        if text.endswith(_UNFINISHED):
            unfinished[thread] = (name, text.removesuffix(_UNFINISHED), number, began)
            continue
        end = _ENDED.match(text)
        yield Call(
            thread=thread,
            name=name,
            number=number,
            arguments=end[1] if end else text,
            result=int(end[2]) if end and end[2] != "?" else None,
            began=began,
            ended=place,
        )


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


needed = pytest.mark.skipif(
    not works(), reason="strace is missing, or may not trace: nothing was killed or recorded"
)
