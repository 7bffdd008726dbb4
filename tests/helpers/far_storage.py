"""A storage in memory that is like an object store: its lock excludes no other process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ckptstore import moment
from ckptstore.commit import committer
from ckptstore.errors import StorageError
from ckptstore.gc import finish
from ckptstore.moment import Moment
from ckptstore.store import catalog, condemned, newest, oplog
from ckptstore.testing.faults import Killed
from tests.helpers.schedule import ScheduledStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

LEASE, MARGIN = 2.0, 6.0
SIGNED_SECONDS = 5.0  # after which the server refuses a request
CALL_SECONDS = 0.003
STALL_STEPS = 100


class FarStorage(ScheduledStorage):
    """Memory with a clock of its own, which moves on with each call.

    A delete is signed when it is called, and refused if too much time has passed when it arrives.

    Attributes:
        time: Seconds by the clock of the storage.
        signed_seconds: How long a signature is valid; None for ever.
        calls_left: For some threads, after how many calls each of them dies.
        calls_until_stall: The same, after how many calls each stands still.
        on_stall: Called then; by default lease and margin pass, and others move.
        on_delete: Called before a delete arrives, with its keys.
        deleted: The keys of each delete that arrived.
    """

    def __init__(self) -> None:
        super().__init__()
        self.time = 1e9
        self.signed_seconds: float | None = SIGNED_SECONDS
        self.calls_left: dict[int, int] = {}
        self.calls_until_stall: dict[int, int] = {}
        self.on_stall: Callable[[], object] = self._stall
        self.on_delete: Callable[[list[str]], object] = lambda keys: None
        self.deleted: list[list[str]] = []

    @property
    def is_far(self) -> bool:
        return True

    @property
    def lease_seconds(self) -> float:
        return LEASE

    def lock(self) -> Any:
        return threading.Lock()  # of another process each time

    def now(self) -> float:
        super().now()
        self._call()
        return self.time

    def put(self, key: str, data: Any) -> None:
        self._call()
        super().put(key, data)
        self._modified[key] = self.time

    def create(self, key: str, data: Any, **options: Any) -> bool:
        self._call()
        is_new = super().create(key, data, **options)
        if is_new:
            self._modified[key] = self.time
        return is_new

    def delete(self, keys: Any) -> None:
        self._call(may_stall=False)  # which no lease can help against once the look is done
        listed, signed = list(keys), self.time
        self.on_delete(listed)
        if self.schedule:
            self.schedule.step()
        if self.signed_seconds is not None and self.time - signed > self.signed_seconds:
            raise StorageError("The request was signed too long ago.")
        self.deleted.append(listed)
        schedule, self.schedule = self.schedule, None
        super().delete(listed)
        self.schedule = schedule

    def get(self, key: str, *, bytes_max: int) -> bytes:
        self._call()
        return super().get(key, bytes_max=bytes_max)

    def size(self, key: str) -> int | None:
        self._call()
        return super().size(key)

    def list(self, prefix: str) -> Iterator[Any]:
        self._call()
        return super().list(prefix)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and others move."""
        self.time += seconds
        if self.schedule:
            self.schedule.step()

    def _call(self, *, may_stall: bool = True) -> None:
        self.time += CALL_SECONDS
        me = threading.get_ident()
        if me in self.calls_left:
            if not self.calls_left[me]:
                raise Killed
            self.calls_left[me] -= 1
        if me in self.calls_until_stall and may_stall:
            self.calls_until_stall[me] -= 1
            if not self.calls_until_stall[me]:
                del self.calls_until_stall[me]
                self.on_stall()

    def _stall(self) -> None:
        self.time += LEASE + MARGIN
        for _ in range(STALL_STEPS if self.schedule else 0):
            assert self.schedule
            self.schedule.step()


def with_clocks(monkeypatch: pytest.MonkeyPatch, storage: FarStorage) -> None:
    """Have this process live by the clock of a storage, days away, and with short leases.

    Each process makes its calls one after the other, so that it can be stopped at any of them. A
    commit that begins with an operation it knows puts all objects before it looks for a newer one.
    """
    monkeypatch.setattr(committer, "beside", lambda job, other: (job(), other()))
    monkeypatch.setattr(catalog, "FAR_THREADS", 1)
    monkeypatch.setattr(oplog, "READ_THREADS", 1)
    monkeypatch.setattr(newest, "THREADS", 1)
    monkeypatch.setattr(condemned, "MARGIN_SECONDS", MARGIN)
    monkeypatch.setattr(moment, "now", lambda: Moment(storage.time - 5e5, storage.time + 3e7))
    monkeypatch.setattr(finish, "sleep", storage.sleep)
