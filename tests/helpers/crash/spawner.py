"""A process that has imported all that a victim does, and forks one for each line it reads: Python
takes longer to start than a victim lives.

A line has the victim's arguments and where its stdout goes, as JSON. The answer is its process id;
it waits to be traced. At the next line it begins, and when it has ended the answer is its exit
status.
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
        # Ends when the victim closes its end: it does nothing more until it is traced.
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
    """Get ready in a new process, let anybody trace it, tell so, and wait."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.close(file)
    os.close(told)
    os.read(gate, 1)
    os.close(gate)


if __name__ == "__main__":
    main()
