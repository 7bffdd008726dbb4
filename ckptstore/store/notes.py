"""Notes: metrics and messages added to checkpoints after their commits, by checkpoint.

`notes/` is listed once, and its names are kept in memory; operations announce later notes. A note
is read only when its checkpoint is read. So the cost of a commit does not depend on notes, and that
of a gc only on the notes on live checkpoints (docs/adr/0045).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, ClassVar

from ckptstore.digest import Digest
from ckptstore.documents.canonical import readable
from ckptstore.documents.note import NOTE_BYTES_MAX, Note, NoteName, in_effect, overlaid
from ckptstore.errors import CorruptError, NotFoundError, first_line
from ckptstore.forks import renewed
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store.disk_cache import NO_CACHE
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.storage import Listed, Storage
    from ckptstore.store.disk_cache import DiskCache

FOLDER = "notes/"
FOLLOWED_MAX = 16  # operations to read for new notes; beyond that, all notes are listed again


def key_of(name: NoteName) -> str:
    """Return the storage key of a note."""
    return f"{FOLDER}{name}.json"


class Notes:
    """The notes of one repository.

    between: returns the operations from a number to the newest. cache: has notes that were read
    before; which ones are there is asked of the storage.
    """

    FOLDERS: ClassVar = (FOLDER,)
    key = staticmethod(key_of)

    def __init__(
        self,
        storage: Storage,
        between: Callable[[int, Operation], Iterator[Operation]],
        *,
        cache: DiskCache = NO_CACHE,
    ) -> None:
        self._storage, self._between, self._cache = storage, between, cache
        self._begin()
        renewed(self, Notes._begin)

    def _begin(self) -> None:
        self._lock = RLock()
        self._seq: int | None = None  # of the operation up to which notes are known
        self._names: dict[Digest, dict[NoteName, Note | None]] = {}

    def update(self, newest: Operation) -> None:
        """Load the names of notes that were published up to the newest operation."""
        with self._lock:
            if self._seq is not None and self._seq >= newest.seq:
                return
            if self._seq is None or newest.seq - self._seq > FOLLOWED_MAX:
                self._list(newest)
            else:
                try:
                    for operation in self._between(self._seq + 1, newest):
                        self._learn(operation)
                except NotFoundError:  # some operations were pruned
                    self._list(newest)
            self._seq = newest.seq

    def learn(self, operation: Operation) -> None:
        """Add the note of an operation, if all earlier operations are known."""
        with self._lock:
            if self._seq == operation.seq - 1:
                self._learn(operation)
                self._seq = operation.seq

    def count(self, id: Digest) -> int:
        """Return the number of notes on a checkpoint, including withdrawn ones."""
        return len(self._names.get(id, ()))

    def of(self, id: Digest) -> tuple[Note, ...]:
        """Return the notes on a checkpoint that count, oldest first."""
        with self._lock:
            names = self._names.get(id)
            if not names:
                return ()
            for name, note in list(names.items()):
                if note is None:
                    try:
                        names[name] = self.read(name)
                    except NotFoundError:  # it was damaged, and then deleted by hand
                        del names[name]
            return in_effect((name, note) for name, note in names.items() if note is not None)

    def annotated(self, id: Digest, manifest: Manifest) -> Manifest:
        """Return a manifest with the metrics of the notes on its checkpoint."""
        notes = self.of(id)
        if not notes:
            return manifest
        return replace(manifest, metrics=overlaid(manifest.metrics, notes))

    def store(self, note: Note, *, seq: int) -> NoteName:
        """Store a note, durably, before operation `seq` publishes it."""
        data = readable(note, name="The note")
        name = NoteName(note.checkpoint, seq, Digest.of(data))
        self._storage.put(key_of(name), data)
        self._storage.flush([key_of(name)])
        with self._lock:
            self._add(name)
        return name

    def read(self, name: NoteName) -> Note:
        """Read a note and compare it with its name."""
        key = key_of(name)
        cached = self._cache.get(name.digest, bytes_max=NOTE_BYTES_MAX)
        data = cached or self._storage.get(key, bytes_max=NOTE_BYTES_MAX)
        try:
            note = Note.decode(data, name=key, named=name)
        except CorruptError as error:
            raise CorruptError(
                f"{first_line(error)}. Copy the file from another copy of the repository, or "
                "delete it and annotate the checkpoint again."
            ) from error
        if cached is None:
            self._cache.put(name.digest, data)
        return note

    def document(self, name: NoteName) -> bytes:
        """Return the bytes of a note, checked, to copy it elsewhere."""
        data = readable(self.read(name), name="The note")
        if Digest.of(data) == name.digest:
            return data
        return self._storage.get(key_of(name), bytes_max=NOTE_BYTES_MAX)

    def take(self, documents: Mapping[NoteName, bytes], *, threads: int) -> None:
        """Store notes of another repository, durably, before an operation publishes them."""
        puts = {key_of(name): data for name, data in documents.items()}
        gather(
            (partial(self._storage.put, key, data) for key, data in puts.items()), threads=threads
        )
        self._storage.flush(puts)

    def names(self, newest: Operation) -> set[NoteName]:
        """Return the names of all notes that were published up to the newest operation."""
        self.update(newest)
        with self._lock:
            return {name for names in self._names.values() for name in names}

    def list(self) -> Iterator[tuple[NoteName | None, Listed]]:
        """List the notes; the name is None for any other key."""
        for item in self._storage.list(FOLDER):
            name = NoteName.parse(item.key.removeprefix(FOLDER).removesuffix(".json"))
            yield name if name and key_of(name) == item.key else None, item

    def _learn(self, operation: Operation) -> None:
        if (name := NoteName.parse(operation.note)) is not None:
            self._add(name)
        elif operation.note is not None:  # several
            self._list(None)

    def _list(self, newest: Operation | None) -> None:
        """Learn all names: by a listing, or from every operation there was up to the newest."""
        try:
            for name, _ in self.list():
                if name is not None:
                    self._add(name)
        except UnlistedError:
            if newest is None:
                raise
            try:
                for operation in self._between((self._seq or 0) + 1, newest):
                    self._learn(operation)
            except NotFoundError:  # notes of operations that were pruned
                self._list(None)

    def _add(self, name: NoteName) -> None:
        self._names.setdefault(name.checkpoint, {}).setdefault(name, None)
