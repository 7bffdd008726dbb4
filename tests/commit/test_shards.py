"""Commits by several processes, each of which holds shards of arrays, cut anywhere."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ckptstore
from ckptstore import ConflictError, InvalidInputError
from ckptstore.arrays import frameworks
from ckptstore.checkout.boxes import Wanted, read_boxes
from ckptstore.commit.committer import Committer
from ckptstore.commit.grid import grid_of
from ckptstore.commit.shards import Shard, put_shards
from ckptstore.documents.boxes import Box
from ckptstore.documents.dtypes import ITEM_BYTES
from ckptstore.documents.facts import Facts
from ckptstore.documents.nodes import ArrayNode, DictNode
from ckptstore.retention import MaxToKeep
from tests.helpers.cuts import mesh, partitions, shapes

DTYPES = {"uint8": torch.uint8, "float32": torch.float32, "bfloat16": torch.bfloat16}


def committer(repo: ckptstore.Repository) -> Committer:
    return repo._committer()


def numbered(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    size = int(np.prod(shape))
    return (torch.arange(size) % 251).to(DTYPES[dtype]).reshape(shape)


class Ranks:
    """What several processes would do, in this one."""

    def __init__(self, repo: ckptstore.Repository, count: int) -> None:
        self.repo, self.count = repo, count
        self.committer = committer(repo)
        self.begun = self.committer.begin("main")
        self.shards: list[list[Shard]] = [[] for _ in range(count)]
        self.nodes: dict[str | int, Any] = {}

    def hold(self, name: str, array: torch.Tensor, boxes: list[Box]) -> None:
        """Deal the boxes of an array to the ranks."""
        dtype = str(array.dtype).removeprefix("torch.")
        shape = tuple(array.shape)
        grid = grid_of(shape, boxes, item_bytes=ITEM_BYTES[dtype], chunk_bytes=1 << 16)
        self.nodes[name] = ArrayNode("tensor", name)
        for number, box in enumerate(boxes):
            part = array[box.within(Box((0,) * len(shape), shape))] if shape else array
            source = frameworks.describe(part.clone())
            assert source is not None
            self.shards[number % self.count].append(
                Shard(path=name, shape=shape, corner=box.corner, source=source, grid=grid)
            )

    def put(self) -> list[Any]:
        """The results of all ranks, as the others get them."""
        stored = [
            put_shards(
                shards,
                tied={},
                catalog=self.committer.catalog,
                parent=self.begun.head,
                chunk_bytes=1 << 16,
            )
            for shards in self.shards
        ]
        sent = [pickle.loads(pickle.dumps(one)) for one in stored]
        assert sent == stored
        return sent

    def commit(self, stored: list[Any] | None = None) -> ckptstore.Checkpoint:
        id, _ = self.committer.commit_shards(
            DictNode(self.nodes),
            self.put() if stored is None else stored,
            branch="main",
            facts=Facts(),
            retry=False,
            begun=self.begun,
        )
        return self.repo.resolve(id)


@given(st.data())
def test_arrays_cut_anywhere_come_back_whole(data):
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    ranks = Ranks(repo, data.draw(st.integers(1, 4)))
    state = {}
    for number in range(data.draw(st.integers(1, 3))):
        shape = data.draw(shapes())
        state[f"a{number}"] = numbered(shape, data.draw(st.sampled_from(list(DTYPES))))
        ranks.hold(f"a{number}", state[f"a{number}"], data.draw(partitions(shape)))
    made = ranks.commit()
    found = repo.checkout()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], array) for name, array in state.items())
    assert not repo.diff(made.id, state, numeric=True).arrays
    assert repo.verify().ok


@given(st.data())
def test_boxes_are_read_as_they_are_cut(data):
    """Of any grid, and with few bytes besides."""
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    shape = data.draw(shapes())
    array = numbered(shape, data.draw(st.sampled_from(list(DTYPES))))
    if data.draw(st.booleans()):
        repo.commit(
            {
                "a": array.permute(*reversed(range(len(shape))))
                .contiguous()
                .permute(*reversed(range(len(shape))))
            }
        )
    else:
        ranks = Ranks(repo, 1)
        ranks.hold("a", array, data.draw(partitions(shape)))
        ranks.commit()
    whole = torch.zeros_like(array)
    side = repo._side()
    pages = list(side.catalog.pages(side.catalog.manifest(side.oplog.newest().heads["main"])))
    everything = Box((0,) * len(shape), shape)
    wanted = [Wanted(box, whole[box.within(everything)]) for box in data.draw(partitions(shape))]
    read_boxes(pages, {"a": wanted}, objects=side.objects)
    assert torch.equal(whole, array)


def test_no_byte_is_put_twice_and_an_unchanged_array_is_not_put_again():
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    array = torch.rand(512, 512)

    def save(*counts: int) -> int:
        ranks = Ranks(repo, 4)
        ranks.hold("a", array, mesh((512, 512), counts))
        return ranks.commit().new_bytes

    assert save(4, 1) < array.nbytes + 10_000
    assert save(4, 1) == 0
    assert save(2, 1) == 0  # by half as many


def test_what_a_rank_sends_has_few_bytes_for_each_chunk():
    repo = ckptstore.init("memory://")
    ranks = Ranks(repo, 1)
    ranks.hold("w", numbered((2_000, 1 << 14), "float32"), [Box((0, 0), (2_000, 1 << 14))])
    (stored,) = ranks.put()
    assert len(stored.chunks) >= 2_000
    assert len(pickle.dumps(stored)) < 500 + 40 * len(stored.chunks)  # a digest has 32


def test_a_rank_that_did_not_put_is_noticed():
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    ranks = Ranks(repo, 2)
    ranks.hold("large", torch.rand(512, 512), mesh((512, 512), (2, 1)))
    stored = ranks.put()
    with pytest.raises(InvalidInputError, match="No process has put chunk 8 of the 16 of 'large'"):
        ranks.commit(stored[:1])
    ranks = Ranks(repo, 2)
    ranks.hold("small", torch.rand(8), mesh((8,), (2,)))
    stored = ranks.put()
    with pytest.raises(InvalidInputError, match=r"of 'small', which has 8 elements.* have put 4"):
        ranks.commit(stored[:1])
    assert not repo.ref_names()[0]


def test_ranks_that_hold_different_arrays_are_noticed():
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    one, other = Ranks(repo, 1), Ranks(repo, 1)
    one.hold("a", torch.rand(8), mesh((8,), (1,)))
    other.hold("a", torch.rand(9), mesh((9,), (1,)))
    with pytest.raises(InvalidInputError, match="different arrays as 'a'"):
        one.commit([*one.put(), *other.put()])


@pytest.mark.parametrize("is_there", [False, True], ids=["deleted", "put again"])
def test_what_a_gc_condemned_since_the_ranks_looked(is_there):
    """Ranks rely on objects of a checkpoint that a gc gives up before they are done."""
    repo = ckptstore.init("memory://", chunk_size=1 << 16)
    old, new = {"a": torch.rand(512, 512)}, {"a": torch.rand(8)}
    repo.commit(old)
    repo.commit(new)
    ranks = Ranks(repo, 2)
    ranks.hold("a", old["a"], mesh((512, 512), (2, 1)))
    stored = ranks.put()
    assert sum(one.new_bytes for one in stored) == 0  # all is there still
    repo.gc(MaxToKeep(1), grace=0)
    if is_there:
        repo.commit(old, branch="other")
        assert torch.equal(repo.checkout(ranks.commit(stored).id)["a"], old["a"])
    else:
        with pytest.raises(ConflictError, match=r"A gc has deleted .* Save it once more"):
            ranks.commit(stored)
        assert torch.equal(repo.checkout()["a"], new["a"])
    assert repo.verify().ok
