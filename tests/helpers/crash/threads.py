"""All thread counts of the library, so that a test can set them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.checkout import reader
from ckptstore.commit import put
from ckptstore.storage import local
from ckptstore.store import catalog, newest, objects, oplog
from ckptstore.verify import inventory
from ckptstore.zarr import publish

if TYPE_CHECKING:
    from types import ModuleType

COUNTS: tuple[tuple[ModuleType, str], ...] = (
    (put, "HASH_THREADS"),
    (put, "COPY_THREADS"),
    (put, "PUT_THREADS"),
    (put, "FAR_PUT_THREADS"),
    (publish, "PUT_THREADS"),
    (catalog, "EXPIRE_THREADS"),
    (objects, "ALONE_THREADS"),
    (oplog, "READ_THREADS"),
    (newest, "THREADS"),
    (reader, "READ_THREADS"),
    (reader, "FAR_READ_THREADS"),
    (inventory, "VERIFY_THREADS"),
    (local, "FLUSH_THREADS"),
)
