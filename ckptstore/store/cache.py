"""Cache: the most recently used of some values that never change, shared by threads."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from ckptstore.forks import free_in_child

if TYPE_CHECKING:
    from collections.abc import Callable

Key = TypeVar("Key")
Value = TypeVar("Value")


class Cache(Generic[Key, Value]):
    """The most recently used of some values that never change; each weighs 1 unless weighed."""

    def __init__(self, weight_max: int, *, weigh: Callable[[Value], int] = lambda value: 1) -> None:
        self._weight_max, self._weigh = weight_max, weigh
        self._weight = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = free_in_child(Lock())

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._values

    def get(self, key: Key, load: Callable[[Key], Value]) -> Value:
        """Return the value of a key, loading it when it is not cached."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = load(key)
        self.put(key, value)
        return value

    def known(self, key: Key) -> Value | None:
        """Return the value of a key if it is cached."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Cache a value, evicting the least recently used ones when they weigh too much."""
        with self._lock:
            if key not in self._values:
                self._weight += self._weigh(value)
            self._values[key] = value
            while self._weight > self._weight_max and len(self._values) > 1:
                _, evicted = self._values.popitem(last=False)
                self._weight -= self._weigh(evicted)

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()
            self._weight = 0
