"""LocalStorage: a folder, written so that a power failure at any moment leaves only garbage.

put: a temporary file with a name nobody else has, all bytes, fsync, rename. create: the same with link, which fails
when the name is taken. flush: fsync of the folders that hold the names, and of their parents, because another process
may have made a folder, or a file we rely on, without having come to its own flush. A failed fsync is never tried again
on the same file (the kernel may have dropped the bytes and will then report success): the commit fails instead.

Every name below the root is opened one part at a time without following links, and only regular files are read, so a
planted link or FIFO leads nowhere. The root itself may be a link: it is the user's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, StorageError, shown
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Confirm, Seen

TEMPORARY = "tmp"
FLUSH_THREADS = 8  # a folder's fsync is mostly waiting
READ_STEP_BYTES = 1 << 19  # read and hash in steps that stay in a core's own cache
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*){0,2}")
KEY_PARTS_MAX = 3
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
# O_NONBLOCK: opening a FIFO must not wait.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class LocalStorage:
    """Bytes by key in a folder of a local file system that honours fsync."""

    def __init__(self, root: str | Path) -> None:
        try:
            self._root = os.path.abspath(os.path.expanduser(os.fspath(root)))
            holds_nul = b"\0" in os.fsencode(self._root)
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInputError(f"{shown(root)} is not a path: {error}.") from error
        if holds_nul or not isinstance(self._root, str):
            raise InvalidInputError(f"{shown(root)} is not a path: it holds a NUL, or is not text.")

    @property
    def url(self) -> str:
        """The absolute path of the folder."""
        return self._root

    def make_root(self, names: Collection[str]) -> None:
        """Make the folder, durably, and all above it that is missing; refuse one that holds other names."""
        with _translated("the folder", self._root):
            Path(self._root).mkdir(parents=True, exist_ok=True)
            for folder in _parents_on_device(Path(self._root)):
                with suppress(PermissionError):  # not ours to read, so not ours to have made
                    _fsync_folder(folder)
            foreign = sorted(set(os.listdir(self._root)) - {*names, TEMPORARY})
        if foreign:
            raise InvalidInputError(
                f"{self._root} holds other things ({', '.join(foreign[:3])}). Name an empty or a new folder."
            )

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """All bytes of a key."""
        with _translated(key, self._root), self._opened(key) as (fd, size):
            if size > bytes_max:
                raise CorruptError(f"{key} has {size} bytes; at most {bytes_max} are expected.")
            data = bytearray(size)
            if _read_full(fd, memoryview(data), 0) != size:
                raise CorruptError(f"{key} became shorter while it was read.")
            return bytes(data)

    def read_into(
        self, key: str, buffer: memoryview, *, start: int | None = None, seen: Seen | None = None
    ) -> None:
        """Fill a buffer from position `start`, or with the whole key."""
        with _translated(key, self._root), self._opened(key) as (fd, size):
            end = (start or 0) + len(buffer)
            if end > size or (start is None and end != size):
                raise CorruptError(f"{key} has {size} bytes; {end} are expected.")
            step = READ_STEP_BYTES if seen else max(1, len(buffer))
            for begin in range(0, len(buffer), step):
                part = buffer[begin : begin + step]
                if _read_full(fd, part, (start or 0) + begin) != len(part):
                    raise CorruptError(f"{key} became shorter while it was read.")
                if seen:
                    seen(part)

    def put(self, key: str, data: Buffer, *, confirm: Confirm | None = None) -> None:
        """Store bytes under a key, atomically; durable after `flush`."""
        with (
            _translated(key, self._root, writing=True),
            self._written(data, confirm) as (temporary, tmp_fd),
            self._folder_of(key, make=True) as (folder_fd, name),
        ):
            os.rename(temporary, name, src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)

    def create(self, key: str, data: Buffer) -> bool:
        """Store bytes under a key unless it exists; durable when it returns True."""
        with _translated(key, self._root, writing=True):
            with (
                self._written(data) as (temporary, tmp_fd),
                self._folder_of(key, make=True) as (folder_fd, name),
            ):
                try:
                    os.link(
                        temporary,
                        name,
                        src_dir_fd=tmp_fd,
                        dst_dir_fd=folder_fd,
                        follow_symlinks=False,
                    )
                    created = True
                except FileExistsError:
                    created = False
                os.unlink(temporary, dir_fd=tmp_fd)
            if created:
                self.flush([key])
            return created

    def flush(self, keys: Iterable[str]) -> None:
        """Fsync the folders of these keys, then every folder above them up to the root."""
        folders = {parent for key in keys for parent in _folders_above(key)}
        for depth in range(KEY_PARTS_MAX - 1, -1, -1):
            level = sorted(parts for parts in folders if len(parts) == depth)
            gather([partial(self._fsync, parts) for parts in level], threads=FLUSH_THREADS)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; one that is not there is no error."""
        for key in keys:
            with (
                _translated(key, self._root),
                suppress(FileNotFoundError),
                self._folder_of(key) as (folder_fd, name),
            ):
                os.unlink(name, dir_fd=folder_fd)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Every regular file under a folder, with its size; temporary files are left out."""
        parts = tuple(part for part in prefix.split("/") if part)
        with _translated(prefix or "the root", self._root):
            try:
                with self._folder(parts) as fd:
                    found = list(_walk(fd, "".join(f"{part}/" for part in parts)))
            except FileNotFoundError:
                if parts and os.path.isdir(self._root):
                    return iter(())
                raise
        return iter(found)

    def size(self, key: str) -> int | None:
        """The size of a key, or None; a link or a folder of that name is an error."""
        with _translated(key, self._root):
            try:
                with self._folder_of(key) as (folder_fd, name):
                    status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{key} is not a regular file.")
            return status.st_size

    def stale(self, keys: Iterable[str], *, seconds: float) -> set[str]:
        """Those of these keys that have not been put or created for so long, by the file system's own clock."""
        latest = self._file_system_time() - seconds
        found = set()
        for key in keys:
            with _translated(key, self._root), suppress(FileNotFoundError):
                with self._folder_of(key) as (folder_fd, name):
                    status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
                if status.st_mtime <= latest:
                    found.add(key)
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the folder: the kernel lets go of it when the process ends, however it ends."""
        with _translated("the lock", self._root, writing=True):
            fd = os.open(self._root, _FOLDER)
        try:
            with _translated("the lock", self._root, writing=True):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def sweep(self, *, seconds: float) -> int:
        """Remove temporary files that have not been written to for so long: their bytes."""
        latest = self._file_system_time() - seconds
        freed = 0
        with _translated(TEMPORARY, self._root), self._folder((TEMPORARY,), make=True) as fd:
            for name in os.listdir(fd):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime <= latest:
                        os.unlink(name, dir_fd=fd)
                        freed += status.st_size
        return freed

    def _file_system_time(self) -> float:
        """What the file system calls now: the program's clock may be wrong by days, and a server's is another."""
        with (
            _translated("the clock", self._root, writing=True),
            self._folder((TEMPORARY,), make=True) as fd,
        ):
            name = _temporary_name()
            probe = os.open(name, _WRITE, 0o666, dir_fd=fd)
            try:
                return os.fstat(probe).st_mtime
            finally:
                os.close(probe)
                os.unlink(name, dir_fd=fd)

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a key for reading: its descriptor and size."""
        with self._folder_of(key) as (folder_fd, name):
            fd = os.open(name, _READ, dir_fd=folder_fd)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{key} is not a regular file.")
            yield fd, status.st_size
        finally:
            os.close(fd)

    @contextmanager
    def _written(self, data: Buffer, confirm: Confirm | None = None) -> Iterator[tuple[str, int]]:
        """Write and fsync a temporary file: its name and the descriptor of its folder. Removed if still there."""
        name = _temporary_name()
        with self._folder((TEMPORARY,), make=True) as tmp_fd:
            fd = os.open(name, _WRITE, 0o666, dir_fd=tmp_fd)
            try:
                try:
                    _write_full(fd, memoryview(data).cast("B"))
                    if confirm:
                        confirm()
                    os.fsync(fd)
                finally:
                    os.close(fd)
                yield name, tmp_fd
            except BaseException:
                with suppress(OSError):
                    os.unlink(name, dir_fd=tmp_fd)
                raise

    def _fsync(self, parts: tuple[str, ...]) -> None:
        """Fsync a folder below the root."""
        with _translated("the folders", self._root, writing=True), self._folder(parts) as fd:
            os.fsync(fd)

    @contextmanager
    def _folder_of(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that holds a key: its descriptor and the key's last part."""
        if not _KEY.fullmatch(key):
            raise InvalidInputError(f"{key[:100]!r} is not a key.")
        *folders, name = key.split("/")
        with self._folder(tuple(folders), make=make) as fd:
            yield fd, name

    @contextmanager
    def _folder(self, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """Open a folder below the root, one part at a time, following no link below the root."""
        first = f"{self._root}/{parts[0]}" if parts else self._root
        fd = _open_folder(first, make=make) if parts else os.open(first, _FOLDER)
        try:
            for part in parts[1:]:
                inner = _open_folder(part, make=make, within=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def _open_folder(name: str, *, make: bool, within: int | None = None) -> int:
    """Open a folder that is no link; make it when it is missing and `make` is given."""
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):  # somebody else made it just now
            os.mkdir(name, dir_fd=within)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)


def _temporary_name() -> str:
    """A name that nobody else has, and never had."""
    return f"{os.getpid()}-{secrets.token_hex(12)}"


def _parents_on_device(root: Path) -> Iterator[Path]:
    """The folders above, up to the mount point. Any may be new: who made it may not have come to its fsync."""
    device = root.stat().st_dev
    return takewhile(lambda folder: folder.stat().st_dev == device, root.parents)


def _folders_above(key: str) -> Iterator[tuple[str, ...]]:
    parts = tuple(key.split("/")[:-1])
    for length in range(len(parts) + 1):
        yield parts[:length]


def _walk(fd: int, prefix: str) -> Iterator[tuple[str, int]]:
    """Every key below a folder. What is no regular file, nor a folder where one may be, is listed with size 0."""
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and prefix.count("/") < KEY_PARTS_MAX - 1:
                if prefix or entry.name != TEMPORARY:
                    inner = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                    try:
                        yield from _walk(inner, f"{prefix}{entry.name}/")
                    finally:
                        os.close(inner)
            elif not entry.is_file(follow_symlinks=False):
                yield f"{prefix}{entry.name}", 0  # whoever reads it is told what it is
            else:
                with suppress(FileNotFoundError):
                    yield f"{prefix}{entry.name}", entry.stat(follow_symlinks=False).st_size


def _read_full(fd: int, buffer: memoryview, start: int) -> int:
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], start + done)
        if count == 0:
            break
        done += count
    return done


def _write_full(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _fsync_folder(path: Path) -> None:
    fd = os.open(path, _FOLDER)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _translated(what: str, root: str, *, writing: bool = False) -> Iterator[None]:
    """Turn the operating system's errors into ours, naming what they hit."""
    root = root if len(root) <= 300 else f"{root[:300]}…"
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            raise StorageError(f"{what} could not be written: {root} is gone.") from error
        raise NotFoundError(f"{what} is not in {root}.") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR):
            raise CorruptError(
                f"{what} in {root} is a link, a folder or a device where a file was written."
            ) from error
        raise StorageError(
            f"{what} in {root} could not be used: {error.strerror or error}."
        ) from error
