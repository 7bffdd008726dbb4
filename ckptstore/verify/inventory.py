"""Inventory: the objects of a repository, their sizes, and whether anything reaches them.

Memory is bounded by some 60 bytes an object, and by what is damaged.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ckptstore.digest import Digest, DigestMap
from ckptstore.documents.marker import CHUNK_BYTES_MAX
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.threads import gather
from ckptstore.verify import heal
from ckptstore.verify.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptstore.storage import Listed
    from ckptstore.store.objects import ObjectStore
    from ckptstore.verify.findings import Findings

VERIFY_THREADS, FAR_VERIFY_THREADS = 4, 16  # the latter wait for a network
JOB_BYTES = 4 << 20  # smaller objects are checked together: a job of its own costs 50 µs
JOB_OBJECTS = 64

_REACHED, _BAD = 1, 2
_FLAG_BITS = 2


class Inventory:
    """The objects that are stored, by digest.

    Attributes:
        count: How many were listed.
        bytes: The bytes of these.
        checked_count: The number of objects that were read.
        checked_bytes: The bytes of these objects.
    """

    def __init__(self, objects: ObjectStore, findings: Findings) -> None:
        self.count = self.bytes = 0
        self.checked_count = self.checked_bytes = 0
        self._objects, self._findings = objects, findings
        self._numbers = DigestMap()  # size and flags

    def add(self, listing: Iterable[tuple[Digest, Listed]]) -> None:
        """Take over a listing."""
        for digest, item in listing:
            self._numbers[digest] = item.size << _FLAG_BITS
            self.count += 1
            self.bytes += item.size

    @property
    def threads(self) -> int:
        """How many objects are worth reading at once."""
        return FAR_VERIFY_THREADS if self._objects.is_far else VERIFY_THREADS

    def __iter__(self) -> Iterator[Digest]:
        """Yield the listed digests."""
        return (digest for digest, _ in self._numbers.items())

    def check(self, *, chosen: Callable[[Digest], bool] = lambda digest: True) -> None:
        """Compare objects with their names. chosen: returns True for the objects to read."""
        for digest, number in self._numbers.items():
            if chosen(digest):
                self.checked_count += 1
                self.checked_bytes += number >> _FLAG_BITS
        self._objects.meter.begin("verified", self.checked_bytes)

        def check(job: list[tuple[Digest, int]]) -> None:
            for digest, size in job:
                try:
                    self._check_bytes(digest, size)
                except CkptStoreError as error:
                    check = partial(self.check_bytes, digest)
                    self.note(digest, error, check=check, heal=heal.DAMAGED, is_alone=True)

        gather((partial(check, job) for job in self._jobs(chosen)), threads=self.threads)

    def attempt(
        self, digest: Digest, check: Callable[[], object], *, heal: str = heal.DAMAGED
    ) -> bool:
        """Run a check of an object; it is bad from now on if that fails."""
        try:
            check()
        except CkptStoreError as error:
            self.note(digest, error, check=check, heal=heal)
            return False
        return True

    def note(
        self,
        digest: Digest,
        error: CkptStoreError,
        *,
        check: Callable[[], object],
        heal: str,
        is_alone: bool = False,
    ) -> None:
        """Note that a check of an object failed; it is bad from now on."""
        finding = Finding(check=check, error="", heal=heal, object=digest, is_alone=is_alone)
        self._findings.note(self._objects.key(digest), finding, error)
        self._numbers[digest] = (self._numbers.get(digest) or 0) | _BAD

    def check_bytes(self, digest: Digest) -> int:
        """Compare an object with its name, and return its size; NotFoundError without one."""
        size = self._find(digest)
        self._check_bytes(digest, size)
        return size

    def reach(self, digest: Digest, *, size: int | None = None) -> bool:
        """Note that something refers to an object, of this size if that is recorded.

        Returns True when the object is there and no problem of it is known.
        """
        number = self._numbers.get(digest)
        if number is None:  # put since all were listed, or missing
            if not self.attempt(digest, partial(self._take, digest)):
                return False
            number = self._numbers.get(digest) or 0
        if not number & _REACHED:
            number |= _REACHED
            self._numbers[digest] = number
        if number & _BAD:
            return False
        if size is not None and number >> _FLAG_BITS != size:
            check = partial(self._check_size, digest, size)
            return self.attempt(digest, check, heal=heal.CONTENT)
        return True

    def is_right(self, digest: Digest) -> bool:
        """Return True when an object is there and no problem of it is known."""
        number = self._numbers.get(digest)
        return number is not None and not number & _BAD

    def unreached(self) -> tuple[int, int]:
        """Return how many objects nothing refers to, and their bytes."""
        count = size = 0
        for number in self._numbers.values():
            if not number & (_REACHED | _BAD):
                count += 1
                size += number >> _FLAG_BITS
        return count, size

    def _jobs(self, chosen: Callable[[Digest], bool]) -> Iterator[list[tuple[Digest, int]]]:
        """Yield the chosen objects with their sizes, in jobs large enough for a thread."""
        count_max = 1 if self._objects.is_far else JOB_OBJECTS
        job: list[tuple[Digest, int]] = []
        total = 0
        for digest, number in self._numbers.items():
            if not chosen(digest):
                continue
            size = number >> _FLAG_BITS
            job.append((digest, size))
            total += size
            if total >= JOB_BYTES or len(job) >= count_max:
                yield job
                job, total = [], 0
        if job:
            yield job

    def _check_bytes(self, digest: Digest, size: int) -> None:
        """Compare an object of a known size with its name."""
        if size > CHUNK_BYTES_MAX:
            raise CorruptError(
                f"{self._objects.key(digest)} has {size} bytes; no object has more than "
                f"{CHUNK_BYTES_MAX}."
            )
        self._objects.check(digest, size=size)

    def _take(self, digest: Digest) -> None:
        """Add an object that was put since all were listed."""
        self._numbers[digest] = self._find(digest) << _FLAG_BITS

    def _find(self, digest: Digest) -> int:
        """Return the size of an object; NotFoundError when there is none."""
        size = self._objects.size(digest)
        if size is None:
            raise NotFoundError(f"{self._objects.key(digest)} is missing.")
        return size

    def _check_size(self, digest: Digest, expected: int) -> None:
        """Compare the size of an object with the size that a page records."""
        size = self._find(digest)
        if size != expected:
            raise CorruptError(
                f"{self._objects.key(digest)} has {size} bytes; the page that lists it "
                f"records {expected}."
            )
