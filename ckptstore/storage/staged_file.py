"""A staged file: all bytes of a key, written under a temporary name."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class StagedFile:
    """A temporary file that holds all of its bytes, open until it has a key or is dropped."""

    __slots__ = ("_remove", "_rename", "fd", "name")

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        rename: Callable[[StagedFile, str], None],
        remove: Callable[[str], None],
    ) -> None:
        self.fd, self.name = fd, name
        self._rename, self._remove = rename, remove

    def put(self, key: str) -> None:
        """Make the bytes durable and rename the file to a key."""
        self._rename(self, key)

    def drop(self) -> None:
        """Close and remove the file, unless it has a key."""
        if self.fd >= 0:
            with suppress(OSError):
                self.close()
            self._remove(self.name)

    def close(self) -> None:
        """Close the file, which also unlocks it."""
        fd, self.fd = self.fd, -1
        os.close(fd)

    @contextmanager
    def removed_on_error(self) -> Iterator[None]:
        """Drop the file when an error leaves the context."""
        try:
            yield
        except BaseException:
            self.drop()
            raise
