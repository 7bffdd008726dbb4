"""LocalStorage: a folder, written so that a power failure at any moment leaves only garbage.

`put` writes a temporary file under a name that was never used before, fsyncs it and renames it.
`stage` does the first of these and has the kernel begin to write the bytes to the disk; the fsync
comes with the name (ADR 0036). `create` links instead of renaming, which fails when the name is
taken. `flush` fsyncs the folders that hold the keys, and their parents, because another process may
have made a folder, or a file that the caller relies on, without having reached its own flush. A
failed fsync is never repeated on the same file, since the kernel may have dropped the bytes and
would then report success: the commit fails instead (docs/reference/format.md, section 3; ADR 0001).
`prepare` tries all of this before there is a repository, as not every file system can do it (ADR
0029).

New folders get the permissions of the root, and new files its read permissions, whatever the umask
of the process: a group shares a repository by the mode of its root.

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
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ckptstore import flock
from ckptstore.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    shown,
)
from ckptstore.forks import unshared_folder
from ckptstore.open_files import affordable
from ckptstore.regular_file import open_regular, read_full
from ckptstore.storage.copies import copies
from ckptstore.storage.folders import (
    FOLDER,
    entries_below,
    folders_above,
    fsync_folder,
    grant,
    open_folder,
    parents_on_device,
    walk,
)
from ckptstore.storage.hold import HELD, Hold, holder
from ckptstore.storage.hold import hold as hold_name
from ckptstore.storage.os_errors import required, translated
from ckptstore.storage.protocol import (
    Listed,
    Temporary,
    check_key,
    refuse_foreign,
)
from ckptstore.storage.staged_file import StagedFile
from ckptstore.storage.temporary import TEMPORARY, hold, is_left, new_name
from ckptstore.storage.writeback import begin_writeback
from ckptstore.threads import Buffers, gather

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Seen

Item = TypeVar("Item")

OF_DISKS = ("lost+found", ".snapshot", ".zfs")  # file systems have them at their own root
RESERVE = tuple(f"reserve-{number}" for number in range(1, 9))  # in tmp/; an inode each
RESERVE_BYTES = 1 << 13  # of each
FLUSH_THREADS = 8  # a folder's fsync is mostly waiting
FLUSHED_MAX = 128  # files of a batch whose folder is fsynced at once
KEPT_FOLDERS_MAX = 64  # of a batch: each takes a descriptor
FILES_PER_FOLDER = 4  # that a process has to be allowed for each, and for each thread
FOLDERS_PER_THREAD = 8  # for fewer, starting a thread takes longer than their fsyncs
# Linux refuses a link to the file of another user who shares the repository (protected_hardlinks).
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
READ_STEP_BYTES = 1 << 19  # read and hash in steps that stay in a core's own cache
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_OVERWRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW


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
        except FileNotFoundError as error:
            raise InvalidInputError(
                f"{shown(root)} leads nowhere: the working folder is gone. Pass an absolute path."
            ) from error
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInputError(f"{shown(root)} is not a path: {error}.") from error
        if holds_nul or not isinstance(self._root, str):
            raise InvalidInputError(f"{shown(root)} is not a path: it holds a NUL, or is not text.")
        self._mode: int | None = None
        self._buffers = Buffers()
        self._is_used = False

    @property
    def url(self) -> str:
        """The absolute path of the folder."""
        return self._root

    def prepare(self, keys: Collection[str]) -> None:
        """Make the folder and all missing ones above it, durably.

        Refuse a folder with other names, and a file system that lacks what a repository needs;
        nothing is left then.
        """
        root = Path(self._root)
        missing: list[Path] = []
        try:
            with translated("", self._root):
                missing += (
                    path for path in (root / TEMPORARY, root, *root.parents) if not path.exists()
                )
                root.mkdir(parents=True, exist_ok=True)
                for folder in parents_on_device(root):
                    with suppress(PermissionError):  # not readable, so not made by this user
                        fsync_folder(folder, self._root)
                names = os.listdir(root)
            refuse_foreign(self._root, names, keys={*keys, TEMPORARY, *OF_DISKS})
            self._probe()
        except BaseException:
            for folder in missing:
                with suppress(OSError):
                    folder.rmdir()
            raise

    def _probe(self) -> None:
        """Use what a repository needs of a file system; StorageError when that is missing."""
        key = f"{TEMPORARY}/probe-{new_name()}"
        try:
            if not self.create(key, b"first") or self.create(key, b"other"):
                raise StorageError(
                    f"{self._root} is on a file system where a new file can replace another one, "
                    "so commits would be lost. Use another disk."
                )
            with (
                translated("the lock", self._root, writing=True),
                self._folder((TEMPORARY,)) as fd,
                required("locks", self._root),
                suppress(BlockingIOError),
            ):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            self.delete([key])

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""
        with translated(key, self._root), self._opened(key) as (fd, size):
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
        with translated(key, self._root), self._opened(key) as (fd, size):
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

    def put(self, key: str, data: Buffer) -> None:
        """Store bytes under a key, atomically; durable after `flush`."""
        with translated(key, self._root, writing=True):
            self._written((data,)).put(key)

    def stage(self, data: Buffer, *, seen: Seen | None = None) -> StagedFile:
        """Write a temporary file, and have the kernel begin to write it to the disk."""
        pieces = copies(data, self._buffers, seen=seen) if seen else (data,)
        with translated("a temporary file", self._root, writing=True):
            staged = self._written(pieces)
            with staged.removed_on_error():
                begin_writeback(staged.fd)
            return staged

    @contextmanager
    def batch(self) -> Iterator[LocalStorage]:
        """Yield this storage with the folders that are used kept open until the context ends."""
        batch = _Batch(self._root, is_used=self._is_used)
        try:
            yield batch
        finally:
            self._is_used = True
            batch.close()

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:  # noqa: ARG002
        """Store bytes under a key unless it exists; durable when it returns True."""
        with translated(key, self._root, writing=True):
            staged = self._written((data,))
            with self._named(staged, key) as (tmp_fd, folder_fd, name):
                link = partial(os.link, src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)
                try:
                    with required("hard links", self._root):
                        link(staged.name, name, follow_symlinks=False)
                    created = True
                except FileExistsError:
                    created = False
                os.unlink(staged.name, dir_fd=tmp_fd)
            if created:
                self.flush([key])
            return created

    def copy(self, key: str, to: str) -> None:
        """Give a file a second name, or copy it where that is not possible."""
        with (
            translated(key, self._root),
            self._folder_of(key) as (from_fd, name),
            self._folder_of(to, make=True) as (to_fd, new),
        ):
            link = partial(
                os.link, name, new, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False
            )
            try:
                try:
                    link()
                except FileExistsError:  # perhaps by a gc that died
                    os.unlink(new, dir_fd=to_fd)
                    link()
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                self.put(to, self.get(key, bytes_max=_size(name, within=from_fd) or 0))

    def flush(self, keys: Iterable[str]) -> None:
        """Fsync the folders of these keys, and every folder above them up to the root."""
        self._fsync_all({parent for key in keys for parent in folders_above(key)})

    def delete(self, keys: Iterable[str]) -> None:
        """Remove keys, ignoring missing ones, durably.

        Otherwise a power failure may bring a name back, on a file system without a journal with
        bytes that are another file's by then (ADR 0033).
        """
        folders: set[tuple[str, ...]] = set()
        for parts, inside in groupby(keys, lambda key: tuple(check_key(key).split("/")[:-1])):
            folders.add(parts)
            with (
                translated("/".join(parts) or "the root", self._root),
                suppress(FileNotFoundError),
                self._folder(parts) as fd,
            ):
                for key in inside:
                    with translated(key, self._root), suppress(FileNotFoundError):
                        os.unlink(key.rpartition("/")[2], dir_fd=fd)
        # Folders of missing keys too: the process that removed them may have died before its fsync.
        self._fsync_all(folders, may_lack=True)

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every file under a folder except temporary ones, as it is found.

        An entry that is no regular file is listed with size 0: reading it reports its kind. So is a
        folder that can hold no keys, such as "lost+found".
        """
        return self._listed(prefix, walk)

    def keys(self, prefix: str) -> Iterator[str]:
        """List the keys of `list`, without a call for each."""
        return (key for key, _ in self._listed(prefix, entries_below))

    def _listed(self, prefix: str, below: Callable[[int, str], Iterator[Item]]) -> Iterator[Item]:
        parts = tuple(part for part in prefix.split("/") if part)
        with translated(prefix or "the root", self._root):
            try:
                with self._folder(parts) as fd:
                    yield from below(fd, "".join(f"{part}/" for part in parts))
            except FileNotFoundError:
                if not parts or not os.path.isdir(self._root):
                    raise

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None; a link or a folder of that name is an error."""
        with translated(key, self._root):
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
        with translated("the clock", self._root, writing=True):
            try:
                with self._folder((TEMPORARY,), make=True) as fd:
                    os.utime(fd)  # unlike writing a file, this takes no room on a full disk
                    return os.fstat(fd).st_mtime
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                    raise
                return time.time()  # who may not write here deletes nothing by its age either

    @property
    def is_far(self) -> bool:
        """Return False."""
        return False

    @property
    def lease_seconds(self) -> float:
        """Return 0: the lock excludes everything else."""
        return 0.0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the flock of the folder, which the kernel releases when the process ends."""
        with ExitStack() as stack:
            with translated("the lock", self._root, writing=True):
                fd = stack.enter_context(unshared_folder(self._root))
                with required("locks", self._root):
                    flock.acquire(fd, self._root)
            yield

    def hold(self, name: str) -> Hold:
        """Hold a name by the flock of a file in `tmp/`."""
        folder = partial(self._folder, (TEMPORARY,), make=True)
        return hold_name(folder, f"{HELD}{check_key(name)}", mode=self._file_mode())

    def holder(self, name: str) -> str | None:
        """Return the process that has locked the file of a name."""
        return holder(partial(self._folder, (TEMPORARY,)), f"{HELD}{check_key(name)}")

    def free_bytes(self) -> int | None:
        """Return the free space of the file system; None if it does not tell."""
        try:
            status = os.statvfs(self._root)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def temporaries(self) -> Sequence[Temporary]:
        """List the files that are being written, and those that dead writers left."""
        try:
            return tuple(item for _, item in self._temporaries(self.now()))
        except NotFoundError:
            return ()

    def sweep(self) -> int:
        """Remove the temporary files that dead writers left."""
        left = [(name, item.size) for name, item in self._temporaries(self.now()) if item.is_left]
        with translated(TEMPORARY, self._root), self._folder((TEMPORARY,), make=True) as fd:
            for name, _ in left:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
            held = [name.removeprefix(HELD) for name in os.listdir(fd) if name.startswith(HELD)]
        for name in held:
            with suppress(ConflictError, InvalidInputError):
                if self.holder(name) is None:  # killed: to hold and release it removes its file
                    self.hold(name).release()
        return sum(size for _, size in left)

    def hold_reserve(self) -> None:
        """Write the files of the reserve that are missing, as far as there is room for them.

        Their bytes are random, so that no file system compresses them. They are not flushed: the
        next gc writes again what a power failure took.
        """
        with suppress(OSError), self._folder((TEMPORARY,), make=True) as tmp_fd:
            for name in RESERVE:
                if _size(name, within=tmp_fd) != RESERVE_BYTES:
                    fd = os.open(name, _OVERWRITE, self._file_mode(), dir_fd=tmp_fd)
                    try:
                        grant(fd, self._file_mode())
                        _write_full(fd, memoryview(secrets.token_bytes(RESERVE_BYTES)))
                    finally:
                        os.close(fd)

    def reserve_bytes(self) -> int:
        """Return the size of the reserve's files in bytes."""
        try:
            with self._folder((TEMPORARY,)) as fd:
                return sum(_size(name, within=fd) or 0 for name in RESERVE)
        except OSError:
            return 0

    def release_reserve(self) -> bool:
        """Remove the files of the reserve."""
        is_released = False
        with suppress(OSError), self._folder((TEMPORARY,)) as fd:
            for name in RESERVE:
                with suppress(OSError):
                    os.unlink(name, dir_fd=fd)
                    is_released = True
        return is_released

    def _temporaries(self, now: float) -> Iterator[tuple[str, Temporary]]:
        with translated(TEMPORARY, self._root), self._folder((TEMPORARY,)) as fd:
            for name in set(os.listdir(fd)).difference(RESERVE):
                if name.startswith(HELD):  # removed by its holder, or used again by the next one
                    continue
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        age = now - status.st_mtime
                        yield name, Temporary(status.st_size, is_left(name, within=fd, age=age))

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[int, int]]:
        """Open a key for reading and yield its descriptor and size."""
        with self._folder_of(key) as (folder_fd, name):
            fd, status = open_regular(name, dir_fd=folder_fd)
        try:
            yield fd, status.st_size
        finally:
            os.close(fd)

    def _written(self, pieces: Iterable[Buffer]) -> StagedFile:
        """Write a temporary file, which is open, and so locked, until it has another name."""
        name = new_name()
        with self._folder((TEMPORARY,), make=True) as tmp_fd:
            fd = os.open(name, _WRITE, self._file_mode(), dir_fd=tmp_fd)
        staged = StagedFile(fd, name, rename=self._rename, remove=self._remove)
        with staged.removed_on_error():
            hold(fd)
            grant(fd, self._file_mode())
            for piece in pieces:
                _write_full(fd, memoryview(piece).cast("B"))
        return staged

    def _rename(self, staged: StagedFile, key: str) -> None:
        """Fsync a temporary file and rename it to a key."""
        with self._named(staged, key) as (tmp_fd, folder_fd, name):
            os.rename(staged.name, name, src_dir_fd=tmp_fd, dst_dir_fd=folder_fd)

    @contextmanager
    def _named(self, staged: StagedFile, key: str) -> Iterator[tuple[int, int, str]]:
        """Fsync a temporary file, and yield its folder, the folder of a key and the name there.

        The context moves it. An error removes it, as a failed fsync is never repeated.
        """
        with translated(key, self._root, writing=True), staged.removed_on_error():
            os.fsync(staged.fd)
            with (
                self._folder((TEMPORARY,)) as tmp_fd,
                self._folder_of(key, make=True) as (folder_fd, name),
            ):
                yield tmp_fd, folder_fd, name
            staged.close()

    def _remove(self, name: str) -> None:
        """Remove a temporary file."""
        with suppress(OSError), self._folder((TEMPORARY,)) as tmp_fd:
            os.unlink(name, dir_fd=tmp_fd)

    def _fsync_all(self, folders: Collection[tuple[str, ...]], *, may_lack: bool = False) -> None:
        """Fsync folders, on as many threads as are worth it and may open files."""
        threads = min(FLUSH_THREADS, 1 + len(folders) // FOLDERS_PER_THREAD)
        if threads > 1:
            threads = affordable(threads, files_each=FILES_PER_FOLDER)
        jobs = [partial(self._fsync, parts, may_lack=may_lack) for parts in sorted(folders)]
        gather(jobs, threads=threads)

    def _fsync(self, parts: tuple[str, ...], *, may_lack: bool = False) -> None:
        """Fsync a folder below the root; with `may_lack`, only if it is there."""
        with (
            translated("the folders", self._root, writing=True),
            suppress(FileNotFoundError) if may_lack else nullcontext(),
            self._folder(parts) as fd,
            required("an fsync of folders", self._root),
        ):
            os.fsync(fd)

    def _folder_mode(self) -> int:
        """Return the permissions of the root, as of the first time they were needed."""
        if self._mode is None:
            self._mode = os.stat(self._root).st_mode & 0o777
        return self._mode

    def _file_mode(self) -> int:
        """Return the permissions of a file, which nobody changes, but all readers may read."""
        return 0o600 | self._folder_mode() & 0o444

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
        mode = self._folder_mode() if make else None
        try:
            fd = open_folder(first, make=None) if parts else os.open(first, FOLDER)
        except FileNotFoundError:
            if mode is None:
                raise
            self._refuse_emptied()
            fd = open_folder(first, make=mode)
        self._is_used = self._is_used or make
        try:
            for part in parts[1:]:
                inner = open_folder(part, make=mode, within=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _refuse_emptied(self) -> None:
        """Raise StorageError where nothing is left of what was written here before."""
        if self._is_used and not os.listdir(self._root):
            raise StorageError(
                f"{self._root} is empty: what it held was removed, or its disk was unmounted."
            )


class _Batch(LocalStorage):
    """The same folder for one writer.

    The first folders that it uses stay open. The first files get the fsync of their folder with
    their name, so that `flush` has little left to do. Of many files several are in one folder, and
    it is better to wait for all of them.
    """

    def __init__(self, root: str, *, is_used: bool) -> None:
        super().__init__(root)
        self._is_used = is_used
        self._kept: dict[tuple[str, ...], int] = {}
        self._kept_max = affordable(KEPT_FOLDERS_MAX, files_each=FILES_PER_FOLDER)
        self._flushed: set[str] = set()  # keys that were put before an fsync of their folder

    def close(self) -> None:
        """Close the folders; no thread uses them any more."""
        while self._kept:
            os.close(self._kept.popitem()[1])

    def flush(self, keys: Iterable[str]) -> None:
        """Fsync the folders of these keys, less those of the first files put, and all above."""
        folders: set[tuple[str, ...]] = set()
        for key in keys:
            *above, own = folders_above(key)
            folders.update(above if key in self._flushed else (*above, own))
        self._fsync_all(folders)

    def _rename(self, staged: StagedFile, key: str) -> None:
        super()._rename(staged, key)
        if len(self._flushed) < FLUSHED_MAX:
            self._fsync(tuple(key.split("/")[:-1]))
            self._flushed.add(key)

    @contextmanager
    def _folder(self, parts: tuple[str, ...], *, make: bool = False) -> Iterator[int]:
        """Yield a folder that is open already, or open it within the one above."""
        fd = self._kept.get(parts)
        if fd is not None:
            yield fd
            return
        if len(parts) > 1:
            with self._folder(parts[:-1], make=make) as above:
                mode = self._folder_mode() if make else None
                fd = open_folder(parts[-1], make=mode, within=above)
        else:
            with super()._folder(parts, make=make) as opened:
                fd = os.dup(opened)
        is_kept = len(self._kept) < self._kept_max and self._kept.setdefault(parts, fd) == fd
        try:
            yield fd
        finally:
            if not is_kept:
                os.close(fd)


def _size(name: str, *, within: int) -> int | None:
    """Return the size of a file, or None when it is missing."""
    try:
        return os.stat(name, dir_fd=within, follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _write_full(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
