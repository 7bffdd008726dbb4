"""Repositories that earlier versions wrote stay readable. README.md in data/ says what to do when this fails."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptstore
from tests.compat.data.make_v1 import make
from tests.compat.make_example import files
from tests.compat.neutral import neutral
from tests.compat.plain_reader import PlainReader

DATA = Path(__file__).parent / "data"
V1 = DATA / "v1" / "store"
# torch says so of complex32, once a process
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@pytest.fixture(scope="module")
def expected() -> Any:
    return json.loads((DATA / "v1" / "expected.json").read_bytes())


def test_ckptstore_reads_version_1(expected: Any) -> None:
    repo = ckptstore.open(V1)
    assert repo.verify().problems == ()
    assert {name: found.id for name, found in repo.branches().items()} == expected["heads"]
    assert {name: found.id for name, found in repo.tags().items()} == expected["tags"]
    for id, form in expected["states"].items():
        assert neutral(repo.checkout(id)) == form


def test_the_facts_of_version_1_are_as_they_were() -> None:
    found = ckptstore.open(V1).resolve("v1.0")
    assert (found.step, found.message, found.parents) == (1, "first \u2713", ())
    assert (
        repr(dict(found.metrics))
        == "{'acc': 0.5, 'best': inf, 'count': 3, 'loss': nan, 'low': -inf}"
    )
    assert found.meta == {"run": "r1", "seed": 1, "rate": 1e-05, "tags": [None, True, {"a": 1.0}]}
    assert found.created.isoformat() == "2026-01-01T00:00:00+00:00"


def test_the_plain_reader_reads_version_1(expected: Any) -> None:
    reader = PlainReader(V1)
    assert reader.newest()["heads"] == expected["heads"]
    for id, form in expected["states"].items():
        assert neutral(reader.state(reader.manifest(id))) == form


def test_a_repository_of_version_1_takes_new_commits(tmp_path: Path) -> None:
    shutil.copytree(V1, tmp_path / "store")
    repo = ckptstore.open(tmp_path / "store")
    before = repo.resolve("main")
    made = repo.commit(repo.checkout("main"), step=3)
    assert made.parents == (before.id,)
    assert made.new_bytes == 0, (
        "the same state makes the same objects, whichever version wrote them"
    )
    assert repo.undo().description == f"committed {made.id[:8]} to main"
    assert repo.resolve("main") == before
    assert repo.verify().ok


def test_the_same_commits_still_make_the_same_bytes(tmp_path: Path) -> None:
    """Else what a new version writes would not be found in what an old one wrote, and everything stored again."""
    make(tmp_path)
    ours, theirs = files(tmp_path / "store"), files(V1)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if ours[key] != theirs[key] and not key.startswith("ops/")] == []
    assert (tmp_path / "expected.json").read_bytes() == (DATA / "v1" / "expected.json").read_bytes()


def test_every_file_of_the_stored_repositories_is_kept_by_git() -> None:
    root = DATA.parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        pytest.skip("This is not a clone, or git is missing.")
    listed = [str(path) for path in DATA.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    found = subprocess.run(
        ["git", "check-ignore", "--no-index", *listed], cwd=root, capture_output=True, text=True
    )
    assert found.stdout == ""


def test_small_parts_of_a_bundle_are_read_by_range() -> None:
    """One array of many: the path that takes the small array's own digest."""
    found = ckptstore.open(V1).checkout("v1.0", include="optimizer/state/0/step")
    assert np.float32(found["optimizer"]["state"][0]["step"]) == 3
