"""Forks victims from a process that has their imports: Python takes longer to start than they live.

Each line it reads has the victim's arguments and the path for its stdout, as JSON. It answers with
the process id of a victim that waits to be traced. After the next line the victim starts; when it
has ended, the answer is its exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from contextlib import suppress
from importlib import import_module

from tests.helpers.crash import bugs, victim

assert bugs.BUGS, "imported for who makes one of them"

PR_SET_PTRACER, ANY = 0x59616D61, -1


def main() -> None:
    for name in imported_late():
        with suppress(ImportError):
            import_module(name)
    while line := sys.stdin.readline():
        arguments, output = json.loads(line)
        gate, opened = os.pipe()
        waiting, told = os.pipe()
        child = os.fork()
        if not child:
            os.close(opened)
            os.close(waiting)
            wait(gate, output, told)
            victim.main(arguments)
            return
        os.close(gate)
        os.close(told)
        # Returns when the victim closes its end; it then waits to be traced.
        os.read(waiting, 1)
        os.close(waiting)
        print(child, flush=True)
        sys.stdin.readline()
        os.close(opened)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def imported_late() -> list[str]:
    """Import what a victim needs: how many files that opens depends on their folders."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as told:
        child = os.fork()
        if not child:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                for options in ([], ["--zarr"]):
                    victim.main([f"{folder}/store", "1", "2", "--keep", "1", *options])
                os.write(told.fileno(), "\n".join(sys.modules).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        told.seek(0)
        found = told.read().decode().splitlines()
    assert found, "a victim that nobody kills fails"
    return found


def wait(gate: int, output: str, told: int) -> None:
    """Prepare a new process, let any process trace it, report that, and wait."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.close(file)
    os.close(told)
    os.read(gate, 1)
    os.close(gate)


if __name__ == "__main__":
    main()
