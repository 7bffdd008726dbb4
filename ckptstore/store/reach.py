"""Reach: which objects a checkpoint refers to, from its manifest and its pages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ckptstore.documents.manifest import PageRef
from ckptstore.errors import CorruptError, NotFoundError

if TYPE_CHECKING:
    from ckptstore.digest import Digest
    from ckptstore.documents.page import Bundle, Page
    from ckptstore.store.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a manifest needs to know of a state that is now durable.

    relied: the digest of every object that the manifest reaches.
    """

    pages: tuple[PageRef, ...]
    structure: Digest
    new_bytes: int
    relied: frozenset[Digest]
    hierarchy: tuple[PageRef, ...] | None = None


@dataclass(slots=True)
class Reached:
    """What a parent checkpoint reaches: durable, and not to be put again.

    bundles: each bundle that was written by this handle, by the digests of the small arrays in it, in order: what another
    page says of its bundle may be a lie. is_sound: False when the parent could not be read; then nothing that is there
    already is relied upon, and what was damaged is healed.
    """

    digests: set[Digest] = field(default_factory=set)
    bundles: dict[tuple[Digest, ...], Bundle] = field(default_factory=dict)
    is_sound: bool = True


def page_ref(page: Page, digest: Digest) -> PageRef:
    """A page as a manifest lists it."""
    return PageRef(
        first=page.first, digest=digest, arrays=len(page.entries), bytes=page.array_bytes
    )


def reached_by(id: Digest, catalog: Catalog) -> Reached:
    """What a checkpoint reaches, from its pages alone. One that is damaged must not keep the next from being made."""
    try:
        manifest = catalog.manifest(id)
        reached = Reached(digests=manifest.documents())
        for nodes in catalog.node_pages(manifest):
            reached.digests.update(digest for digest, _ in nodes.digests())
        for ref, page in zip(manifest.pages, catalog.pages(manifest), strict=True):
            reached.digests.update(digest for digest, _ in page.digests())
            if page.bundle and catalog.wrote_page(ref.digest):
                small = (entry.digests[0] for entry in page.entries if entry.offset is not None)
                reached.bundles[tuple(small)] = page.bundle
    except (CorruptError, NotFoundError):
        return Reached(is_sound=False)
    return reached
