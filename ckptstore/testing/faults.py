"""Storages that fail on purpose."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from ckptstore.storage import MemoryStorage, StagedCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Seen

__all__ = ["Killed", "LosingStorage"]

_BYTES_MAX = 1 << 62


class Killed(BaseException):
    """The process ends here: raised where a real one would be killed, and never caught."""


class LosingStorage:
    """Memory that can lose power, and whose user can be killed.

    It promises exactly what `ckptstore.storage.protocol` asks for: what was put and not flushed may
    be gone after a power failure, each key by itself.

    Args:
        changes_left: How many more calls may change something before one raises Killed, having done
            nothing; None for any number. Set it to None again to go on as another process.
    """

    def __init__(self, changes_left: int | None = None) -> None:
        self.changes_left = changes_left
        self._memory = MemoryStorage("losing")
        # The durable state of each key that has another one now.
        self._before: dict[str, bytes | None] = {}

    def __getattr__(self, name: str) -> Any:
        """Pass on what changes nothing."""
        return getattr(self._memory, name)

    def after_power_failure(self, survives: Callable[[str], bool]) -> MemoryStorage:
        """Return what is left when only some of the keys that are not durable survived.

        Args:
            survives: Called with each such key.
        """
        left = MemoryStorage("after the power failure")
        keys = [item.key for item in self._memory.list("")]
        now = {key: self._memory.get(key, bytes_max=_BYTES_MAX) for key in keys}
        for key in sorted({*now, *self._before}):
            data = now.get(key) if key not in self._before or survives(key) else self._before[key]
            if data is not None:
                left.put(key, data)
        return left

    @property
    def unflushed(self) -> tuple[str, ...]:
        """Return the keys that a power failure may take."""
        return tuple(sorted(self._before))

    def put(self, key: str, data: Buffer) -> None:
        """As in the protocol; not durable yet."""
        self._change()
        before = None
        if self._memory.size(key) is not None:
            before = self._memory.get(key, bytes_max=_BYTES_MAX)
        self._memory.put(key, data)
        self._before.setdefault(key, before)

    def stage(self, data: Buffer, *, seen: Seen | None = None) -> StagedCopy:
        """As in the protocol; changes nothing."""
        return StagedCopy(self, data, seen)

    def copy(self, key: str, to: str) -> None:
        """As in the protocol; not durable yet."""
        self.put(to, self._memory.get(key, bytes_max=_BYTES_MAX))

    def batch(self) -> AbstractContextManager[LosingStorage]:
        """As in the protocol; changes nothing."""
        return nullcontext(self)

    def flush(self, keys: Iterable[str]) -> None:
        """As in the protocol: these keys, and no others, are durable now."""
        self._change()
        for key in keys:
            self._before.pop(key, None)

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:
        """As in the protocol; a kill in between leaves the key, but not durable."""
        self._change()
        if not self._memory.create(key, data, seen=seen):
            return False
        self._before.setdefault(key, None)
        self.flush([key])
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """As in the protocol; durable."""
        self._change()
        for key in keys:
            self._before.pop(key, None)
            self._memory.delete([key])

    def _change(self) -> None:
        if self.changes_left == 0:
            raise Killed
        if self.changes_left is not None:
            self.changes_left -= 1
