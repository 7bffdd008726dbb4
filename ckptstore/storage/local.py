"""LocalStorage: a folder, written so that a power failure at any moment leaves only garbage.

`put` writes a temporary file under a name that was never used before, fsyncs it and renames it.
`create` does the same with link, which fails when the name is taken. `flush` fsyncs the folders
that hold the keys, and their parents, because another process may have made a folder, or a file
that the caller relies on, without having reached its own flush. A failed fsync is never repeated on
the same file, since the kernel may have dropped the bytes and would then report success: the commit
fails instead (docs/reference/format.md, section 3; ADR 0001).

Every name below the root is opened one part at a time without following links, and only regular
files are read, so a planted link or FIFO is refused. The root itself may be a link: it is the
user's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError, StorageError, shown
from ckptstore.regular_file import open_regular, read_full
from ckptstore.storage.protocol import KEY_PARTS_MAX, Listed, check_key, refuse_foreign
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Confirm, Seen

TEMPORARY = "tmp"
FLUSH_THREADS = 8  # a folder's fsync is mostly waiting
READ_STEP_BYTES = 1 << 19  # read and hash in steps that stay in a core's own cache
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class LocalStorage:
    """Bytes by key in a folder of a local file system that honours fsync.

    Args:
        root: The folder. It need not exist before `prepare`; "~" is expanded.

    Raises:
        InvalidInputError: The root is no path.
    """

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

    def prepare(self, keys: Collection[str]) -> None:
        """Make the folder and all missing ones above it, durably; refuse one with other names."""
        with _translated("the folder", self._root):
            Path(self._root).mkdir(parents=True, exist_ok=True)
            for folder in _parents_on_device(Path(self._root)):
                with suppress(PermissionError):  # not readable, so not made by this user
                    _fsync_folder(folder)
            names = os.listdir(self._root)
        refuse_foreign(self._root, names, keys={*keys, TEMPORARY})

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""
        with _translated(key, self._root), self._opened(key) as (fd, size):
            if size > bytes_max:
                raise CorruptError(f"{key} has {size} bytes; at most {bytes_max} are expected.")
            data = bytearray(size)
            if read_full(fd, memoryview(data), 0) != size:
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
                if read_full(fd, part, (start or 0) + begin) != len(part):
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
        """Remove keys, ignoring missing ones."""
        for key in keys:
            with (
                _translated(key, self._root),
                suppress(FileNotFoundError),
                self._folder_of(key) as (folder_fd, name),
            ):
                os.unlink(name, dir_fd=folder_fd)

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every file under a folder except temporary ones, as it is found.

        An entry that is no regular file is listed with size 0: reading it reports its kind. So is a
        folder that can hold no keys, such as "lost+found".
        """
        parts = tuple(part for part in prefix.split("/") if part)
        with _translated(prefix or "the root", self._root):
            try:
                with self._folder(parts) as fd:
                    yield from _walk(fd, "".join(f"{part}/" for part in parts))
            except FileNotFoundError:
                if not parts or not os.path.isdir(self._root):
                    raise

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None; a link or a folder of that name is an error."""
        with _translated(key, self._root):
            try:
                with self._folder_of(key) as (folder_fd, name):
                    status = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{key} is not a regular file.")
            return status.st_size

    def now(self) -> float:
        """Return the time of the file system, which on a network drive is its server's."""
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
    def lock(self) -> Iterator[None]:
        """Hold the flock of the folder, which the kernel releases when the process ends."""
        with _translated("the lock", self._root, writing=True):
            fd = os.open(self._root, _FOLDER)
        try:
            with _translated("the lock", self._root, writing=True):
                fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def sweep(self, *, seconds: float) -> int:
        """Remove temporary files that have not been written to for this many seconds."""
        latest = self.now() - seconds
        freed = 0
        with _translated(TEMPORARY, self._root), self._folder((TEMPORARY,), make=True) as fd:
            for name in os.listdir(fd):
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_mtime <= latest:
                        os.unlink(name, dir_fd=fd)
                        freed += status.st_size
        return freed

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a key for reading and yield its descriptor and size."""
        with self._folder_of(key) as (folder_fd, name):
            fd, status = open_regular(name, dir_fd=folder_fd)
        try:
            yield fd, status.st_size
        finally:
            os.close(fd)

    @contextmanager
    def _written(self, data: Buffer, confirm: Confirm | None = None) -> Iterator[tuple[str, int]]:
        """Write and fsync a temporary file, and yield its name and the descriptor of its folder.

        An error removes it.
        """
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
        """Open the folder that holds a key and yield its descriptor and the key's last part."""
        *folders, name = check_key(key).split("/")
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
    """Open a folder that is no link, and with `make` make a missing one."""
    try:
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)
    except FileNotFoundError:
        if not make:
            raise
        with suppress(FileExistsError):  # another process made it just now
            os.mkdir(name, dir_fd=within)
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=within)


def _temporary_name() -> str:
    """Return a name that is not in use and never was; a process id alone may be reused."""
    return f"{os.getpid()}-{secrets.token_hex(12)}"


def _parents_on_device(root: Path) -> Iterator[Path]:
    """Yield the folders above, up to the mount point.

    Any of them may be new and not yet flushed by the process that made it.
    """
    device = root.stat().st_dev
    return takewhile(lambda folder: folder.stat().st_dev == device, root.parents)


def _folders_above(key: str) -> Iterator[tuple[str, ...]]:
    parts = tuple(key.split("/")[:-1])
    for length in range(len(parts) + 1):
        yield parts[:length]


def _walk(fd: int, prefix: str) -> Iterator[Listed]:
    """List every key below a folder."""
    with os.scandir(fd) as entries:
        for entry in entries:
            key = f"{prefix}{entry.name}"
            if entry.is_dir(follow_symlinks=False) and _may_hold_keys(key):
                if prefix or entry.name != TEMPORARY:
                    try:
                        inner = os.open(entry.name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
                    except FileNotFoundError:  # deleted since
                        continue
                    try:
                        yield from _walk(inner, f"{key}/")
                    finally:
                        os.close(inner)
            else:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # deleted since
                    continue
                size = status.st_size if stat.S_ISREG(status.st_mode) else 0
                yield Listed(key, size, status.st_mtime)


def _may_hold_keys(folder: str) -> bool:
    """True for a folder in which keys may be; others may not even be readable."""
    try:
        check_key(f"{folder}/key")
    except InvalidInputError:
        return False
    return True


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
    """Translate errors of the operating system, naming what they concern."""
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
