"""Lacking: what a target needs to hold some checkpoints of a source, found from its documents.

The walk begins at the refs and leaves out what the target's own refs reach. Pages are read where
they are near; what a checkpoint of the target shares with a new one is not looked for. So the cost
is that of what is new, and no listing of all objects is needed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ckptstore.documents.page import PAGE_BYTES_MAX, Page
from ckptstore.documents.structure import STRUCTURE_BYTES_MAX
from ckptstore.documents.zarr_page import NodePage
from ckptstore.errors import CkptStoreError
from ckptstore.history import ancestors, first_parents
from ckptstore.threads import gather

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest
    from ckptstore.documents.operation import Operation
    from ckptstore.transfer.side import Side, Sides

HELD_BYTES_MAX = 32 << 20  # of documents that are read to plan and not read again to copy
LISTED_FROM = 8  # fewer objects are looked for one by one
LISTED_EACH = 100  # keys that a listing may have for each object that it is to find
LISTED_MIN = 1000  # keys that one request lists


@dataclass(slots=True, kw_only=True)
class Lacking:
    """What the target lacks.

    Attributes:
        whole: The checkpoints to copy with all objects, the newest first.
        history: Those of which only the manifest is copied.
        left_behind: Those of `history` that have their arrays at the source.
        revived: Those of `whole` that have expired at the target.
        is_chain: Whether some of `whole` were made from checkpoints that no ref of the target
            reaches.
        objects: The objects to copy, with their size.
        relied: Every object that `whole` reaches.
        in_place: Those of them that are at the target, though no checkpoint there vouches for it.
        base: Checkpoints of the target whose objects are relied on.
        documents: The bytes of some of `objects`.
    """

    whole: dict[Digest, Manifest] = field(default_factory=dict)
    history: dict[Digest, Manifest] = field(default_factory=dict)
    left_behind: set[Digest] = field(default_factory=set)
    revived: set[Digest] = field(default_factory=set)
    is_chain: bool = False
    objects: dict[Digest, int] = field(default_factory=dict)
    relied: frozenset[Digest] = frozenset()
    in_place: frozenset[Digest] = frozenset()
    base: set[Digest] = field(default_factory=set)
    documents: dict[Digest, bytes] = field(default_factory=dict)


def find_lacking(
    starts: Iterable[Digest], sides: Sides, newest: Operation, *, depth: int | None
) -> Lacking:
    """Return what the target lacks to have these checkpoints and their history.

    Args:
        starts: The checkpoints that its refs are to name.
        sides: The repositories.
        newest: The newest operation of the target.
        depth: How many of the newest live checkpoints of each history are copied whole; None for
            all that are new.
    """
    starts = tuple(dict.fromkeys(starts))
    lacking = Lacking()
    known = {id for id, _ in ancestors(newest.refs.values(), sides.near)}
    new = dict(ancestors(starts, lambda id: None if id in known else sides.lookup(id)))
    window = None if depth is None else _window(starts, sides, depth)
    for id, manifest in new.items():
        if id in sides.live_at_source and (window is None or id in window):
            lacking.whole[id] = manifest
        else:
            lacking.history[id] = manifest
            if id in sides.live_at_source:
                lacking.left_behind.add(id)
    named = set(newest.refs.values())
    for id in dict.fromkeys((*starts, *(window or ()))):
        if id not in lacking.whole and id not in named and id not in sides.live_at_target:
            found = sides.lookup(id)
            if found is not None and id in sides.live_at_source:
                lacking.whole[id] = found
                lacking.history.pop(id, None)
    lacking.revived = {id for id in lacking.whole if id not in new}
    lacking.is_chain = any(
        parent not in known for manifest in lacking.whole.values() for parent in manifest.parents
    )
    if lacking.whole:
        _find_objects(lacking, sides, known)
    return lacking


def _window(starts: Iterable[Digest], sides: Sides, depth: int) -> dict[Digest, None]:
    """Return the newest live checkpoints of each history."""
    found: dict[Digest, None] = {}
    for start in starts:
        live = (id for id, _ in first_parents(start, sides.lookup) if id in sides.live_at_source)
        found.update(dict.fromkeys(islice(live, depth)))
    return found


def _find_objects(lacking: Lacking, sides: Sides, known: set[Digest]) -> None:
    """Find the objects that are not at the target.

    A manifest vouches for its objects only if a ref reaches it: that of a transfer or commit that
    died may refer to what a gc deleted meanwhile.
    """
    parents = {parent for manifest in lacking.whole.values() for parent in manifest.parents}
    lacking.base = {id for id in parents & known if id in sides.live_at_target}
    based: dict[Digest, Manifest] = {}
    for id in lacking.base:
        if manifest := sides.near(id):
            based[id] = manifest
    there = {digest for manifest in based.values() for digest in manifest.documents()}
    reach = _Reach(sides, there, lacking.documents)
    for manifest in lacking.whole.values():
        reach.add(manifest)
    reach.add_shared(based.values())
    sizes = reach.sizes
    lacking.relied = frozenset(sizes)
    unsure = {digest: size for digest, size in sizes.items() if digest not in there}
    in_place = _in_place(sides.target, unsure)
    lacking.in_place = frozenset(in_place)
    lacking.objects = {digest: size for digest, size in unsure.items() if digest not in in_place}
    for digest in in_place:
        lacking.documents.pop(digest, None)


class _Reach:
    """The objects that checkpoints reach, with their sizes.

    there: the objects that are at the target; pages add what they list. held: gets the bytes of
    documents that are not there, up to `HELD_BYTES_MAX`.
    """

    def __init__(self, sides: Sides, there: set[Digest], held: dict[Digest, bytes]) -> None:
        self.sizes: dict[Digest, int] = {}
        self._sides, self._there, self._held = sides, there, held
        self._held_bytes = 0

    def add(self, manifest: Manifest) -> None:
        """Add all that a checkpoint reaches, reading each page that is new here."""
        jobs = []
        if manifest.structure not in self.sizes:
            jobs.append(partial(self._structure, manifest.structure))
        kinds = (Page, manifest.pages), (NodePage, manifest.hierarchy or ())
        for kind, refs in kinds:
            jobs += [
                partial(self._page, ref.digest, kind)
                for ref in refs
                if ref.digest not in self.sizes
            ]
        for digest, size, listed in gather(jobs, threads=self._sides.source.threads):
            self.sizes[digest] = size
            self.sizes.update(listed)
            if digest in self._there:
                self._there.update(listed)

    def add_shared(self, based: Iterable[Manifest]) -> None:
        """Note what the checkpoints of the target reach beside the pages that are shared."""
        catalog = self._sides.near_catalog
        for manifest in based:
            kinds = (catalog.page, manifest.pages), (catalog.node_page, manifest.hierarchy or ())
            for read, refs in kinds:
                for ref in refs:
                    if ref.digest not in self.sizes:
                        try:
                            page: Page | NodePage = read(ref.digest)
                        except CkptStoreError:  # it expired on this side: all is looked for
                            continue
                        self._there.update(digest for digest, _ in page.digests())

    def _structure(self, digest: Digest) -> tuple[Digest, int, dict[Digest, int]]:
        return digest, len(self._read(digest, STRUCTURE_BYTES_MAX)), {}

    def _page(
        self, digest: Digest, kind: type[Page | NodePage]
    ) -> tuple[Digest, int, dict[Digest, int]]:
        data = self._read(digest, PAGE_BYTES_MAX)
        page = kind.decode(data, name=f"page {digest}")
        return digest, len(data), dict(page.digests())

    def _read(self, digest: Digest, bytes_max: int) -> bytes:
        if digest in self._there and self._sides.is_target_near:
            with suppress(CkptStoreError):
                return self._sides.target.objects.get(digest, bytes_max=bytes_max)
        data = self._sides.source.objects.get(digest, bytes_max=bytes_max)
        if digest not in self._there and self._held_bytes + len(data) <= HELD_BYTES_MAX:
            self._held_bytes += len(data)
            self._held[digest] = data
        return data


def _in_place(target: Side, sizes: Mapping[Digest, int]) -> set[Digest]:
    """Return those of some objects that the target has with the right size."""
    found: set[Digest] = set()
    left: Iterable[Digest] = sizes
    if target.is_far and len(sizes) >= LISTED_FROM:
        listed_max = max(LISTED_MIN, LISTED_EACH * len(sizes))
        listed = list(islice(target.objects.list(), listed_max))
        found = {digest for digest, item in listed if digest and sizes.get(digest) == item.size}
        if len(listed) < listed_max:
            return found
        left = [digest for digest in sizes if digest not in found]
    looks = (partial(_has, target, digest, sizes[digest]) for digest in left)
    found.update(digest for digest in gather(looks, threads=target.threads) if digest)
    return found


def _has(target: Side, digest: Digest, size: int) -> Digest | None:
    return digest if target.objects.has(digest, size=size) else None
