"""Writer: a state becomes objects, pages and what a manifest needs: plan, put, assemble.

This is the composition for a state that one process holds. Making the checkpoint visible is for
`ckptstore.store.refs`. docs/reference/format.md, section 14, steps 2 and 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.commit.assemble import assembled, put_documents
from ckptstore.commit.plan import plan_arrays
from ckptstore.commit.put import hash_threads, put_arrays, putting
from ckptstore.python_gc import paused_collector
from ckptstore.store.reach import Reached, Written, reached_by

if TYPE_CHECKING:
    from ckptstore.arrays.source import ArraySource
    from ckptstore.digest import Digest
    from ckptstore.state.flatten import Flat
    from ckptstore.store.catalog import Catalog


def write(
    flat: Flat[ArraySource],
    *,
    catalog: Catalog,
    parent: Digest | None,
    chunk_bytes: int,
    seems_new: bool | None = None,
) -> Written:
    """Store a state; everything the manifest will refer to is durable when this returns.

    Args:
        flat: The state.
        catalog: The repository, and its objects; it keeps the pages for the next commit.
        parent: The checkpoint that the new one follows. What it reaches is not put again.
        chunk_bytes: Bytes of the largest chunks.
        seems_new: Whether most of the other objects are new, so that few of them are looked for;
            None to guess that by the parent.
    """
    reached = reached_by(parent, catalog) if parent else Reached()
    if seems_new is not None:
        reached.seems_new = seems_new
    with paused_collector():
        plan = plan_arrays(flat.arrays, chunk_bytes=chunk_bytes, tied=flat.tied)
    catalog.objects.meter.begin("stored", sum(array.nbytes for array in flat.arrays.values()))
    threads = hash_threads(plan, flat.arrays.values())
    with putting(catalog.objects, reached, threads=threads) as putter:
        stored = put_arrays(plan, flat.arrays, putter)
        written, pages = put_documents(flat.root, assembled(plan, stored), putter)
    for ref, page in zip(written.pages, pages, strict=True):
        catalog.remember_page(ref.digest, page)
    return written
