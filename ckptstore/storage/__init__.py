"""Where keys and bytes live. `open_storage` finds the storage that a URL means."""

from __future__ import annotations

import re
import secrets
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ckptstore.errors import InvalidInputError
from ckptstore.storage.local import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.protocol import Storage

__all__ = ["LocalStorage", "MemoryStorage", "Storage", "open_storage"]

_memories: dict[str, MemoryStorage] = {}
_lock = threading.Lock()


def open_storage(url: str | Path) -> Storage:
    """The storage for a local path, a file:// URL or memory://NAME.

    memory://NAME is shared by all who open that name in this process; memory:// is new at every call.
    """
    text = str(url)
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if isinstance(url, Path) or not match:
        if not text:
            raise InvalidInputError("The repository's path is empty.")
        return LocalStorage(url)
    scheme = match[1].lower()
    if scheme == "file":
        return LocalStorage(unquote(urlsplit(text).path))
    if scheme == "memory":
        with _lock:
            name = text[match.end() :] or secrets.token_hex(8)
            return _memories.setdefault(name, MemoryStorage(name))
    raise InvalidInputError(
        f"{scheme}:// is not a storage that this version knows; use a local path, file:// or memory://."
    )
