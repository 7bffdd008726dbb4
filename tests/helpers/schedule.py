"""Runs actors on one storage in turn; a schedule decides the order of storage calls."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptstore.storage import MemoryStorage

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

STUCK_SECONDS = 60.0
CALLS = ("get", "read_into", "put", "flush", "create", "delete", "list", "size", "now")


def sticky(rng: random.Random, stickiness: Sequence[float]) -> Callable[[Sequence[int]], int]:
    """A choice that is often the last actor again; how often is one of `stickiness`."""
    often, last = rng.choice(stickiness), 0

    def choose(able: Sequence[int]) -> int:
        nonlocal last
        if last in able and rng.random() < often:
            return able.index(last)
        place = rng.randrange(len(able))
        last = able[place]
        return place

    return choose


class StuckError(Exception):
    """No actor can move: a deadlock."""


class Schedule:
    """Decides which actor moves next. choose: returns an index into the actors that can move."""

    def __init__(self, choose: Callable[[Sequence[int]], int]) -> None:
        self.choose = choose
        self.taken: list[int] = []
        self._turn = threading.Condition()
        self._waiting: dict[int, bool] = {}  # whether each actor waits for the lock
        self._running: int | None = None
        self._holder: int | None = None
        self._count = 0
        self._me = threading.local()

    def run(self, actors: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all actors to the end. Returns the result of each, or the error it raised."""
        self._count = len(actors)
        results: list[Any] = [None] * len(actors)

        def run(number: int, actor: Callable[[], Any]) -> None:
            self._me.number = number
            self._wait()
            try:
                results[number] = actor()
            except Exception as error:  # noqa: BLE001 - returned to the caller
                results[number] = error
            finally:
                with self._turn:
                    self._count -= 1
                    self._pass_on()

        threads = [
            threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(actors)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(STUCK_SECONDS)
            if thread.is_alive():
                raise StuckError
        return results

    def step(self) -> None:
        """Let other actors move before the next storage call of this one."""
        if hasattr(self._me, "number"):
            with self._turn:
                self._running = None
            self._wait()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The storage's lock. An actor that waits for it cannot move."""
        me = getattr(self._me, "number", None)
        if me is None:
            yield
            return
        with self._turn:
            self._running = None
        self._wait(for_lock=True)
        self._holder = me
        try:
            yield
        finally:
            self._holder = None

    def _wait(self, *, for_lock: bool = False) -> None:
        me = self._me.number
        with self._turn:
            self._waiting[me] = for_lock
            self._pass_on()
            if not self._turn.wait_for(lambda: self._running == me, STUCK_SECONDS):
                raise StuckError

    def _pass_on(self) -> None:
        """Let one actor move once all of them wait."""
        if len(self._waiting) < self._count:
            return
        able = [
            who
            for who, for_lock in sorted(self._waiting.items())
            if not for_lock or self._holder is None
        ]
        if able:
            self._running = able[self.choose(able)]
            self.taken.append(self._running)
            del self._waiting[self._running]
            self._turn.notify_all()


class ScheduledStorage(MemoryStorage):
    """Memory in which every call is a point where another actor may move."""

    def __init__(self) -> None:
        super().__init__("scheduled")
        self.schedule: Schedule | None = None

    def lock(self) -> Any:
        return self.schedule.lock() if self.schedule else super().lock()


def _scheduled(name: str) -> Any:
    real = getattr(MemoryStorage, name)

    def call(self: ScheduledStorage, *args: Any, **options: Any) -> Any:
        if self.schedule:
            self.schedule.step()
        return real(self, *args, **options)

    return call


for _name in CALLS:
    setattr(ScheduledStorage, _name, _scheduled(_name))
