"""Small disks that can be filled to the last byte and the last inode. They need root."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
KINDS = ("tmpfs", "ext4")
DISK_BYTES = 16 << 20
DISK_INODES = 800


@contextmanager
def small_disk(kind: str, folder: Path) -> Iterator[Path]:
    """Mount a disk of 16 MiB and 800 inodes in an empty folder, or skip the test."""
    mounted = folder / "disk"
    mounted.mkdir()
    if kind == "tmpfs":
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},nr_inodes={DISK_INODES}", "none"]
    else:
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        if not shutil.which("mkfs.ext4"):
            pytest.skip("no mkfs.ext4 here")
        make = ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-N", str(DISK_INODES)]
        subprocess.run([*make, image], check=True)
        options = ["-o", "loop", str(image)]
    done = subprocess.run(["mount", *options, mounted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True)


def fill(disk: Path, *, what: str) -> None:
    """Use up the "bytes" or the "inodes" of a disk, or "both"."""
    folder = disk / "somebody else"
    folder.mkdir(exist_ok=True)
    if what in ("bytes", "both"):
        _fill_bytes(folder / f"log-{os.getpid()}")
    if what in ("inodes", "both"):
        _fill_inodes(folder)


def empty(disk: Path) -> None:
    """Undo `fill`."""
    shutil.rmtree(disk / "somebody else")


def _fill_bytes(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 16, 1 << 12):
        while True:
            try:
                os.write(fd, bytes(size))
                os.fsync(fd)  # now, not some time later
            except OSError as error:
                if error.errno not in FULL:
                    raise
                break
    os.close(fd)


def _fill_inodes(folder: Path) -> None:
    for number in range(100_000):
        try:
            (folder / f"{number}").touch()
        except OSError as error:
            if error.errno not in FULL:
                raise
            return
