"""Commit a folder: store a Zarr hierarchy in files key by key, with the state saved beside it.

Nothing is decoded: values are stored as they are in the files. See docs/adr/0016 and docs/adr/0018.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ckptstore.documents.manifest import Manifest
from ckptstore.documents.zarr_page import check_key
from ckptstore.threads import gather
from ckptstore.zarr import publish
from ckptstore.zarr.staged_contents import StagedContents

if TYPE_CHECKING:
    from collections.abc import Callable

    from ckptstore.arrays.source import ArraySource
    from ckptstore.digest import Digest
    from ckptstore.state.flatten import Flat
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.reach import Written
    from ckptstore.zarr.hierarchy import ZarrFiles

TAKE_THREADS = 8  # each holds a segment


def take(
    files: ZarrFiles,
    *,
    head: Digest | None,
    catalog: Catalog,
    segment_bytes: int,
    write: Callable[[Flat[ArraySource]], Written],
) -> Written:
    """Store a hierarchy; durable when this returns.

    Args:
        files: The folder and its keys.
        head: The checkpoint that the new one will follow, if any.
        catalog: The repository's documents and objects.
        segment_bytes: Bytes of the segments that values are cut into.
        write: Stores a state, for the state in the folder.
    """
    for key in (*files.keys, *files.documents):
        check_key(key)
    state = None if files.flat is None else write(files.flat)
    begin = (
        None
        if state is None
        else Manifest(pages=state.pages, structure=state.structure, format=state.format)
    )
    staged = StagedContents(head, begin, catalog, segment_bytes)
    for key, data in files.documents.items():
        staged.put(key, memoryview(data))
    gather(
        (partial(staged.put_file, key, files.folder / key) for key in files.keys),
        threads=TAKE_THREADS,
    )
    written = publish.write(staged)
    if state is None:
        return written
    return replace(written, new_bytes=written.new_bytes + state.new_bytes)
