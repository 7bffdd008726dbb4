"""Storages: where keys and bytes live. `open_storage` finds the one that a URL names.

The contract is in `ckptstore.storage.protocol`, and `ckptstore.testing.storage_suite` tests it.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from pathlib import Path
from urllib.parse import unquote_to_bytes

from ckptstore.errors import InvalidInputError, shown
from ckptstore.forks import free_in_child
from ckptstore.storage import remote_url
from ckptstore.storage.beside import BesideStorage
from ckptstore.storage.diskless import DisklessStorage, StagedCopy
from ckptstore.storage.local import LocalStorage
from ckptstore.storage.memory import MemoryStorage
from ckptstore.storage.protocol import Listed, Staged, Storage

__all__ = [
    "BesideStorage",
    "DisklessStorage",
    "Listed",
    "LocalStorage",
    "MemoryStorage",
    "Staged",
    "StagedCopy",
    "Storage",
    "open_storage",
]

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)")

_memories: dict[str, MemoryStorage] = {}
_lock = free_in_child(threading.Lock())


def open_storage(url: str | Path) -> Storage:
    """Return the storage for a local path, or for the URL of a folder, a bucket or a memory.

    Args:
        url: A path, file:///PATH, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX
            (see docs/how-to/object-stores.md for their options), https://HOST/PATH, which can only
            be read, or memory://NAME, which is shared by all callers in this process that pass the
            same name; memory:// is new at every call.

    Raises:
        InvalidInputError: The URL names no storage that this version knows.

    Example:
        >>> from ckptstore.storage import open_storage
        >>> open_storage("memory://runs").url
        'memory://runs'
    """
    if not isinstance(url, (str, Path)):
        raise InvalidInputError(f"{shown(url)} is not a path or URL of a repository.")
    text = str(url)
    match = _URL.match(text)
    if not match:
        if not text:
            raise InvalidInputError("The repository's path is empty.")
        return LocalStorage(url)
    if not match[2] or isinstance(url, Path):  # pathlib makes one slash of two
        raise InvalidInputError(
            f"{shown(text)} looks like a URL. Pass a URL with two slashes, as text; or, if a "
            "folder has that name, its absolute path."
        )
    scheme = match[1].lower()
    if scheme == "file":
        return LocalStorage(_path_of(text))
    if scheme == "memory":
        with _lock:
            name = text[match.end() :] or secrets.token_hex(8)
            return _memories.setdefault(name, MemoryStorage(name))
    if scheme in remote_url.SCHEMES:
        parsed = remote_url.RemoteUrl.parse(text)
        # Imported here, as its client takes time and threads that local repositories do not need.
        if parsed.is_web:
            from ckptstore.storage.web import WebStorage

            return WebStorage(parsed)
        from ckptstore.storage.remote import RemoteStorage

        return RemoteStorage(parsed)
    raise InvalidInputError(
        f"{scheme}:// is not a storage that this version knows; use a local path, file://, s3://, "
        "gs://, az://, https:// or memory://."
    )


def _path_of(url: str) -> str:
    """Return the absolute path in a file:// URL of this machine."""
    host, slash, path = url[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise InvalidInputError(f"{shown(url)} names no path of this machine: use file:///path.")
    if reserved := set("#?").intersection(path):
        sign = min(reserved)
        raise InvalidInputError(
            f"{shown(url)} has a {sign}, which is not a part of a path in a URL: write "
            f"%{ord(sign):02X}, or pass the path itself."
        )
    return os.fsdecode(b"/" + unquote_to_bytes(path))
