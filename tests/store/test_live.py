"""The live checkpoints: what is reachable among them, whatever lies between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptstore.digest import Digest
from ckptstore.documents.expiry import Expiry
from ckptstore.documents.manifest import Manifest
from ckptstore.documents.operation import Condemned
from ckptstore.errors import StorageError
from ckptstore.history import ancestors
from ckptstore.storage import MemoryStorage
from ckptstore.store.catalog import Catalog, key_of
from ckptstore.store.live import LiveCheckpoints
from ckptstore.store.notes import Notes
from ckptstore.store.objects import ObjectStore
from ckptstore.store.oplog import Oplog

EMPTY = Digest.of(b"")


class Graph:
    """Checkpoints without content, of any number of parents."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.oplog = Oplog(self.storage)
        self.catalog = Catalog(self.storage, ObjectStore(self.storage))
        self.ids: list[Digest] = []

    def live(self) -> LiveCheckpoints:
        notes = Notes(self.storage, self.oplog.between)
        live = LiveCheckpoints(self.oplog, self.catalog, notes)
        live.update(self.oplog.newest())
        return live

    def add(self, parents: list[int]) -> None:
        """Add a checkpoint, and a branch at it."""
        number = len(self.ids)
        made_from = tuple(dict.fromkeys(self.ids[parent % number] for parent in parents if number))
        manifest = Manifest(pages=(), structure=EMPTY, parents=made_from, created=number)
        self.ids.append(id := self.catalog.store(manifest))
        self.oplog.append(lambda now: replace(now, heads={**now.heads, f"b{number}": id}))

    def expire(self, number: int, live: LiveCheckpoints | None) -> None:
        """Expire a checkpoint, with its ancestors on record if a handle knows them."""
        id = self.ids[number % len(self.ids)]
        if not self.catalog.is_live(id):
            return
        found = None
        if live:
            live.update(self.oplog.newest())
            found = live.before(live.manifests[id].parents, without=[id], reads_max=10)
        condemned = Condemned(checkpoints=(id,), why="Because.", owner="o", since=1)
        self.oplog.append(
            lambda now: replace(
                now,
                heads={name: head for name, head in now.heads.items() if head != id},
                condemned=replace(condemned, since=now.seq + 1),
            )
        )
        self.catalog.expire({id: Expiry(time=1, why="Because.", ancestors=found)})
        self.oplog.append(lambda now: replace(now, condemned=None))


steps = st.tuples(
    st.sampled_from(["add", "add", "expire", "expire unrecorded", "look"]),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
)


@pytest.mark.property
@given(st.lists(steps, max_size=40))
def test_the_live_ones_that_are_reachable_are_those_of_a_walk_over_everything(
    actions: list[tuple[str, list[int]]],
) -> None:
    """For a handle that follows the operations, and for a fresh one."""
    graph = Graph()
    follower = graph.live()
    for action, numbers in actions:
        if action == "add":
            graph.add(numbers)
        elif action == "look":
            follower.update(graph.oplog.newest())
        elif graph.ids:
            graph.expire(numbers[0], follower if action == "expire" else None)
    follower.update(graph.oplog.newest())
    expected = {
        start: {
            id for id, _ in ancestors([start], graph.catalog.lookup) if graph.catalog.is_live(id)
        }
        for start in graph.ids
        if graph.catalog.is_live(start)
    }
    for live in (follower, graph.live()):
        assert {start: {id for id, _ in live.reached([start])} for start in expected} == expected
        assert live.manifests.keys() == expected.keys()
        assert not live.missing


def line(count: int) -> Graph:
    graph = Graph()
    for number in range(count):
        graph.add([number - 1] if number else [])
    return graph


def test_a_missing_manifest_cuts_a_history_until_it_is_restored() -> None:
    graph = line(4)
    middle, key = graph.ids[1], key_of(graph.ids[1])
    data = graph.storage.get(key, bytes_max=1000)
    graph.storage.delete([key])
    live = graph.live()
    assert [id for id, _ in live.reached([graph.ids[3]])] == [graph.ids[3], graph.ids[2]]
    assert live.missing == {middle}
    assert live.before([middle], reads_max=10) is None
    graph.storage.put(key, data)
    live.reconcile(graph.oplog.newest(), graph.catalog.live())
    assert len(list(live.reached([graph.ids[3]]))) == 4
    assert not live.missing


@pytest.mark.parametrize("way", ["update", "reconcile"])
@pytest.mark.parametrize("reads", range(4))
def test_an_error_while_manifests_are_read_leaves_none_without_its_parents(
    monkeypatch: pytest.MonkeyPatch, way: str, reads: int
) -> None:
    """The next update would take the child for known, and its parents for expired."""
    graph = line(2)
    live = graph.live()
    first = len(graph.ids)
    for number in range(4):
        graph.add([first + number - 1])
    refs = {"main": graph.ids[-1]}  # in one operation, as where a branch is made at a checkpoint
    monkeypatch.setattr(
        live._oplog, "between", lambda since, newest: iter([replace(newest, heads=refs)])
    )
    manifest, left = graph.catalog.manifest, iter(range(reads))

    def manifest_with_error(id: Digest) -> Manifest:
        if next(left, None) is None:
            raise StorageError("An error of the disk.")
        return manifest(id)

    newest = graph.oplog.newest()
    acts = {
        "update": lambda: live.update(newest),
        "reconcile": lambda: live.reconcile(newest, graph.catalog.live()),
    }
    with monkeypatch.context() as patch:
        patch.setattr(live._catalog, "manifest", manifest_with_error)
        with pytest.raises(StorageError):
            acts[way]()
    live.update(newest)
    assert live.manifests.keys() == set(graph.ids)


def test_pruned_operations_make_it_list_what_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptstore.store.oplog.KEPT_OPERATIONS", 1)
    monkeypatch.setattr("ckptstore.store.oplog.PRUNE_EVERY", 1)
    graph = line(3)
    live = graph.live()
    graph.expire(1, None)
    graph.add([2])
    live.update(graph.oplog.newest())
    assert [id for id, _ in live.reached([graph.ids[3]])] == [graph.ids[n] for n in (3, 2, 0)]
