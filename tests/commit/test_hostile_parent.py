"""What is committed on top of a forged checkpoint is what comes out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import ckptstore
from tests.helpers.hostile.forge import Forge

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.hostile


def test_a_commit_does_not_rely_on_a_bundle_that_its_parent_lies_about(tmp_path: Path) -> None:
    """The forged page lists the small array as [1, 2]; its bundle holds [6, 6]."""
    mine, lie = np.array([1, 2], np.float32), np.array([6, 6], np.float32)
    forge = Forge(tmp_path / "store", tmp_path / "outside")
    forge.honest(
        arrays=[forge.small(mine.tobytes())],
        page_fields=forge.bundle(lie.tobytes()),
        structure={"dict": [["w", {"ndarray": "w"}]]},
    )
    repo = ckptstore.open(tmp_path / "store")
    for _ in range(2):  # the second has a parent that is ours
        made = repo.commit({"w": mine})
        found = ckptstore.open(tmp_path / "store").checkout(made.id)
        np.testing.assert_array_equal(found["w"], mine)


def test_a_commit_over_an_object_of_the_wrong_size_writes_it_anew(tmp_path: Path) -> None:
    """Something else lies where a chunk of the new checkpoint belongs."""
    array = np.arange(40_000, dtype=np.float32)
    repo = ckptstore.init(tmp_path / "honest")
    repo.commit({"w": array})
    largest = max(
        (tmp_path / "honest" / "objects").rglob("*"), key=lambda path: path.stat().st_size
    )
    planted = tmp_path / "other" / "objects" / largest.parent.name / largest.name
    other = ckptstore.init(tmp_path / "other")
    planted.parent.mkdir(parents=True)
    planted.write_bytes(b"something else")
    made = other.commit({"w": array})
    np.testing.assert_array_equal(other.checkout(made.id)["w"], array)
