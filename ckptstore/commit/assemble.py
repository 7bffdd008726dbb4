"""Assemble: digests that were put, by one process or several, become pages and a structure.

The result is what a manifest needs. Reading arrays and hashing chunks is done before, by
`ckptstore.commit.put`. docs/reference/format.md, sections 10 and 14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ckptstore.commit.put import PageDigests
from ckptstore.documents import structure
from ckptstore.documents.chunks import chunk_count, reversed_order, stored_order
from ckptstore.documents.manifest import ORDERED_FORMAT
from ckptstore.documents.page import ArrayEntry, Page
from ckptstore.errors import InvalidInputError, shown
from ckptstore.python_gc import paused_collector
from ckptstore.store.reach import Written, page_ref

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.commit.plan import ArrayPlan, Plan
    from ckptstore.commit.put import Place, Putter
    from ckptstore.digest import Digest
    from ckptstore.documents.nodes import Node


def merged(plan: Plan, stored: Sequence[Mapping[int, PageDigests]]) -> dict[int, PageDigests]:
    """Merge the digests that several processes put for each page of a plan. Pure.

    Args:
        plan: The plan that all of them followed.
        stored: Of each process, what it put of each page, by the page's number.

    Raises:
        InvalidInputError: Two processes disagree about a chunk, or a bundle.
    """
    chunks: dict[Place, Digest] = {}
    pages = [page for process in stored for page in process.values()]
    for digests in {id(page.chunks): page.chunks for page in pages}.values():  # pages share them
        for (path, number), digest in digests.items():
            if chunks.setdefault((path, number), digest) != digest:
                raise InvalidInputError(
                    f"Two processes have put different bytes as chunk {number} of {shown(path)}."
                )
    pages_of_all: dict[int, PageDigests] = {}
    for number in range(len(plan.pages)):
        bundled = [page for process in stored if (page := process.get(number)) and page.bundle]
        if any(page.small != bundled[0].small for page in bundled):
            raise InvalidInputError(
                f"Two processes have put different small arrays of the page from "
                f"{shown(plan.pages[number][0].path)} on."
            )
        first = bundled[0] if bundled else PageDigests()
        pages_of_all[number] = PageDigests(small=first.small, bundle=first.bundle, chunks=chunks)
    return pages_of_all


def assembled(
    plan: Plan, stored: Iterable[Mapping[int, PageDigests]]
) -> Iterator[Mapping[int, Page]]:
    """Assemble the pages of a plan, in parts, as soon as their digests are known. Pure.

    Args:
        plan: How the arrays are stored.
        stored: The stored chunks and bundles of each page, by the number of the page, in parts of
            any size and order.

    Raises:
        InvalidInputError: No process has put a chunk, or a small array.
    """
    for part in stored:
        with paused_collector():
            pages = {
                number: Page(
                    entries=tuple(_entries(plan.pages[number], digests)), bundle=digests.bundle
                )
                for number, digests in part.items()
            }
        yield pages


def put_documents(
    root: Node, pages: Iterable[Mapping[int, Page]], putter: Putter
) -> tuple[Written, list[Page]]:
    """Put the structure and the pages of a state; everything is durable when this returns.

    Args:
        root: The structure.
        pages: The pages with their numbers in path order, in any number of parts.
        putter: Where they go. It knows the objects that the pages refer to.

    Returns:
        The fields for the manifest, and the pages in path order.
    """
    with paused_collector():
        structure_digest = putter.put(structure.encode(root))
    put = {}
    for part in pages:
        with paused_collector():
            put.update({number: (page, putter.put(page.encode())) for number, page in part.items()})
    ordered = [put[number] for number in sorted(put)]
    putter.finish()
    written = Written(
        pages=tuple(page_ref(page, digest) for page, digest in ordered),
        structure=structure_digest,
        new_bytes=putter.new_bytes,
        relied=frozenset(putter.relied),
        format=ORDERED_FORMAT if any(page.has_orders for page, _ in ordered) else 1,
    )
    return written, [page for page, _ in ordered]


def _entries(arrays: Iterable[ArrayPlan], digests: PageDigests) -> Iterator[ArrayEntry]:
    """The entries of one page."""
    small = iter(digests.small)
    for path, dtype, stored, chunk_shape, tied, order in arrays:
        shape = stored if order is None else stored_order(stored, reversed_order(order))
        if chunk_shape is None:
            digest, offset = next(small, (None, None))
            if digest is None:
                raise InvalidInputError(f"No process has put {shown(path)}.")
            yield ArrayEntry(path, dtype, shape, (), (digest,), offset, order)
        else:
            chunks = _chunks(tied or path, chunk_count(stored, chunk_shape), digests)
            yield ArrayEntry(path, dtype, shape, chunk_shape, chunks, None, order)


def _chunks(path: str, count: int, digests: PageDigests) -> tuple[Digest, ...]:
    """The digests of all chunks of an array, in C order of its grid."""
    try:
        return tuple(digests.chunks[path, number] for number in range(count))
    except KeyError as error:
        _, missing = error.args[0]
        raise InvalidInputError(
            f"No process has put chunk {missing} of the {count} of {shown(path)}."
        ) from error
