"""Shards: a commit by several processes, each of which holds a part of the state.

Each process puts the chunks that it holds whole (`put_shards`); content addresses need no
coordination. What is smaller than a chunk goes to one process with the digests: small arrays, which
share bundles, and the parts of chunks that lie across the edges of shards. That process joins and
puts these, and makes pages and structure (`assemble_shards`). Nothing here knows how processes talk
to one another: what `put_shards` returns can be pickled. ADR 0067; docs/reference/format.md,
section 14.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ckptstore.arrays import frameworks
from ckptstore.arrays.source import ArraySource
from ckptstore.commit.assemble import assembled, merged, put_documents
from ckptstore.commit.plan import ArrayPlan, Plan, plan_arrays
from ckptstore.commit.put import PageDigests, hash_threads, put_arrays, putting
from ckptstore.digest import RAW_BYTES, Digest
from ckptstore.documents.boxes import Box, Part, parts, whole_chunks
from ckptstore.documents.chunks import chunk_shape, chunks, is_contiguous, whole
from ckptstore.documents.dtypes import ITEM_BYTES, word
from ckptstore.documents.page import SMALL_BYTES
from ckptstore.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    shown,
)
from ckptstore.store.reach import Reached, reached_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ckptstore.commit.put import Place, Putter
    from ckptstore.documents.boxes import Shape
    from ckptstore.documents.nodes import Node
    from ckptstore.store.catalog import Catalog
    from ckptstore.store.reach import Written


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The part of an array that a process has to put.

    Attributes:
        path: Of the array.
        shape: Of the whole array.
        corner: Where the shard begins in it.
        source: The shard itself.
        grid: The chunk shape of the array, on which all processes agree; None for that of an array
            which one process holds whole.
    """

    path: str
    shape: Shape
    corner: Shape
    source: ArraySource
    grid: Shape | None = None

    @property
    def box(self) -> Box:
        """Its place in the array."""
        return Box(self.corner, tuple(self.source.shape))


@dataclass(frozen=True, slots=True)
class Listed:
    """An array of which there are shards, and its chunk shape; None if it goes into a bundle."""

    kind: str
    dtype: str
    shape: Shape
    grid: Shape | None
    order: None = None

    def __str__(self) -> str:
        return f"dtype {self.dtype}, shape {self.shape}, chunks of {self.grid}"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutShards:
    """The part of a commit that one process has put, and the bytes that the assembling one puts.

    Attributes:
        arrays: The arrays of which it had shards, by path.
        tied: For each path that is another name of an array, the name that came first.
        chunks: Digests of the chunks that it put.
        parts: Parts of chunks, with their bytes, by path. A small array is one chunk.
        new_bytes: Bytes of the objects that it had to write.
    """

    arrays: dict[str, Listed]
    tied: Mapping[str, str]
    chunks: dict[Place, Digest]
    parts: list[tuple[str, Part, bytes]]
    new_bytes: int

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle chunks by array, with their digests as raw bytes: a third of the size."""
        runs: dict[str, tuple[list[int], list[Digest]]] = {}
        for (path, number), digest in self.chunks.items():
            numbers, digests = runs.setdefault(path, ([], []))
            numbers.append(number)
            digests.append(digest)
        packed = [
            (path, numbers, bytes.fromhex("".join(digests)))
            for path, (numbers, digests) in runs.items()
        ]
        return _unpickled, (self.arrays, self.tied, packed, self.parts, self.new_bytes)


def _unpickled(
    arrays: dict[str, Listed],
    tied: Mapping[str, str],
    packed: list[tuple[str, list[int], bytes]],
    parts: list[tuple[str, Part, bytes]],
    new_bytes: int,
) -> PutShards:
    """Rebuild a pickled result."""
    chunks = {
        (path, number): Digest(raw[place * RAW_BYTES : (place + 1) * RAW_BYTES].hex())
        for path, numbers, raw in packed
        for place, number in enumerate(numbers)
    }
    return PutShards(arrays=arrays, tied=tied, chunks=chunks, parts=parts, new_bytes=new_bytes)


def is_small(nbytes: int) -> bool:
    """True for an array that goes into the bundle of its page."""
    return 0 < nbytes < SMALL_BYTES


def grids_of(head: Digest | None, catalog: Catalog) -> dict[tuple[str, str, Shape], Shape]:
    """Return the chunk shapes of a checkpoint's arrays by path, dtype and shape."""
    found = {}
    with suppress(CorruptError, NotFoundError):  # then all are chosen anew
        for page in catalog.pages(catalog.manifest(head)) if head is not None else ():
            for entry in page.entries:
                if entry.offset is None and entry.order is None:
                    found[entry.path, entry.dtype, entry.shape] = entry.chunk_shape
    return found


def put_shards(
    shards: Sequence[Shard],
    *,
    tied: Mapping[str, str],
    catalog: Catalog,
    parent: Digest | None,
    chunk_bytes: int,
) -> PutShards:
    """Put the chunks that a process holds. They are durable when this returns.

    Args:
        shards: What it holds, or what of that it has to put.
        tied: For each path that is another name of an array, the name that came first. Both names
            are among the shards.
        catalog: The repository, and its objects.
        parent: The checkpoint that the new one follows. What it reaches is not put again.
        chunk_bytes: Bytes of the largest chunks.
    """
    arrays = {shard.path: _listed(shard, chunk_bytes) for shard in shards}
    own = [shard for shard in shards if shard.path not in tied]
    left = [
        (shard.path, part, _bytes_of(shard, part))
        for shard in own
        for part in parts(
            shard.box,
            shape=shard.shape,
            grid=arrays[shard.path].grid or whole(shard.shape),
        )
        if not part.is_whole or arrays[shard.path].grid is None
    ]
    inner = [found for shard in own if (found := _inner(shard, arrays[shard.path].grid))]
    plan = Plan(
        pages=(tuple(_planned(str(number), shard) for number, shard in enumerate(inner)),),
        chunk_bytes=max([chunk_bytes, *(_chunk_bytes(shard) for shard in inner)]),
        is_contiguous=all(map(_has_runs, inner)),
    )
    sources = {str(number): shard.source for number, shard in enumerate(inner)}
    corners = {str(number): shard.corner for number, shard in enumerate(inner)}
    catalog.objects.meter.begin("stored", sum(source.nbytes for source in sources.values()))
    reached = reached_by(parent, catalog) if parent else Reached()
    most = max(1, (os.cpu_count() or 1) // ranks_here())
    threads = min(most, hash_threads(plan, sources.values()))
    with putting(catalog.objects, reached, threads=threads) as putter:
        put = list(put_arrays(plan, sources, putter, corners=corners))
        putter.finish()
    digests = {
        (inner[int(label)].path, number): digest
        for pages in put
        for page in pages.values()
        for (label, number), digest in page.chunks.items()
    }
    return PutShards(
        arrays=arrays, tied=tied, chunks=digests, parts=left, new_bytes=putter.new_bytes
    )


def ranks_here() -> int:
    """How many ranks share this machine, as torchrun states it; 1 where nothing does."""
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(stated)) if stated.isdecimal() else 1


def _listed(shard: Shard, chunk_bytes: int) -> Listed:
    source = shard.source
    item = ITEM_BYTES[source.dtype]
    grid = shard.grid
    if is_small(math.prod(shard.shape) * item):
        grid = None
    elif grid is None:
        grid = chunk_shape(shard.shape, item_bytes=item, chunk_bytes=chunk_bytes)
    return Listed(source.kind, source.dtype, shard.shape, grid)


def _inner(shard: Shard, grid: Shape | None) -> Shard | None:
    """The part of a shard that consists of whole chunks; None if there is none."""
    box = None if grid is None else whole_chunks(shard.box, shape=shard.shape, grid=grid)
    if box is None:
        return None
    return replace(shard, corner=box.corner, source=_cut(shard, box), grid=grid)


def _cut(shard: Shard, box: Box) -> ArraySource:
    """A part of a shard, to be read."""
    if box == shard.box:
        return shard.source
    source = shard.source
    if source.array is None or source.framework is None:
        raise InvalidInputError(f"{shown(shard.path)} cannot be cut: it is not in memory.")
    cut = frameworks.describe(source.array[box.within(shard.box)])
    assert cut is not None, "a part of an array is an array"
    return replace(cut, order=None)


def _bytes_of(shard: Shard, part: Part) -> bytes:
    return bytes(_cut(shard, part.box).whole())


def _planned(label: str, shard: Shard) -> ArrayPlan:
    return ArrayPlan(label, shard.source.dtype, shard.shape, shard.grid)


def _has_runs(shard: Shard) -> bool:
    """True when each chunk is one run of the bytes of the shard."""
    shape = shard.source.shape
    return is_contiguous(shape, tuple(map(min, shard.grid or (), whole(shape))))


def _chunk_bytes(shard: Shard) -> int:
    return math.prod(shard.grid or ()) * ITEM_BYTES[shard.source.dtype]


def assemble_shards(
    root: Node,
    stored: Sequence[PutShards],
    *,
    catalog: Catalog,
    parent: Digest | None,
    chunk_bytes: int,
    is_again: bool = False,
) -> Written:
    """Join what several processes put; everything is durable when this returns.

    Args:
        root: The structure, in which the paths of the shards are.
        stored: What each process put.
        catalog: The repository, and its objects; it keeps the pages for the next commit.
        parent: The checkpoint that the new one follows.
        chunk_bytes: Bytes of the largest chunks.
        is_again: Whether a gc may have deleted something since it was put.

    Raises:
        InvalidInputError: Processes disagree, or none has put a part of an array.
        ConflictError: A gc has deleted something since it was put.
    """
    arrays = _agreed(stored)
    tied = {path: first for one in stored for path, first in one.tied.items()}
    plan = plan_arrays(
        arrays,
        chunk_bytes=chunk_bytes,
        tied=tied,
        grids={
            path: array.grid
            for path, array in arrays.items()
            if array.grid is not None and path not in tied
        },
    )
    digests = {place: digest for one in stored for place, digest in one.chunks.items()}
    joined = _joined(arrays, stored)
    small = {
        path: _source(arrays[path], data)
        for (path, _), data in joined.items()
        if arrays[path].grid is None
    }
    reached = reached_by(parent, catalog) if parent else Reached()
    with putting(catalog.objects, reached) as putter:
        _rely(digests, arrays, putter, catalog, is_again=is_again)
        digests |= {
            place: putter.put(data)
            for place, data in joined.items()
            if arrays[place[0]].grid is not None
        }
        sources = small | {path: small[first] for path, first in tied.items() if first in small}
        pages = [dict(page) for page in put_arrays(plan, sources, putter)]
        of_all = merged(plan, [*pages, {0: PageDigests(chunks=digests)}])
        written, decoded = put_documents(root, assembled(plan, [of_all]), putter)
    for ref, page in zip(written.pages, decoded, strict=True):
        catalog.remember_page(ref.digest, page)
    new_bytes = written.new_bytes + sum(one.new_bytes for one in stored)
    return replace(written, new_bytes=new_bytes)


def _agreed(stored: Iterable[PutShards]) -> dict[str, Listed]:
    """The arrays of which processes have put shards."""
    arrays: dict[str, Listed] = {}
    for one in stored:
        for path, array in one.arrays.items():
            if arrays.setdefault(path, array) != array:
                raise InvalidInputError(
                    f"Two processes hold shards of different arrays as {shown(path)}: "
                    f"{arrays[path]} and {array}."
                )
    return arrays


def _joined(arrays: Mapping[str, Listed], stored: Iterable[PutShards]) -> dict[Place, memoryview]:
    """The bytes of the chunks that no process held whole."""
    import numpy as np

    joined: dict[Place, np.ndarray[tuple[int, ...], np.dtype[np.void]]] = {}
    filled: dict[Place, int] = {}
    for path, part, data in (one for each in stored for one in each.parts):
        place, dtype = (path, part.number), word(arrays[path].dtype)
        if place not in joined:
            joined[place] = np.empty(part.chunk.shape, dtype)
            filled[place] = 0
        elements = np.frombuffer(data, dtype).reshape(part.box.shape)
        joined[place][part.box.within(part.chunk)] = elements
        filled[place] += elements.size
    for (path, number), chunk in joined.items():
        if filled[path, number] != chunk.size:
            raise InvalidInputError(
                f"Of chunk {number} of {shown(path)}, which has {chunk.size} elements, processes "
                f"have put {filled[path, number]}."
            )
    return {
        place: memoryview(chunk.reshape(-1).view(np.uint8).data) for place, chunk in joined.items()
    }


def _source(array: Listed, data: memoryview) -> ArraySource:
    """A small array that was joined, ready to be read."""
    return ArraySource(
        array.kind, array.dtype, array.shape, len(data), None, None, None, None, data
    )


def _rely(
    digests: Mapping[Place, Digest],
    arrays: Mapping[str, Listed],
    putter: Putter,
    catalog: Catalog,
    *,
    is_again: bool,
) -> None:
    """Rely on what other processes have made durable."""
    if is_again:
        for digest, size in _sizes(digests, arrays):
            if not catalog.objects.has(digest, size=size):
                raise ConflictError(
                    "A gc has deleted old objects that this checkpoint was to use again. Nothing "
                    "was committed. Save it once more."
                )
        catalog.objects.flush(set(digests.values()))
    putter.rely(digests.values())


def _sizes(
    digests: Mapping[Place, Digest], arrays: Mapping[str, Listed]
) -> Iterator[tuple[Digest, int]]:
    for path, array in arrays.items():
        grid = chunks(array.shape, array.grid or (), item_bytes=ITEM_BYTES[array.dtype])
        for number, chunk in enumerate(grid if array.grid is not None else ()):
            if (path, number) in digests:
                yield digests[path, number], chunk.size
