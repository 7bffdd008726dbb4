"""Survey: the objects of a repository, and which of them some checkpoints reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ckptstore.errors import CorruptError
from ckptstore.store.reach import searched, walk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.errors import CkptStoreError
    from ckptstore.store.catalog import Catalog

MARK_DIGITS = 16  # of each digest 64 bits are kept, which is enough for a sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """How many objects there are, and how many of them the checkpoints do not reach."""

    objects: int
    bytes: int
    unreached_objects: int
    unreached_bytes: int


def survey(catalog: Catalog, manifests: Iterable[Manifest]) -> Survey:
    """Look at all objects. What a damaged page lists counts as not reached."""
    reached = _reached(catalog, manifests)
    sizes: list[int] = []
    unreached: list[int] = []
    for digest, item in catalog.objects.list():
        if digest is None:  # a file of another program
            continue
        sizes.append(item.size)
        if _mark(digest) not in reached:
            unreached.append(item.size)
    return Survey(
        objects=len(sizes),
        bytes=sum(sizes),
        unreached_objects=len(unreached),
        unreached_bytes=sum(unreached),
    )


def _reached(catalog: Catalog, manifests: Iterable[Manifest]) -> set[int]:
    """Return the marks of what checkpoints reach. A page is read once, however many share it."""
    reached: set[int] = set()
    read: set[Digest] = set()

    def skip(page: Digest, error: CkptStoreError) -> None:  # noqa: ARG001
        if not isinstance(error, CorruptError):
            raise error

    for manifest in manifests:
        reached.update(map(_mark, manifest.documents()))
        pages = walk(manifest, searched(catalog), wanted=lambda page: page not in read, failed=skip)
        for page, listed in pages:
            read.add(page)
            reached.update(map(_mark, listed))
    return reached


def _mark(digest: str) -> int:
    return int(digest[:MARK_DIGITS], 16)
