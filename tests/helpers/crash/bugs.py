"""Deliberate bugs of a store: the crash tests have to catch every one."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ckptstore.digest import Digest
from ckptstore.documents.note import NoteName
from ckptstore.storage import LocalStorage
from ckptstore.store.catalog import Catalog
from ckptstore.store.notes import Notes
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.note import Note
    from ckptstore.documents.operation import Operation

_fsync, _link = os.fsync, os.link


def seeded(name: str) -> AbstractContextManager[object]:
    """Make a mistake for as long as the context lasts."""
    return BUGS[name]()


def no_file_fsync() -> AbstractContextManager[object]:
    return patch("os.fsync", lambda fd: _fsync(fd) if _is_folder(fd) else None)


def no_folder_fsync() -> AbstractContextManager[object]:
    return patch("os.fsync", lambda fd: None if _is_folder(fd) else _fsync(fd))


@contextmanager
def names_before_bytes() -> Iterator[None]:
    """Files are fsynced after they were renamed, though before the commit needs them."""
    late: list[int] = []

    def fsync(fd: int) -> None:
        if not _is_folder(fd):
            late.append(os.dup(fd))
            return
        while late:
            file = late.pop()
            _fsync(file)
            os.close(file)
        _fsync(fd)

    with patch("os.fsync", fsync):
        yield


def no_parent_folder_fsync() -> AbstractContextManager[object]:
    return patch("ckptstore.storage.local.folders_above", lambda key: [tuple(key.split("/")[:-1])])


def failed_fsync_ignored() -> AbstractContextManager[object]:
    def fsync(fd: int) -> None:
        try:
            _fsync(fd)
        except OSError:
            return

    return patch("os.fsync", fsync)


def failed_fsync_tried_again() -> AbstractContextManager[object]:
    def fsync(fd: int) -> None:
        try:
            _fsync(fd)
        except OSError:
            _fsync(fd)

    return patch("os.fsync", fsync)


@contextmanager
def operation_before_manifest() -> Iterator[None]:
    store, append = Catalog.store, Oplog.append
    late: list[tuple[Catalog, Manifest]] = []

    def store_later(catalog: Catalog, manifest: Manifest) -> Digest:
        late.append((catalog, manifest))
        return Digest.of(manifest.encode())

    def append_first(oplog: Oplog, decide: Callable[[Operation], Operation]) -> Operation:
        operation = append(oplog, decide)
        while late:
            store(*late.pop())
        return operation

    with patch.object(Catalog, "store", store_later), patch.object(Oplog, "append", append_first):
        yield


@contextmanager
def temporary_name_by_pid_only() -> Iterator[None]:
    """In a container the pid is the same at every start, and a count begins anew."""
    numbers = count()
    token = SimpleNamespace(token_hex=lambda _: str(next(numbers)))
    with patch("os.getpid", lambda: 1), patch("ckptstore.storage.temporary.secrets", token):
        yield


@contextmanager
def found_objects_not_flushed() -> Iterator[None]:
    stage, flush = ObjectStore.stage, ObjectStore.flush
    ours: set[Digest] = set()

    def stage_noted(objects: ObjectStore, digest: Digest, data: Any, **options: Any) -> Any:
        ours.add(digest)
        return stage(objects, digest, data, **options)

    def flush_ours(objects: ObjectStore, digests: Iterable[Digest]) -> None:
        flush(objects, ours & set(digests))

    with (
        patch.object(ObjectStore, "stage", stage_noted),
        patch.object(ObjectStore, "flush", flush_ours),
    ):
        yield


def notes_not_flushed() -> AbstractContextManager[object]:
    def store(notes: Notes, note: Note, *, seq: int) -> NoteName:
        data = note.encode()
        name = NoteName(note.checkpoint, seq, Digest.of(data))
        notes._storage.put(Notes.key(name), data)
        return name

    return patch.object(Notes, "store", store)


def deletes_not_flushed() -> AbstractContextManager[object]:
    fsync = LocalStorage._fsync

    def fsync_others(storage: LocalStorage, folder: tuple[str, ...], **options: Any) -> None:
        if not options:
            fsync(storage, folder)

    return patch.object(LocalStorage, "_fsync", fsync_others)


def create_overwrites() -> AbstractContextManager[object]:
    def link(source: str, target: str, **folders: Any) -> None:
        try:
            _link(source, target, **folders)
        except FileExistsError:
            os.unlink(target, dir_fd=folders["dst_dir_fd"])
            _link(source, target, **folders)

    return patch("os.link", link)


def _is_folder(fd: int) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


BUGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        no_file_fsync,
        no_folder_fsync,
        names_before_bytes,
        no_parent_folder_fsync,
        failed_fsync_ignored,
        failed_fsync_tried_again,
        operation_before_manifest,
        temporary_name_by_pid_only,
        found_objects_not_flushed,
        notes_not_flushed,
        deletes_not_flushed,
        create_overwrites,
    )
}
