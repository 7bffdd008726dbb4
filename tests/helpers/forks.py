"""Runs programs in forks of a process that has already imported torch, which is most of their time.

A fork starts without any module of this project, and ends like any program: threads are joined, and
there is an exit code or a signal. But all forks of a server share their hash seed and numpy's
initial seed, and have MODULES imported. A test whose result may depend on that also runs a new
process.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Warnings are errors, except one of torchdata, which calls a deprecated function of torch.
WARNINGS = ("-W", "error", "-W", "ignore:'set_vital' is deprecated")
MODULES = ("torch", "torch._dynamo", "sklearn.datasets")  # optimizers import the second
# The tests already use every processor, and a process with threads should not fork.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MESSAGE_BYTES_MAX = 1 << 20


class Program:
    """A started program: the part of subprocess.Popen for captured output."""

    def __init__(self, arguments: list[str], answer: IO[str], *outputs: IO[str]) -> None:
        self.arguments, self._answer, self._outputs = arguments, answer, outputs
        self.pid = int(answer.readline())  # nothing, if the server died
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, less than 0 for a signal, or None while it runs."""
        if self.returncode is None and select.select([self._answer], [], [], 0)[0]:
            self.returncode = int(self._answer.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; return what was written to stdout and to stderr."""
        if self.returncode is None and not select.select([self._answer], [], [], timeout)[0]:
            self.send_signal(signal.SIGKILL)
            self._read()
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        self.poll()
        return self._read()

    def _read(self) -> tuple[str, str]:
        said = []
        for output in self._outputs:
            output.seek(0)
            said.append(output.read())
            output.close()
        self._answer.close()
        return said[0], said[1]


class Forks:
    """A server of forks.

    modules: what it imports, and each fork has. options: of its Python.
    """

    def __init__(
        self, modules: Sequence[str] = MODULES, *, options: Sequence[str] = WARNINGS
    ) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *options, __file__, str(theirs.fileno()), *modules],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
                pass_fds=[theirs.fileno()],
            )

    def start(
        self, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> Program:
        """Start `python script arguments...`, or `python -m module arguments...`."""
        words = [str(argument) for argument in arguments]
        message = {
            "arguments": words,
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ) if env is None else env,
        }
        outputs = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115  read and closed at the end
        reader, writer = os.pipe()
        descriptors = [*(output.fileno() for output in outputs), writer]
        socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
        os.close(writer)
        return Program(words, os.fdopen(reader, buffering=1), *outputs)

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        program = self.start(*arguments, **options)
        stdout, stderr = program.communicate()
        assert program.returncode is not None
        return subprocess.CompletedProcess(arguments, program.returncode, stdout, stderr)

    def close(self) -> None:
        """End the server."""
        self._control.close()
        self._process.wait()


def serve(control: socket.socket, modules: Sequence[str]) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in a fork, and None in the server at the end."""
    for module in modules:
        __import__(module)
    gc.collect()
    gc.freeze()  # else a collection in a fork copies all these pages
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.data:
                    _tell_end(selector, key)
                    continue
                data, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, 3)
                if not data:
                    return None
                if _is_fork(selector, *descriptors):
                    return dict(json.loads(data))


def _is_fork(selector: selectors.BaseSelector, stdout: int, stderr: int, answer: int) -> bool:
    """Fork: the fork closes inherited files, the server reports its id and waits for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns when anything here has a thread
        pid = os.fork()
    if pid == 0:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        others = [(key.fd, key.data[1]) for key in selector.get_map().values() if key.data]
        for descriptor in (stdout, stderr, answer, *itertools.chain(*others)):
            os.close(descriptor)
        return True
    os.write(answer, f"{pid}\n".encode())
    os.close(stdout)
    os.close(stderr)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, answer))
    return False


def _tell_end(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    pid, answer = key.data
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):
        os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    selector.unregister(key.fd)
    os.close(key.fd)
    os.close(answer)


def become(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Run the program in this process, which has already imported other modules."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if arguments[0] == "-m":
        sys.path[0], sys.argv = cwd, arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(arguments[0]).parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")
    gc.collect()  # so that warnings of finalizers appear


def leave() -> None:
    """Exit at once: taking the server's imports apart would take half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    ends: list[Callable[[], None]] = []
    # Registered first, so it runs last.
    atexit.register(lambda: [end() for end in ends])
    with socket.socket(fileno=int(sys.argv[1])) as control:
        request = serve(control, sys.argv[2:])
    if request:
        become(**request)
        ends.append(leave)
