"""Mounts that end with the process that made them, however it ends. They need root.

A child does the work in a mount namespace of its own. When the last process in it has ended, the
kernel unmounts what is left there and detaches the loop devices.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pickle
import shutil
import signal
import struct
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tests.helpers.children import exit_code, fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Result = TypeVar("Result")
FUSE = "/dev/fuse"
CHILD_SECONDS = 3600  # of a deep test; pytest ends others sooner
DISK_BYTES = 16 << 20
_libc = ctypes.CDLL(None, use_errno=True)
# Of linux/sched.h, linux/mount.h, linux/prctl.h and linux/loop.h.
_CLONE_NEWNS, _MS_REC_PRIVATE, _MNT_DETACH, _PR_SET_PDEATHSIG = 0x20000, 0x44000, 2, 1
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_LOOP_CONFIG = struct.Struct("<I56xI240x")  # the file and the flags; all else is zero


def do_in_own_mounts(job: Callable[[], Result]) -> Result:
    """Do a job in a child with mounts of its own, and return its result, which is pickled.

    Raises:
        OSError: A mount was refused, or another call failed in the child.
    """
    with tempfile.TemporaryFile() as answer:

        def work() -> None:
            die_with_parent()
            try:
                _check(_libc.unshare(_CLONE_NEWNS))
                _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None))
                result: object = job()
            except OSError as error:
                result = error
            pickle.dump(result, answer)
            answer.flush()

        pid = fork(work, seconds=CHILD_SECONDS)
        try:
            code = exit_code(pid)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            exit_code(pid)
            raise
        assert code == 0, f"the child with mounts of its own ended with {code}"
        answer.seek(0)
        result = pickle.load(answer)
    if isinstance(result, OSError):
        raise result
    return result  # type: ignore[no-any-return]


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))


@contextmanager
def mounted(source: str, folder: Path, kind: str, options: str = "") -> Iterator[None]:
    """Mount a file system for as long as the context lasts."""
    place = os.fsencode(folder)
    _check(_libc.mount(source.encode(), place, kind.encode(), 0, options.encode()))
    try:
        yield
    except BaseException:
        _libc.umount2(place, _MNT_DETACH)
        raise
    _check(_libc.umount2(place, 0))


@contextmanager
def fuse_mounted(folder: Path) -> Iterator[int]:
    """Mount a FUSE file system; yields the descriptor for the process that serves it, to be closed
    in all others.
    """
    fd = os.open(FUSE, os.O_RDWR)
    with mounted("fuse", folder, "fuse", f"fd={fd},rootmode=40000,user_id=0,group_id=0"):
        yield fd


@contextmanager
def ext4_mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mount the ext4 in a file through a loop device, which goes with the mount."""
    device, name = _loop_device(image)
    try:
        with mounted(name, folder, "ext4"):
            yield
    finally:
        os.close(device)


def make_ext4(image: Path) -> None:
    """Make a small ext4 with a small journal, and with nothing to be initialised later."""
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    options = ["-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, image], check=True)


def refusal() -> str | None:
    """Why a FUSE file system or an ext4 in a file cannot be mounted here, or None."""
    if os.geteuid():
        return "only root may mount"
    if not shutil.which("mkfs.ext4"):
        return "mkfs.ext4 is missing"

    def attempt() -> None:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            image, folder = Path(scratch, "image"), Path(scratch, "folder")
            folder.mkdir()
            make_ext4(image)
            stack.enter_context(ext4_mounted(image, folder))
            stack.enter_context(fuse_mounted(folder))

    try:
        do_in_own_mounts(attempt)
    except OSError as error:
        return f"mounting is not allowed: {error}"
    return None


def _loop_device(image: Path) -> tuple[int, str]:
    """Attach a file to a free loop device, which is detached when its last user is gone."""
    with open("/dev/loop-control", "rb") as control, open(image, "r+b") as file:
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, os.O_RDWR)
            try:
                config = _LOOP_CONFIG.pack(file.fileno(), _LO_FLAGS_AUTOCLEAR)
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:  # another process took it
                    raise
            else:
                return device, name


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
