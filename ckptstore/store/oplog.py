"""Oplog: the newest operation, and appending the next by create-if-absent.

The log of numbered, immutable operations holds the whole mutable state of a repository: branches,
tags and settings. The first writer to create `ops/<seq + 1>` wins; the others read again and decide
again (docs/reference/format.md, section 8). Many refs are in pages that operations share
(section 8.1; docs/adr/0031). Only this module knows the keys of operations and of these pages.

A folder can be emptied, unmounted or replaced under an open handle. So the id in the repository's
marker is compared right before each operation is created, and when the newest operation is another
than this handle knows.

Of a far storage, what has to be known before a create is read while the operation is decided on,
and writers that keep losing races go first (docs/adr/0068).
"""

from __future__ import annotations

import math
import re
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ckptstore import moment
from ckptstore.documents import ref_page
from ckptstore.documents.canonical import readable
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.documents.operation import OPERATION_BYTES_MAX, SEQ_MAX, Operation
from ckptstore.documents.ref_page import (
    REF_PAGE_BYTES_MAX,
    is_page_name,
    joined,
    page_name,
    repage,
    seq_of,
)
from ckptstore.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    StorageError,
    first_line,
)
from ckptstore.storage.protocol import UnlistedError
from ckptstore.store.cache import Cache
from ckptstore.store.condemned import seconds_until_dead
from ckptstore.store.newest import newest_after, newest_of_all
from ckptstore.threads import Workers, beside, gather, results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptstore.documents.author import Author
    from ckptstore.documents.ref_page import Refs
    from ckptstore.moment import Moment
    from ckptstore.storage import Listed, Storage

PREFIX = "ops/"
PAGES = "refs/"
KEPT_OPERATIONS = 1000
PRUNE_EVERY = 100
ATTEMPTS_MAX = 1000  # each lost attempt means that another writer got through
# Of a far storage, where a look costs a round trip:
FORWARD_MAX = 4  # operations that are read one by one before all are listed
CONFIRM_SECONDS = 5.0  # in which a repository is not looked at again
# In which no thousand operations are appended through a network: each takes two requests at least
# after the one before it, which take the client and the server more than 2 ms.
SETTLE_SECONDS = 2.0
LOST_MAX = 16  # after which a writer does not wait before it tries again
WAIT_SECONDS_MAX = 1.0
READ_THREADS = 16
RECENT_MAX = 64  # operations that are remembered, as none ever changes

_KEY = re.compile(r"ops/([0-9]{12})\.json")


def key_of(seq: int) -> str:
    """Return the storage key of an operation."""
    return f"{PREFIX}{seq:012}.json"


def page_key_of(name: str) -> str:
    """Return the storage key of a page of refs."""
    return f"{PAGES}{name}.json"


def _seq_of(key: str) -> int | None:
    """The number of an operation by its key; None for any other key."""
    match = _KEY.fullmatch(key)
    return int(match[1]) if match else None


def first_kept(newest: int) -> int:
    """Return the number of the oldest operation that no pruning deletes, given the newest."""
    return max(1, newest - KEPT_OPERATIONS + 1)


class Sight(NamedTuple):
    """An operation of a far storage, and a moment before it was last seen to be there."""

    operation: Operation
    moment: Moment


class End(NamedTuple):
    """Where a log ended: the number of its newest operation, and a moment before that was seen."""

    seq: int
    moment: Moment


class Oplog:
    """The operations of one repository.

    store: the id in its marker; "" leaves the marker alone. now: returns UTC in microseconds since
    1970, by which leases end. Returned operations have no ended leases, so appended ones have none
    either. end: where the log ended when the repository was opened, if that is known of a far one.
    """

    FOLDERS: ClassVar = (PREFIX,)
    PAGE_FOLDERS: ClassVar = (PAGES,)
    key = staticmethod(key_of)
    page_key = staticmethod(page_key_of)

    def __init__(
        self,
        storage: Storage,
        *,
        store: str = "",
        now: Callable[[], int] = lambda: 0,
        end: End | None = None,
    ) -> None:
        self._storage, self._store, self._now = storage, store, now
        self._known: tuple[int, str] | None = None  # the newest operation, as of the last look
        self._durable = 0  # the number of the newest operation that is known to be durable
        # The pages of the operation that was read last, as the next one shares most of them.
        self._pages: dict[tuple[str, str], Refs] = {}
        self._recent: Cache[int, Sight] = Cache(RECENT_MAX)  # only of a far storage
        # When a far repository was there, since the last append. Whoever makes a log has read its
        # marker.
        self._confirmed: Moment | None = moment.now() if storage.is_far else None
        # The number of the newest operation at a moment, of a far storage: operations behind it
        # that are created within seconds have numbers that were never used.
        self._bound: End | None = end
        self._listed = 0 if end is None else end.seq  # where the first look begins
        if end is not None and not end.seq:
            self._recent.put(0, Sight(Operation(), end.moment))

    def known(self) -> Operation | None:
        """Return an operation that has been the newest, without a look; None if none is known.

        Only of a far storage. Before the first operation it is one without branches and tags.
        """
        last = self._last()
        return None if last is None else last.operation.at(self._now)

    def newest(self) -> Operation:
        """Return the newest operation; before the first, one without branches and tags."""
        listed, self._listed = self._listed, 0
        if listed and self._last() is None and self._is_newest(listed):
            return self.read(listed)
        return self._newest(self._read_from)

    def newest_listed(self) -> Operation:
        """Return the newest operation that is listed, or was when the repository was opened.

        That may have been seconds ago, and a listing from a cache on the way may be late. It is
        good enough for a plan that is made again where it cannot be carried out.
        """
        if not self._storage.is_far:
            return self._newest(self._read_from)
        listed, self._listed = self._listed, 0
        if listed and self._last() is None and _is_within(CONFIRM_SECONDS, self._confirmed):
            with suppress(NotFoundError, CorruptError):
                newest = self.read(listed)
                self._note(newest)
                return newest
        return self._newest(self.read)

    def _is_newest(self, seq: int) -> bool:
        """Read an operation, and return whether no newer one is there; False if it cannot be read.

        If one is there, that is looked for from here.
        """
        with suppress(NotFoundError, CorruptError):
            operation, has_next = beside(partial(self.read, seq), partial(self.exists, seq + 1))
            self._note(operation)
            return not has_next
        return False

    def _newest(self, read: Callable[[int], Operation]) -> Operation:
        newest = self._next_to_known()
        if newest is not None:
            self._note(newest)
            return newest
        for _ in range(ATTEMPTS_MAX):
            began = moment.now()
            try:
                seq = self._newest_seq()
            except NotFoundError:
                self.check_store()
                raise
            try:
                newest = read(seq) if seq else self._read_from(0)
            except NotFoundError:  # pruned since the listing: many newer ones were appended
                continue
            except CorruptError as error:
                raise CorruptError(
                    f"{first_line(error)}. So the newest operation, which holds all branches and "
                    "tags, cannot be read. Restore the file from a copy of the repository. Without "
                    "one, undo goes back to the newest operation that can be read, and names the "
                    "checkpoints that no branch reaches then."
                ) from error
            self._note(newest)
            if not seq and self._storage.is_far:
                self._recent.put(0, Sight(newest, began))
                self._bound = End(0, began)
            return newest
        raise ConflictError(
            "The newest operation was replaced again and again while it was being read. Retry."
        )

    def _read_from(self, seq: int) -> Operation:
        """Read an operation, or the newest behind it: a listing from a cache may be late."""
        if not seq or not self._storage.is_far or READ_THREADS == 1:
            newest = newest_after(seq, self.exists) if self.exists(seq + 1) else seq
            return self.read(newest) if newest else Operation()
        operation, has_next = beside(partial(self.read, seq), partial(self.exists, seq + 1))
        return self.read(newest_after(seq, self.exists)) if has_next else operation

    def _newest_seq(self) -> int:
        """Return the number of the newest operation, at least as of now; 0 before the first."""
        try:
            return max(self.seqs(), default=0)
        except UnlistedError:
            return newest_of_all(self.exists, kept=KEPT_OPERATIONS)

    def _next_to_known(self) -> Operation | None:
        """Return the newest operation, found by one read for each new one; None to list them all.

        Operations are pruned once a thousand newer ones exist, so of a handle that slept the next
        one may be missing too. Unless the known one was there seconds ago, it is read again.
        """
        last = self._last()
        if last is None:
            return None
        newest = last.operation
        for _ in range(FORWARD_MAX):
            try:
                newest = self.read(newest.seq + 1)
            except NotFoundError:
                is_known = newest is last.operation and not _is_within(CONFIRM_SECONDS, last.moment)
                if is_known and not self._confirm(newest):
                    return None
                return newest.at(self._now)
            except CorruptError:
                return None
        return None

    def _confirm(self, known: Operation) -> bool:
        """Return True when an operation is there, and so is the repository that it is of."""
        if not known.seq:
            return False
        began, self._confirmed = moment.now(), None
        if self.holds(known):
            self._confirmed = began
            self._recent.put(known.seq, Sight(known, began))
        return self._confirmed is not None

    def holds(self, operation: Operation) -> bool:
        """Return True when the log has an operation, as of now: an older copy may be in its place.

        What is remembered of other operations is forgotten then. Before the first operation there
        is nothing to look for.
        """
        if not operation.seq:
            return True
        with suppress(NotFoundError, CorruptError):
            if self.read_without_pages(operation.seq).nonce == operation.nonce:
                return True
            self._recent.clear()
        return False

    def _last(self, *, within: float = math.inf) -> Sight | None:
        """Return the newest operation that this handle knows; None unless the storage is far."""
        last = self._recent.known(self._seq)
        return last if last and _is_within(within, last.moment) else None

    @property
    def _seq(self) -> int:
        """The number of the newest operation as of the last look; 0 before the first."""
        return self._known[0] if self._known else 0

    def make_durable(self, newest: Operation) -> None:
        """Return once an operation is durable, whose writer may have died before its own flush.

        Otherwise a power failure could take it and leave a later checkpoint, whose parent no
        operation would name.
        """
        if newest.seq > self._durable:
            self._storage.flush([key_of(newest.seq)])
            self._durable = newest.seq

    def _note(self, newest: Operation) -> None:
        """Remember the newest operation; compare the marker if another writer made it, or none.

        The first that a handle of a far repository sees counts too: that may be long after it was
        opened.
        """
        known = (newest.seq, newest.nonce)
        is_expected = self._known == known or (self._known is None and not self._storage.is_far)
        if not newest.seq or not is_expected:
            self._confirm_soon()
        self._known = known

    def check_store(self) -> None:
        """Raise StorageError when the repository that was opened is not there any more."""
        if not self._store:
            return
        try:
            data = self._storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX)
        except NotFoundError as error:
            raise StorageError(
                f"{self._storage.url} no longer holds the repository that was opened: "
                f"{MARKER_KEY} is missing. It was removed, or its disk is not mounted. Mount the "
                "disk, or restore a copy, and retry; or open it with create=True to begin a new "
                "repository."
            ) from error
        if Marker.decode(data).store != self._store:
            raise StorageError(
                f"{self._storage.url} holds another repository than the one that was opened, which "
                "was moved or whose disk is not mounted. Open it again to use the one that is "
                "there now."
            )

    def list(self) -> Iterator[tuple[int | None, Listed]]:
        """List the operations that are kept; the number is None for any other key."""
        for item in self._storage.list(PREFIX):
            yield _seq_of(item.key), item

    def list_pages(self) -> Iterator[tuple[str | None, Listed]]:
        """List the pages of refs by name; the name is None for any other key."""
        for item in self._storage.list(PAGES):
            name = item.key.removeprefix(PAGES).removesuffix(".json")
            is_page = is_page_name(name) and item.key == page_key_of(name)
            yield name if is_page else None, item

    def seqs(self) -> set[int]:
        """Return the numbers of the operations that are kept."""
        found = map(_seq_of, self._storage.keys(PREFIX))
        return {seq for seq in found if seq is not None}

    def end(self) -> End:
        """Return where the log ends, by a listing."""
        began = moment.now()
        return End(max(self.seqs(), default=0), began)

    def stored_by(self, seq: int) -> float | None:
        """Return a time, by the storage's clock, by which an operation was stored.

        If it was pruned, this is the time of the oldest later operation. None if none is left.
        """
        left = [(number, item.modified) for number, item in self.list() if number is not None]
        times = [modified for number, modified in sorted(left) if number >= seq]
        return times[0] if times else None

    def exists(self, seq: int) -> bool:
        """Return True when there is an operation of this number; an error if it is no file."""
        return self._storage.size(key_of(seq)) is not None

    def read(self, seq: int) -> Operation:
        """Return one operation by its number; NotFoundError when it was pruned."""
        if self._storage.is_far:
            return self._recent.get(seq, self._seen).operation.at(self._now)
        return self._joined(self.read_without_pages(seq)).at(self._now)

    def _seen(self, seq: int) -> Sight:
        began = moment.now()
        return Sight(self._joined(self.read_without_pages(seq)), began)

    def _joined(self, operation: Operation) -> Operation:
        """Return an operation with the refs of its pages."""
        seq = operation.seq
        if not operation.head_pages and not operation.tag_pages:
            return operation
        heads = self._read_pages(operation.head_pages, kind="branch", seq=seq)
        tags = self._read_pages(operation.tag_pages, kind="tag", seq=seq)
        self._pages = {**heads, **tags}
        return replace(
            operation,
            heads=joined(heads.values(), name=key_of(seq)) if heads else operation.heads,
            tags=joined(tags.values(), name=key_of(seq)) if tags else operation.tags,
        )

    def read_without_pages(self, seq: int) -> Operation:
        """Return one operation with the names of its pages of refs, but without these refs."""
        return _decoded(self._storage.get(key_of(seq), bytes_max=OPERATION_BYTES_MAX), seq)

    def _read_pages(
        self, names: Iterable[str], *, kind: str, seq: int
    ) -> dict[tuple[str, str], Refs]:
        """Return the pages of an operation, by kind and name."""
        known = self._pages  # as another thread may replace it
        return {
            (kind, name): known.get((kind, name)) or self.read_page(name, kind=kind, seq=seq)
            for name in names
        }

    def read_page(self, name: str, *, kind: str, seq: int) -> Refs:
        """Return a page of refs of an operation; NotFoundError when both were pruned."""
        key = page_key_of(name)
        try:
            data = self._storage.get(key, bytes_max=REF_PAGE_BYTES_MAX)
        except NotFoundError as error:
            if not self.exists(seq):  # both were pruned
                raise
            raise CorruptError(
                f"{key} is missing, which has refs of {key_of(seq)}. Restore it from a copy."
            ) from error
        return ref_page.decode(data, kind=kind, name=name, file=key)

    def between(self, first: int, newest: Operation) -> Iterator[Operation]:
        """Yield the operations from a number to the newest, inclusive.

        NotFoundError when one of them was pruned, or is damaged.
        """
        seqs = range(max(1, first), newest.seq)
        step = READ_THREADS if self._storage.is_far else 1
        for begin in range(0, len(seqs), step):
            reads = [partial(self.read, seq) for seq in seqs[begin : begin + step]]
            try:
                operations = gather(reads, threads=step)
            except CorruptError as error:
                raise NotFoundError(str(error)) from error
            yield from operations
        yield newest

    def append(self, decide: Callable[[Operation], Operation]) -> Operation:
        """Append what `decide` makes of the newest operation, with a number and nonce of its own.

        `decide` is called again whenever another writer was first. An error it raises ends the
        attempt.
        """
        last = self._last(within=CONFIRM_SECONDS)  # of a moment ago
        for lost in range(ATTEMPTS_MAX):
            newest = self.newest() if last is None else last.operation.at(self._now)
            try:
                operation, last = self._decided(decide, newest, looks_on=lost > 0)
            except Exception:
                if last is None or self.newest().seq == last.operation.seq:
                    raise
                last = None  # it was decided on what is not the newest any more
                continue
            if last is None:
                began = moment.now()
                if self._create(operation):
                    return operation
                last = self._recent.known(operation.seq)  # which `create` had to read
                _let_others(lost + 1, began.seconds_ago if last else 0.0)
        raise ConflictError(
            f"Other writers were first {ATTEMPTS_MAX} times. Retry when fewer write at once."
        )

    def _decided(
        self, decide: Callable[[Operation], Operation], newest: Operation, *, looks_on: bool
    ) -> tuple[Operation, Sight | None]:
        """Return the operation to append, and a newer one if there is one by now.

        Where requests take long, what has to be known before it is created is read meanwhile.
        """

        def decided() -> Operation:
            return self._paged(_numbered(decide(newest), newest.seq + 1), newest)

        if not self._storage.is_far:
            return decided(), None
        with Workers(READ_THREADS) as workers:
            checks = [workers.submit(self._confirm_soon)]
            if not self._is_unused(newest.seq + 1):
                checks.append(workers.submit(self._bound_soon))
            if looks_on:  # others are at work, and one of them may have been first again
                later = workers.submit(partial(self._sight, newest.seq + 1))
            operation = decided()
        results(checks)
        return operation, later.result() if looks_on else None

    def _confirm_soon(self) -> None:
        """Check that the repository is there; of a far one, unless it was there seconds ago."""
        if not _is_within(CONFIRM_SECONDS, self._confirmed):
            began = moment.now()
            self.check_store()
            self._confirmed = began if self._storage.is_far else None

    def _bound_soon(self) -> None:
        """List the operations, for one that is created within seconds."""
        self._bound = self.end()

    def _is_unused(self, seq: int) -> bool:
        """Return True when no operation of this number can have been pruned, without a look."""
        bound = self._bound
        return bound is not None and seq > bound.seq and _is_within(SETTLE_SECONDS, bound.moment)

    def _sight(self, seq: int) -> Sight | None:
        with suppress(NotFoundError, CorruptError):
            return self._recent.get(seq, self._seen)
        return None

    def append_in_reserve(self, decide: Callable[[Operation], Operation]) -> Operation:
        """Append an operation after which a gc can free; on a full disk, in the reserve of the gc.

        An inode and a few KiB of it are enough, and the rest is set aside again (ADR 0035).
        """
        try:
            return self.append(decide)
        except StorageError as error:
            if not error.is_full or not self._storage.release_reserve():
                raise
        try:
            return self.append(decide)
        finally:
            self._storage.hold_reserve()

    def step_over(
        self,
        *,
        now: Callable[[], int],
        check: Callable[[Operation], object] = lambda restored: None,
        by: Author | None = None,
    ) -> tuple[int, Operation]:
        """Append the state of the newest operation that can be read, behind damaged ones.

        The lock is held, so no gc is deleting what a damaged operation condemned; where the lock
        does not show that, the age of the operation has to. Writers that began before will find an
        operation that they cannot read, and put again what they rely on.

        Args:
            now: Returns UTC in microseconds.
            check: Called with the state to restore; an error it raises ends the attempt.
            by: The author of the operation to append.

        Returns:
            The number of the newest damaged operation, and the operation that was appended.

        Raises:
            ConflictError: The newest operation can be read by now, or a gc may be deleting.
            CorruptError: No operation can be read.
        """
        with self._storage.lock():
            seqs = self.seqs()
            last = max(seqs, default=0)
            while self._is_taken(last + 1):  # by what is no file
                last += 1
            state = self._newest_readable(seqs)
            if state is None and last > 1:
                raise CorruptError(
                    f"None of the operations in {PREFIX} can be read. Restore that folder from a "
                    "copy of the repository."
                )
            state = Operation() if state is None else state
            check(state)
            self._refuse_beside_gc(last)
            done = f"went back to operation {state.seq}, as {key_of(last)} is damaged"
            restored = state.stamped(time=now(), done=done, by=by, undoes=state.seq + 1)
            # With pages of its own, as those of one operation are pruned by what the next one has.
            restored = self._paged(_numbered(restored, last + 1), Operation())
            if state.seq == last or not self._create(restored):
                raise ConflictError("The newest operation is not damaged any more. Look again.")
            return last, restored

    def _refuse_beside_gc(self, damaged: int) -> None:
        """Raise ConflictError while a gc may be deleting what a damaged operation condemned."""
        if not self._storage.lease_seconds:
            return
        present, stored = self._storage.now(), self.stored_by(damaged)
        end = (present if stored is None else stored) + seconds_until_dead(self._storage)
        if present < end:
            raise ConflictError(
                f"{key_of(damaged)} is damaged, and a gc of another process may be deleting what "
                f"it condemned. Retry in {ceil((end - present) / 60)} minutes."
            )

    def _newest_readable(self, seqs: Iterable[int]) -> Operation | None:
        for seq in sorted(seqs, reverse=True):
            with suppress(CorruptError):
                return self.read(seq)
        return None

    def _is_taken(self, seq: int) -> bool:
        """Return True when a number is in use, even by a folder."""
        try:
            return self.exists(seq)
        except CorruptError:
            return True

    def _create(self, operation: Operation) -> bool:
        """Create an operation; False when another writer was first."""
        seq, began = operation.seq, moment.now()
        key = key_of(seq)
        data = readable(operation, name=key)
        if not _is_within(CONFIRM_SECONDS, self._confirmed):
            self.check_store()

        def learn(data: memoryview) -> None:
            """Remember the operation of the writer that was first."""
            if self._storage.is_far:
                with suppress(NotFoundError, CorruptError):
                    first = self._joined(_decoded(bytes(data), seq))
                    self._recent.put(seq, Sight(first, began))

        if not self._storage.create(key, data, seen=learn):
            return False
        self._known = (seq, operation.nonce)
        self._confirmed = None
        self._durable = seq
        if seq % PRUNE_EVERY == 0 or not self._is_unused(seq):
            self._settle(seq)
        if self._storage.is_far:
            self._recent.put(seq, Sight(operation, began))
            self._bound = End(seq, began)
        return True

    def _paged(self, operation: Operation, newest: Operation) -> Operation:
        """Put the pages of an operation that are new, durably; others are those of the newest.

        So the operations that have a page follow one another without a gap.
        """
        seq = operation.seq
        pages: dict[tuple[str, str], Refs] = {}

        def put(kind: str, refs: Refs, before: Refs, names: tuple[str, ...]) -> tuple[str, ...]:
            known = self._read_pages(names, kind=kind, seq=newest.seq)
            if known:  # leases may have ended meanwhile
                before = joined(known.values(), name=key_of(newest.seq))
            parts = repage(
                refs, before=before, pages=[(name, page) for (_, name), page in known.items()]
            )
            listed: list[str] = []
            made: list[str] = []
            for name, page in parts:
                if name is None:
                    data = ref_page.encode(page)
                    name = page_name(seq, data)
                    self._storage.put(page_key_of(name), data)
                    made.append(name)
                pages[kind, name] = page
                listed.append(name)
            if made:
                self._storage.flush(map(page_key_of, made))
            return tuple(listed)

        operation = replace(
            operation,
            head_pages=put("branch", operation.heads, newest.heads, newest.head_pages),
            tag_pages=put("tag", operation.tags, newest.tags, newest.tag_pages),
        )
        if pages:
            self._pages = pages
        return operation

    def changes(self, newest: Operation) -> Iterator[tuple[Operation, Operation | None]]:
        """Yield the readable operations, newest first, each with the one before it.

        The latter is None if it was pruned, is missing or is damaged.
        """
        later: Operation | None = newest if newest.seq else None
        for seq in range(newest.seq - 1, -1, -1):
            before = None
            with suppress(NotFoundError, CorruptError):
                before = self.read(seq) if seq else Operation()
            if later is not None:
                yield later, before
            if before is None and seq < first_kept(newest.seq):
                return
            later = before

    def before(self, seq: int, newest: Operation) -> Operation:
        """Return the operation before a number; raise the reason if it cannot be read."""
        try:
            return self.read(seq - 1) if seq > 1 else Operation()
        except NotFoundError as error:
            if seq - 1 >= first_kept(newest.seq):
                raise CorruptError(
                    f"{key_of(seq - 1)} is missing, so operation {seq} cannot be undone. Copy it "
                    "from another copy of the repository."
                ) from error
            raise NotFoundError(
                f"Operation {seq - 1} is too old to go back to: only the newest {KEPT_OPERATIONS} "
                "are kept."
            ) from error

    def _settle(self, seq: int) -> None:
        """Check after a create that the number was no old, pruned one; prune now and then."""
        seqs = self.seqs()
        if max(seqs) >= seq + KEPT_OPERATIONS:
            raise ConflictError(
                f"More than {KEPT_OPERATIONS} operations were appended while this one was being "
                "decided, so its outcome is unknown. Look at the branch, then retry."
            )
        if seq % PRUNE_EVERY == 0:
            self._delete_old(seqs)

    def prune(self) -> int:
        """Delete all operations but the newest `KEPT_OPERATIONS`, and return how many they were."""
        return self._delete_old(self.seqs())

    def _delete_old(self, seqs: set[int]) -> int:
        newest = max(seqs, default=0)
        old = [seq for seq in seqs if seq <= newest - KEPT_OPERATIONS]
        self._storage.delete(map(key_of, old))
        if newest:
            self._prune_pages(min(seqs.difference(old)))
        return len(old)

    def _prune_pages(self, oldest: int) -> None:
        """Delete the pages that no operation from this one on has.

        One that is as old and that this one does not have, no later one has, as each has only pages
        of the one before it and new ones.
        """
        old = [name for name, _ in self.list_pages() if name and seq_of(name) <= oldest]
        if not old:
            return
        with suppress(NotFoundError, CorruptError):  # pruned meanwhile, or damaged
            operation = self.read_without_pages(oldest)
            used = {*operation.head_pages, *operation.tag_pages}
            self._storage.delete(page_key_of(name) for name in old if name not in used)


def _is_within(seconds: float, then: Moment | None) -> bool:
    return then is not None and then.seconds_ago < seconds


def _let_others(lost: int, seconds: float) -> None:
    """Wait after others were first, the less the more often that was.

    So each writer gets its turn. Otherwise one in sixteen waited for 40 of their commits.

    Args:
        lost: How often others were first.
        seconds: The time of a request.
    """
    time.sleep(min(seconds, WAIT_SECONDS_MAX) * max(0.0, 1 - lost / LOST_MAX))


def _decoded(data: bytes, seq: int) -> Operation:
    """Return an operation, which states its number."""
    operation = Operation.decode(data, name=key_of(seq))
    if operation.seq != seq:
        raise CorruptError(f"{key_of(seq)} states that it is operation {operation.seq}.")
    return operation


def _numbered(operation: Operation, seq: int) -> Operation:
    if seq > SEQ_MAX:
        raise CorruptError(
            f"{key_of(SEQ_MAX)} has the last possible number, which no valid log reaches. "
            "Restore the operations from a copy."
        )
    return replace(operation, seq=seq, nonce=secrets.token_hex(8))
