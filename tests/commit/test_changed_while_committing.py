"""An object has its digest even if the memory changes during the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

import ckptstore
from ckptstore.storage import LocalStorage

if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Buffer

    from ckptstore.storage.protocol import Staged


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """An array that changes between hashing and writing, as by another thread's training."""
    array = np.ones(100_000, dtype=np.float32)
    stage = LocalStorage.stage

    def stage_while_training(self: LocalStorage, data: Buffer, **options: Any) -> Staged:
        array[5] += 1
        return stage(self, data, **options)

    monkeypatch.setattr(LocalStorage, "stage", stage_while_training)
    return array


def test_an_array_that_changes_during_its_commit_is_refused_and_nothing_wrong_is_stored(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = ckptstore.init(tmp_path / "store")
    with pytest.raises(ckptstore.InvalidInputError, match="changed while it was being committed"):
        repo.commit({"weights": weights})
    monkeypatch.undo()
    assert repo.branches() == {}
    assert repo.verify().ok
    repo.commit({"weights": weights})
    assert np.array_equal(repo.checkout()["weights"], weights)


def test_a_zarr_chunk_that_changes_while_it_is_set_is_refused_and_nothing_wrong_is_stored(
    tmp_path: Path, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zarr-python hands over an uncompressed chunk as it lies in the array of whoever writes it."""
    repo = ckptstore.init(tmp_path / "store")
    with repo.session() as session:
        array = zarr.create_array(
            session.store, name="w", shape=100_000, chunks=100_000, dtype="f4", compressors=None
        )
        with pytest.raises(ckptstore.InvalidInputError, match="changed while it was being"):
            array[:] = weights
        monkeypatch.undo()
        array[:] = weights
        session.commit()
    assert np.array_equal(repo.checkout()["w"], weights)
    assert repo.verify().ok


def test_a_chunk_that_is_copied_is_stored_as_it_was_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory changes after each piece was copied and hashed, and before it is written."""
    array = np.arange(1 << 20, dtype=np.float32)
    stage, copied = LocalStorage.stage, []

    def stage_while_training(self: LocalStorage, data: Buffer, **options: Any) -> Staged:
        seen = options.get("seen")

        def seen_then_trained(piece: memoryview) -> None:
            seen(piece)
            copied.append(len(piece))
            array[...] += 1

        return stage(self, data, **({"seen": seen_then_trained} if seen else {}))

    monkeypatch.setattr(LocalStorage, "stage", stage_while_training)
    repo = ckptstore.init(tmp_path / "store", chunk_size=1 << 19)
    try:
        repo.commit({"weights": array})
    except ckptstore.InvalidInputError:  # the first chunks were hashed and then written
        assert repo.branches() == {}
    assert sum(copied) >= 4 << 19
    assert repo.verify().ok
