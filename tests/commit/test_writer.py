"""A commit stores each content once, only changes, in objects of the expected sizes."""

from __future__ import annotations

import gc
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import CorruptError, StorageError
from ckptstore.commit import put
from ckptstore.digest import Digest
from ckptstore.documents.page import SMALL_BYTES, Page
from ckptstore.store.objects import ObjectStore, key_of
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 64 << 10


class Watched:
    """A repository in memory that tells what each commit put."""

    def __init__(self) -> None:
        self.repo = ckptstore.init("memory://", chunk_size=CHUNK)
        self.storage = self.repo._storage

    def objects(self) -> dict[str, int]:
        return {item.key: item.size for item in self.storage.list("objects/")}

    def commit(self, state: Any, **options: Any) -> dict[str, int]:
        """The objects that were not there before, with their sizes."""
        before = self.objects()
        made = self.repo.commit(state, **options)
        after = self.objects()
        assert {key: after[key] for key in before} == before
        new = {key: size for key, size in after.items() if key not in before}
        assert made.new_bytes == sum(new.values())
        assert difference(state, self.repo.checkout(made.id)) is None
        return new


@pytest.mark.parametrize("nbytes", [1, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3 * CHUNK])
@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["numpy", "torch"])
def test_arrays_around_the_limit_of_the_small_ones_come_back(nbytes: int, make: Any) -> None:
    watched = Watched()
    array = make(nbytes, dtype=np.uint8 if make is np.zeros else torch.uint8)
    array[-1] = 1
    watched.commit({"a": array, "b": array[:1]})
    info = watched.repo.resolve("main").arrays[0]
    assert info.chunk_count == -(-nbytes // CHUNK)
    assert info.nbytes == nbytes


def test_an_array_is_cut_into_chunks_that_are_objects_of_their_own() -> None:
    watched = Watched()
    array = np.arange(5 * CHUNK // 8 + 100)
    watched.commit({"a": array})
    data = array.tobytes()
    for start in range(0, len(data), CHUNK):
        part = data[start : start + CHUNK]
        assert watched.storage.get(key_of(Digest.of(part)), bytes_max=CHUNK) == part


def test_the_same_again_stores_nothing_also_on_another_branch() -> None:
    watched = Watched()
    state = {"a": np.arange(100_000), "b": torch.ones(5), "c": 1}
    assert watched.commit(state)
    assert watched.commit(state) == {}
    assert watched.commit(state, branch="other") == {}
    assert watched.commit(dict(state), step=5, metrics={"m": 1}) == {}


def test_one_changed_element_stores_its_chunk_and_its_page() -> None:
    watched = Watched()
    state = {"a": np.arange(100_000), "b": torch.ones(5), "c": 1}
    watched.commit(state)
    state["a"] = state["a"].copy()
    state["a"][50_000] = 0
    sizes = sorted(watched.commit(state).values())
    assert len(sizes) == 2
    assert sizes[1] == CHUNK
    # A changed small array stores its bundle and its page; a changed value only the structure.
    state["b"] = torch.zeros(5)
    assert min(watched.commit(state).values()) == 20
    assert len(watched.commit({**state, "c": 2})) == 1


def test_a_chunk_that_was_expected_to_be_new_and_is_not_is_stored_once(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    state = {"x": np.arange(8 * CHUNK // 8)}
    repo.commit(state)
    before = {path for path in (tmp_path / "store/objects").rglob("*") if path.is_file()}
    state["x"][: 4 * CHUNK // 8] += 1
    made = repo.commit(state)
    after = {path for path in (tmp_path / "store/objects").rglob("*") if path.is_file()}
    assert len([path for path in after - before if path.stat().st_size == CHUNK]) == 4
    assert made.new_bytes == sum(path.stat().st_size for path in after - before)
    left = [path.name for path in (tmp_path / "store/tmp").iterdir()]
    assert all(name.startswith("reserve-") for name in left)
    assert difference(state, repo.checkout()) is None


def test_a_copy_is_dropped_when_nothing_tells_whether_it_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=CHUNK)
    copied: set[Digest] = set()
    stage_copy, has = ObjectStore.stage_copy, ObjectStore.has

    def noted(objects: ObjectStore, data: Any) -> Any:
        staged = stage_copy(objects, data)
        copied.add(staged.digest)
        return staged

    def fail_for_copies(objects: ObjectStore, digest: Digest, *, size: int) -> bool:
        if digest in copied:
            raise StorageError("a disk that fails")
        return has(objects, digest, size=size)

    monkeypatch.setattr(ObjectStore, "stage_copy", noted)
    monkeypatch.setattr(ObjectStore, "has", fail_for_copies)
    with pytest.raises(StorageError, match="a disk that fails"):
        repo.commit({"x": np.arange(8 * CHUNK // 8)})
    assert copied
    left = [path.name for path in (tmp_path / "store/tmp").iterdir()]
    assert all(name.startswith("reserve-") for name in left)


def test_one_content_under_many_names_is_stored_once() -> None:
    watched = Watched()
    large, small = torch.arange(50_000.0), torch.arange(100.0)
    state = {"tied": [large, large], "equal": large.clone(), "numpy": large.numpy().copy()}
    state |= {f"small{n}": small.clone() for n in range(3)}
    sizes = watched.commit(state).values()
    assert sum(sizes) < large.nbytes + 3 * small.nbytes + 4000


def test_an_array_in_front_leaves_most_pages_as_they_are() -> None:
    watched = Watched()
    state = {f"layer.{n:04}": np.full(4, n) for n in range(1000)}
    pages = len(watched.repo.commit(state)._manifest.pages)
    assert pages >= 4
    new = watched.commit({"a": np.ones(1), **state})
    changed = {ref.digest for ref in watched.repo.resolve("main")._manifest.pages}
    kept = changed & {ref.digest for ref in watched.repo.resolve("main~1")._manifest.pages}
    assert len(kept) >= pages - 2
    assert len(new) <= 2 * 3 + 1  # a page and its bundle for each that changed, and the structure


def test_what_was_damaged_in_the_parent_is_stored_again_whole() -> None:
    watched = Watched()
    state = {"a": np.arange(100_000), "b": np.ones(3)}
    made = watched.repo.commit(state)
    page = key_of(made._manifest.pages[0].digest)
    watched.storage.put(page, b"x" * (watched.storage.size(page) or 0))
    with pytest.raises(CorruptError):
        ckptstore.open(watched.repo.url).checkout()
    fresh = ckptstore.open(watched.repo.url)
    fresh.commit(state)
    assert difference(state, fresh.checkout()) is None


def test_a_small_array_is_read_alone_from_its_bundle() -> None:
    """Damage beside it does not matter then; to all together it does."""
    watched = Watched()
    state = {f"{n}": np.full(1000, n) for n in range(10)}
    made = watched.repo.commit(state)
    page = watched.repo._catalog.page(made._manifest.pages[0].digest)
    assert page.bundle is not None
    data = bytearray(watched.storage.get(key_of(page.bundle.digest), bytes_max=1 << 20))
    data[0] ^= 1
    watched.storage.put(key_of(page.bundle.digest), data)
    found = watched.repo.checkout(include="7")
    assert difference({"7": state["7"]}, found) is None
    for include in ("0", None):
        with pytest.raises(CorruptError, match="is damaged"):
            watched.repo.checkout(include=include)


def test_a_state_of_thousands_of_small_arrays_makes_few_objects() -> None:
    watched = Watched()
    state = {str(n): torch.full((n % 40,), n) for n in range(3000)}
    assert len(watched.commit(state)) < 3000 / 25


def test_a_commit_opens_each_file_and_each_folder_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond what its documents need, and some folders that threads open at the same time."""
    repo = ckptstore.init(tmp_path / "store")
    for number in range(256):
        (tmp_path / "store/objects" / f"{number:02x}").mkdir(parents=True)
    state = {f"w{number}": np.full(16 << 10, number, np.float32) for number in range(50)}
    opened: list[str] = []

    def noted(path: str, *arguments: Any, call: Any = os.open, **folder: Any) -> int:
        opened.append(path)
        return int(call(path, *arguments, **folder))

    monkeypatch.setattr(os, "open", noted)
    repo.commit(state)
    assert 100 < len(opened) < 2 * len(state) + 60


def test_python_collects_again_while_the_error_of_a_commit_is_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(page: Page) -> bytes:
        raise MemoryError

    monkeypatch.setattr(Page, "encode", fail)
    with pytest.raises(MemoryError) as held:
        ckptstore.init("memory://").commit({"x": np.ones(3)})
    assert held.tb
    assert gc.isenabled()


def test_bundles_whose_writing_is_slow_are_not_overwritten_by_the_next_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slowly(self: ObjectStore, digest: Digest, data: Any, *, is_shared: bool = False) -> Any:
        time.sleep(0.02)
        return stage(self, digest, data, is_shared=is_shared)

    stage = ObjectStore.stage
    monkeypatch.setattr(ObjectStore, "stage", slowly)
    monkeypatch.setattr(put, "RING_BYTES", 0)
    state = {str(number): np.full(50, number) for number in range(2000)}
    repository = ckptstore.init("memory://")
    repository.commit(state)
    assert repository.verify().ok
    assert difference(state, repository.checkout("main")) is None
