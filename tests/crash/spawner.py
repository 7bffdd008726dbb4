"""A process that has imported all that a victim does, and forks one for each line it reads: Python takes longer to start than
a victim lives.

A line has the victim's arguments and where its stdout goes, as JSON. The answer is its process id; it waits to be traced. At
the next line it begins, and when it has ended the answer is its exit status.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

from tests.crash import bugs, victim

assert bugs.BUGS, "imported for who makes one of them"

PR_SET_PTRACER, ANY = 0x59616D61, -1


def main() -> None:
    while line := sys.stdin.readline():
        arguments, output = json.loads(line)
        gate, opened = os.pipe()
        child = os.fork()
        if not child:
            os.close(opened)
            wait(gate, output)
            victim.main(arguments)
            return
        os.close(gate)
        print(child, flush=True)
        sys.stdin.readline()
        os.close(opened)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def wait(gate: int, output: str) -> None:
    """Get ready in a new process, and let anybody trace it."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANY, 0, 0, 0)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.close(file)
    os.read(gate, 1)
    os.close(gate)


if __name__ == "__main__":
    main()
