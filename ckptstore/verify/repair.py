"""Repair: moves damaged objects aside, so that they can be stored again."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptstore.digest import Digest
    from ckptstore.storage import Storage
    from ckptstore.store.objects import ObjectStore


def set_aside(
    storage: Storage, objects: ObjectStore, digests: Iterable[Digest]
) -> tuple[Digest, ...]:
    """Move those of some objects aside that are damaged, and return them.

    A link, a folder or a file that is too large stays. The lock keeps a gc from deleting one
    meanwhile.
    """
    with storage.lock():
        return tuple(digest for digest in digests if _set_aside(objects, digest))


def _set_aside(objects: ObjectStore, digest: Digest) -> bool:
    """Return True when an object was damaged and has been moved."""
    size = None
    with suppress(CorruptError):
        size = objects.size(digest)
    if size is None:
        return False
    try:
        objects.check(digest, size=size)
    except CorruptError:
        with suppress(CorruptError):
            return objects.set_aside(digest)
    return False
