"""What verify reads and holds grows with what is stored, and not with how often it is shared."""

from __future__ import annotations

import random
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ckptstore.storage import Listed
from ckptstore.store.objects import ObjectStore, digest_of
from ckptstore.verify.findings import Findings
from ckptstore.verify.inventory import Inventory
from tests.helpers.counting_storage import CountingStorage, repository

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ckptstore.digest import Digest

ARRAYS = 400  # on several pages
BYTES_MAX = 91  # of memory for each object that is stored; of 50,000, each has a bucket of its own


def state(step: int) -> dict[str, Any]:
    small = {f"{number:04}": np.full(3, number) for number in range(ARRAYS)}
    return {"small": small, "large": np.arange(200_000), "step": step}


def storage_of(checkpoints: int, *, zarr: bool = False) -> CountingStorage:
    """A storage with checkpoints that share all pages and chunks."""
    storage = CountingStorage()
    repo = repository(storage)
    if zarr:
        import zarr as zarr_python

        for number in range(checkpoints):
            with repo.session() as session:
                group = zarr_python.open_group(session.store)
                if not number:
                    for name in range(30):
                        group[f"a{name}"] = np.arange(40_000)
                group.attrs["step"] = number
                session.commit(step=number)
    else:
        for number in range(checkpoints):
            repo.commit(state(number), step=number)
    storage.forget()
    return storage


def test_each_checkpoint_costs_its_manifest_and_structure_whatever_it_shares() -> None:
    few, many = storage_of(3), storage_of(33)
    for storage in (few, many):
        assert repository(storage).verify().ok
    assert many.calls.total() - few.calls.total() <= 30 * 5
    own = {key for key, count in many.reads.items() if count > 3}
    assert not own, "no object is read more than for its bytes, its content and its bundle"


def test_pages_of_zarr_nodes_are_read_once_too() -> None:
    few, many = storage_of(3, zarr=True), storage_of(23, zarr=True)
    for storage in (few, many):
        assert repository(storage).verify().ok
    assert many.calls.total() - few.calls.total() <= 20 * 14
    assert max(many.reads.values()) <= 4


@pytest.mark.seeded
def test_a_verify_that_walks_a_page_for_each_checkpoint_is_caught_by_these_tests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A seeded bug: nothing is remembered of a page."""
    from ckptstore.verify.references import _Pages

    real = _Pages.number

    def forgetful(self: Any, ref: Any) -> int:
        self._numbers = type(self._numbers)()
        return real(self, ref)

    monkeypatch.setattr(_Pages, "number", forgetful)
    with pytest.raises(AssertionError):
        test_each_checkpoint_costs_its_manifest_and_structure_whatever_it_shares()


def test_users_of_what_is_wrong_are_found_with_each_page_read_once_more() -> None:
    storage = storage_of(33)
    large = max((key for key in storage._data if key.startswith("objects/")), key=_size(storage))
    del storage._data[large]
    report = repository(storage).verify()
    (problem,) = report.problems
    assert (problem.key, len(problem.checkpoints)) == (large, 33)
    assert max(count for key, count in storage.reads.items() if "objects/" in key) <= 4


def test_memory_is_bounded_for_each_object() -> None:
    count = 50_000
    chance = random.Random(3)
    inventory = Inventory(ObjectStore(CountingStorage()), Findings())

    def listing() -> Iterator[tuple[Digest, Listed]]:
        for _ in range(count):
            key = f"objects/{chance.randrange(256):02x}/{chance.randbytes(31).hex()}"
            digest = digest_of(key)
            assert digest
            yield digest, Listed(key, 1000, 0.0)

    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    inventory.add(listing())
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inventory.count == count
    assert (after - before) / count < BYTES_MAX


def _size(storage: CountingStorage) -> Any:
    return lambda key: len(storage._data[key])
