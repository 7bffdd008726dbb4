"""Opening: reads the marker of a repository, and of a far one where its log ends, at once.

Where each request takes a round trip, the first look of the handle would begin with a listing of
the operations. See docs/adr/0077.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ckptstore.documents.canonical import readable
from ckptstore.documents.marker import MARKER_BYTES_MAX, MARKER_KEY, Marker
from ckptstore.errors import CkptStoreError, ConflictError
from ckptstore.store.oplog import Oplog
from ckptstore.threads import beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.storage import Storage
    from ckptstore.store.oplog import End

Result = TypeVar("Result")


def read_marker(storage: Storage) -> tuple[Marker, End | None]:
    """Return the marker of a repository, and where its log ends if that is worth knowing by now.

    Raises:
        NotFoundError: There is no marker.
        CorruptError: It is damaged.
    """

    def read() -> Marker:
        return Marker.decode(storage.get(MARKER_KEY, bytes_max=MARKER_BYTES_MAX))

    return _beside_end(read, storage)


def create_marker(storage: Storage, marker: Marker) -> End | None:
    """Create the marker of a new repository, and return the same as `read_marker` about its log.

    Raises:
        ConflictError: There is one.
    """
    data = readable(marker, name=MARKER_KEY)
    is_new, end = _beside_end(partial(storage.create, MARKER_KEY, data), storage)
    if not is_new:
        raise ConflictError(f"{storage.url} is already a repository. Open it instead.")
    return end


def _beside_end(job: Callable[[], Result], storage: Storage) -> tuple[Result, End | None]:
    """Have a request made; the operations of an object store are listed meanwhile."""
    if not storage.is_far:
        return job(), None
    from ckptstore.storage.web import WebStorage

    if isinstance(storage, WebStorage):  # which lists by several requests, if at all
        return job(), None
    return beside(job, partial(_end, storage))


def _end(storage: Storage) -> End | None:
    """Return where a log ends; None where that fails, as the first look then shows why."""
    try:
        return Oplog(storage).end()
    except CkptStoreError:
        return None
