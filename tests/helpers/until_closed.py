"""Runs a program until standard input ends: `python until_closed.py COMMAND...`.

Its parent holds the other end of the pipe, so the program ends with the parent, however that dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading


def main() -> None:
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)

    def pass_on() -> None:
        os._exit(process.wait() & 0xFF)

    threading.Thread(target=pass_on, daemon=True).start()
    sys.stdin.buffer.read()
    process.kill()
    process.wait()


if __name__ == "__main__":
    main()
