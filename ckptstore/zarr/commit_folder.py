"""Take: a Zarr hierarchy that lies in files is stored, key by key, with the state that lies there too."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.documents.manifest import Manifest
from ckptstore.documents.zarr_page import check_key
from ckptstore.threads import gather
from ckptstore.zarr import publish
from ckptstore.zarr.changes import Staged

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.arrays.source import ArraySource
    from ckptstore.digest import Digest
    from ckptstore.state.tree import Flat
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.reach import Written
    from ckptstore.zarr.hierarchy import ZarrFiles

TAKE_THREADS = 8  # each holds a segment


def take(
    found: ZarrFiles,
    *,
    head: Digest | None,
    catalog: Catalog,
    segment_bytes: int,
    write: Callable[[Flat[ArraySource]], Written],
) -> Written:
    """Store a hierarchy; durable when this returns. head: what it will follow. write: stores a state."""
    for key in (*found.keys, *found.documents):
        check_key(key)
    state = None if found.flat is None else write(found.flat)
    begin = None if state is None else Manifest(pages=state.pages, structure=state.structure)
    staged = Staged(head, begin, catalog, segment_bytes)
    for key, data in found.documents.items():
        staged.put(key, memoryview(data))
    gather(
        (partial(staged.put_file, key, found.folder / key) for key in found.keys),
        threads=TAKE_THREADS,
    )
    made = publish.write(staged)
    return made if state is None else replace(made, new_bytes=made.new_bytes + state.new_bytes)
