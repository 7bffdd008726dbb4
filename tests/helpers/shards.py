"""A commit by several processes: each puts the shards it holds, and one assembles the checkpoint.

This is what a coordinator of ranks is to do. It is made of the library's parts as they are.
"""

from __future__ import annotations

import itertools
from collections import ChainMap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import ckptstore
from ckptstore.arrays import codecs
from ckptstore.arrays import frameworks as arrays
from ckptstore.commit.assemble import assembled, merged, put_documents
from ckptstore.commit.plan import plan_arrays
from ckptstore.commit.put import hash_threads, put_arrays, putting
from ckptstore.documents.manifest import Manifest
from ckptstore.state.flatten import flatten as flatten_state
from ckptstore.store.reach import Reached, reached_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ckptstore.arrays.source import ArraySource
    from ckptstore.commit.plan import Plan
    from ckptstore.commit.put import PageDigests
    from ckptstore.digest import Digest
    from ckptstore.state.flatten import Flat

    Shape = tuple[int, ...]


@dataclass
class Rank:
    """What one process holds: arrays, or shards of them and where these begin."""

    held: dict[str, Any] = field(default_factory=dict)
    corners: dict[str, Shape] = field(default_factory=dict)


@dataclass
class Stored:
    """What one process has put; durable."""

    pages: dict[int, PageDigests]
    relied: set[Digest]
    new_bytes: int


def put(repo: ckptstore.Repository, plan: Plan, rank: Rank) -> Stored:
    """What a rank does."""
    sources = {path: arrays.describe(value) for path, value in rank.held.items()}
    listed = {path: source for path, source in sources.items() if source is not None}
    threads = hash_threads(plan, listed.values())
    with putting(repo._objects, Reached(), threads=threads) as putter:
        pages = dict(ChainMap(*put_arrays(plan, listed, putter, corners=rank.corners)))
        putter.finish()
        return Stored(pages, putter.relied, putter.new_bytes)


def commit(
    repo: ckptstore.Repository,
    state: object,
    grids: Mapping[str, Shape],
    ranks: Sequence[Rank],
    *,
    processes: bool = False,
    branch: str = "main",
    **facts: Any,
) -> ckptstore.Checkpoint:
    """What a coordinator does. state: of which the ranks hold the arrays together."""
    newest = repo._oplog.newest()
    head = newest.heads.get(branch)
    flat = flatten(state)
    plan = plan_arrays(flat.arrays, chunk_bytes=repo._chunk_bytes, tied=flat.tied, grids=grids)
    stored = list(_put_all(repo.url, plan, ranks, processes=processes))
    reached = reached_by(head, repo._catalog) if head else Reached()
    with putting(repo._objects, reached) as putter:
        for one in stored:
            putter.rely(one.relied)
        pages = assembled(plan, [merged(plan, [one.pages for one in stored])])
        written, _ = put_documents(flat.root, pages, putter)
    manifest = Manifest(
        pages=written.pages,
        structure=written.structure,
        parents=(head,) if head else (),
        branch=branch,
        created=repo._now(),
        new_bytes=written.new_bytes + sum(one.new_bytes for one in stored),
        **facts,
    )
    id, _ = repo._refs.publish(
        manifest, branch=branch, retry=False, since=newest, relied=written.relied
    )
    return repo.resolve(id)


def flatten(state: object) -> Flat[ArraySource]:
    """Take a state apart as a coordinator of processes does: each array in C order."""
    return flatten_state(state, describe=_in_c_order, encode=codecs.encode)


def _in_c_order(value: object) -> ArraySource | None:
    """An array of which processes hold shards, whatever the order of its memory in one of them."""
    source = arrays.describe(value)
    return source and replace(source, order=None)


def _put_all(url: str, plan: Plan, ranks: Sequence[Rank], *, processes: bool) -> Iterator[Stored]:
    if not processes:
        yield from (put(ckptstore.open(url), plan, rank) for rank in ranks)
        return
    with ProcessPoolExecutor(len(ranks), get_context("spawn")) as pool:
        yield from pool.map(_in_process, *zip(*((url, plan, rank) for rank in ranks), strict=True))


def _in_process(url: str, plan: Plan, rank: Rank) -> Stored:
    return put(ckptstore.open(url), plan, rank)


def split(
    flat: Mapping[str, Any], grids: Mapping[str, Shape], counts: Mapping[str, Shape], ranks: int
) -> list[Rank]:
    """Deal a state's arrays to ranks. counts: in how many shards each array is cut along each axis.

    Shards go round; each is a copy of its own, as the memory of another process is.
    """
    made = [Rank() for _ in range(ranks)]
    for path, array in flat.items():
        if path not in grids:
            made[0].held[path] = array
            continue
        sides = [
            _bounds(length, step, count)
            for length, step, count in zip(array.shape, grids[path], counts[path], strict=True)
        ]
        boxes = list(itertools.product(*sides))
        for number, box in enumerate(boxes):
            rank = made[number % ranks]
            if path in rank.held:  # a rank holds one shard of an array
                made.append(rank := Rank())
            part = array[(*(slice(*side) for side in box), ...)]  # an array, also of 0 dimensions
            rank.held[path] = part.clone() if hasattr(part, "clone") else part.copy()
            rank.corners[path] = tuple(begin for begin, _ in box)
    return made


def _bounds(length: int, step: int, count: int) -> list[tuple[int, int]]:
    """Where shards of whole chunks begin and end along an axis."""
    chunks = -(-length // step)
    size = max(1, -(-chunks // count)) * step
    return [(begin, min(begin + size, length)) for begin in range(0, length, size)] or [(0, 0)]
