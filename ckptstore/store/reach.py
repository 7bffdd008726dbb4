"""Reach: what a checkpoint refers to, from its manifest over its pages to the objects.

`Manifest.documents` names the structure and the pages; `walk` goes on into the pages, those of Zarr
nodes too. Commits, gc, verify and transfers share this walk. They differ in how a page is read
(`decoded` checks every entry, `searched` only finds digests; ADR 0013) and in what an error means.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from ckptstore.documents.manifest import PageRef
from ckptstore.documents.page import Page
from ckptstore.errors import CkptStoreError, CorruptError, NotFoundError
from ckptstore.threads import ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.page import Bundle
    from ckptstore.documents.zarr_page import NodePage
    from ckptstore.store.catalog import Catalog

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True)
class PageReader(Generic[Content]):
    """How a walk reads a page of arrays, and one of Zarr nodes; threads: how many at once."""

    arrays: Callable[[Digest], Content]
    nodes: Callable[[Digest], Content]
    threads: int = 1


def decoded(catalog: Catalog) -> PageReader[Page | NodePage]:
    """Return a reader that gives pages with every entry checked."""
    return PageReader(catalog.page, catalog.node_page, catalog.threads)


def searched(catalog: Catalog) -> PageReader[set[str]]:
    """Return a reader that gives the digests in a page, perhaps some more, never one too few.

    It is about ten times as fast as decoding, and keeps no page in the cache.
    """
    return PageReader(catalog.search_page, catalog.search_node_page, catalog.threads)


def walk(
    manifests: Iterable[Manifest],
    reader: PageReader[Content],
    *,
    wanted: Callable[[Digest], bool] = lambda page: True,
    failed: Callable[[Digest, CkptStoreError], object] | None = None,
) -> Iterator[tuple[Digest, Content]]:
    """Read the pages of checkpoints in order.

    Args:
        manifests: The checkpoints.
        reader: How a page is read.
        wanted: Asked before each page is read; one that is not wanted is not.
        failed: Called with each page that cannot be read, and why. It may raise the error, which
            happens by default, or return to skip the page.

    Yields:
        The digest of each page that was read, and what the reader made of it.
    """

    def reads() -> Iterator[Callable[[], tuple[Digest, Content | CkptStoreError]]]:
        for manifest in manifests:
            kinds = (manifest.pages, reader.arrays), (manifest.hierarchy or (), reader.nodes)
            for refs, read in kinds:
                for ref in refs:
                    if wanted(ref.digest):
                        yield partial(_read, ref.digest, read)

    for page, content in ahead(reads(), threads=reader.threads):
        if not isinstance(content, CkptStoreError):
            yield page, content
        elif failed is None:
            raise content
        else:
            failed(page, content)


def _read(
    page: Digest, read: Callable[[Digest], Content]
) -> tuple[Digest, Content | CkptStoreError]:
    """Read a page; the error is a result, as others that were begun are still wanted."""
    try:
        return page, read(page)
    except CkptStoreError as error:
        return page, error


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The part of a manifest that describes a state, which is now durable.

    relied: the digest of every object that the manifest reaches. format: of the manifest.
    """

    pages: tuple[PageRef, ...]
    structure: Digest
    new_bytes: int
    relied: frozenset[Digest]
    hierarchy: tuple[PageRef, ...] | None = None
    format: int = 1


@dataclass(slots=True)
class Reached:
    """The objects that a parent reaches: durable, so they need not be put again.

    bundles: each bundle that this handle wrote, by the digests of the small arrays in it, in order.
    Only these are trusted: the bundle of another page may be false. is_sound: False when
    the parent could not be read. Then no object in place is relied on, and damaged ones are healed.
    seems_new: whether most other objects are new as far as one can guess: those of the parent were.
    """

    digests: set[Digest] = field(default_factory=set)
    bundles: dict[tuple[Digest, ...], Bundle] = field(default_factory=dict)
    is_sound: bool = True
    seems_new: bool = False


def page_ref(page: Page, digest: Digest) -> PageRef:
    """Return a page as a manifest lists it."""
    return PageRef(
        first=page.first, digest=digest, arrays=len(page.entries), bytes=page.array_bytes
    )


def reached_by(id: Digest, catalog: Catalog) -> Reached:
    """Return what a checkpoint reaches; a damaged one must not keep the next from being made."""
    try:
        manifest = catalog.manifest(id)
        stored = sum(ref.bytes for ref in manifest.pages)
        seems_new = 2 * manifest.new_bytes > stored
        reached = Reached(digests=manifest.documents(), seems_new=seems_new)
        for digest, page in walk([manifest], decoded(catalog)):
            if not isinstance(page, Page):
                reached.digests.update(listed for listed, _ in page.digests())
                continue
            reached.digests |= page.objects()
            if page.bundle and catalog.wrote_page(digest):
                small = (entry.digests[0] for entry in page.entries if entry.offset is not None)
                reached.bundles[tuple(small)] = page.bundle
    except (CorruptError, NotFoundError):
        return Reached(is_sound=False)
    return reached
