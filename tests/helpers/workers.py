"""Worker processes that start at once, and what they print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What workers said, all together."""

    acks: dict[str, int]
    conflicts: list[int]


def release(workers: list[subprocess.Popen[str]]) -> None:
    """Let workers that are ready begin at once."""
    for process in workers:
        assert process.stdout
        assert process.stdout.readline() == "READY\n"
    for process in workers:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()


def collect(workers: list[subprocess.Popen[str]]) -> Said:
    """What workers said until their ends."""
    lines = []
    for process in workers:
        output, _ = process.communicate()
        assert process.returncode == 0
        lines += [line.split() for line in output.splitlines()]
    return Said(
        acks={id: int(n) for word, n, id in lines if word == "ACK"},
        conflicts=[int(n) for word, n, _ in lines if word == "CONFLICT"],
    )


def join(workers: list[subprocess.Popen[str]]) -> Said:
    """Let workers do their work."""
    release(workers)
    return collect(workers)
