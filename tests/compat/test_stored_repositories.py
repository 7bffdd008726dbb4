"""Repositories of earlier versions stay readable. If this fails, see data/README.md."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.core.buffer import cpu

import ckptstore
from ckptstore.retention import MaxToKeep
from tests.compat.data.make_v1 import make
from tests.compat.data.make_v1_branches import HIERARCHY, state
from tests.compat.make_example import files
from tests.compat.neutral import neutral
from tests.compat.plain_reader import PlainReader

DATA = Path(__file__).parent / "data"
V1 = DATA / "v1" / "store"
BRANCHES = DATA / "v1_branches" / "store"


@pytest.fixture
def branches(tmp_path: Path) -> Path:
    """A copy of the repository with expired checkpoints, a gc that died, and a Zarr hierarchy."""
    shutil.copytree(BRANCHES, tmp_path / "store")
    return tmp_path / "store"


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


def test_the_same_commits_still_make_the_same_objects(tmp_path: Path) -> None:
    """A commit to a repository of an earlier version must share what is in it already.

    Manifests differ in the branch and the elapsed time that ADR 0021 and 0043 added, and so in
    their ids.
    """
    make(tmp_path)
    made, stored = files(tmp_path / "store"), files(V1)
    objects = {key for key in stored if key.startswith("objects/")}
    assert {key for key in made if key.startswith("objects/")} == objects
    assert [key for key in (*objects, "ckptstore.json") if made[key] != stored[key]] == []
    assert _manifests(made) == _manifests(stored)
    states = json.loads((tmp_path / "expected.json").read_bytes())["states"].values()
    expected = json.loads((DATA / "v1" / "expected.json").read_bytes())["states"].values()
    assert sorted(map(json.dumps, states)) == sorted(map(json.dumps, expected))


def _manifests(found: dict[str, bytes]) -> list[str]:
    """The manifests among some files, without what tells the versions apart."""
    documents = [json.loads(data) for key, data in found.items() if key.startswith("checkpoints/")]
    for document in documents:
        document.pop("branch", None)
        document.pop("elapsed", None)
        document["parents"] = len(document["parents"])
    return sorted(json.dumps(document, sort_keys=True) for document in documents)


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


def _expected_branches() -> Any:
    return json.loads((DATA / "v1_branches" / "expected.json").read_bytes())


def test_branches_history_and_zarr_of_an_earlier_version_are_read(branches: Path) -> None:
    expected, repo = _expected_branches(), ckptstore.open(branches)
    assert {name: found.id for name, found in repo.branches().items()} == expected["heads"]
    assert {name: found.id for name, found in repo.tags().items()} == expected["tags"]
    for id, form in expected["states"].items():
        assert neutral(repo.checkout(id)) == form
    assert sorted(found.id for found in repo.log() if found.expired) == expected["expired"]
    assert {found.branch for found in repo.log()} == {None}
    assert repo.resolve("task~1").meta["seed"]["rename"]
    assert repo.resolve("curves").array("curves/loss")[2:].tolist() == [3, 4, 5, 6]
    assert repo.retention() == MaxToKeep(2)
    assert repo.verify().problems == ()
    before = files(BRANCHES)
    assert files(branches) == before


def test_the_plain_reader_reads_branches_and_zarr_of_an_earlier_version() -> None:
    expected, reader = _expected_branches(), PlainReader(BRANCHES)
    assert reader.newest()["heads"] == expected["heads"]
    curves = reader.manifest(expected["heads"].pop("curves"))
    assert reader.values(curves) == HIERARCHY
    for id in expected["heads"].values():
        assert neutral(reader.state(reader.manifest(id))) == expected["states"][id]


@pytest.mark.parametrize("first", ["commit", "gc", "session", "branch"])
def test_the_gc_of_an_earlier_version_that_died_is_finished(branches: Path, first: str) -> None:
    """Each of these meets what it condemned, and must delete that before it goes on."""
    expected, repo = _expected_branches(), ckptstore.open(branches)
    present = {digest for digest, _ in repo._objects.list()}
    assert set(expected["condemned"]) <= present
    match first:
        case "commit":
            made = repo.commit(state(5), step=7)
            assert made.parents == (expected["heads"]["main"],)
            assert made.branch == "main"
        case "gc":
            repo.gc(MaxToKeep(1))
        case "session":
            with repo.session("curves") as session:
                session.store.set_sync("curves/loss/c/1", cpu.Buffer.from_bytes(bytes(4)))
                session.commit()
            repo.gc(MaxToKeep(2))
        case "branch":
            repo.branch("again", at="task", exclude="nothing/**")
            repo.gc(MaxToKeep(2))
    assert repo._oplog.newest().condemned is None
    assert repo.verify().problems == ()
    kept = {digest for digest, _ in repo._objects.list()}
    assert first == "commit" or not kept & set(expected["condemned"])
    assert neutral(repo.checkout(expected["tags"]["lowest"])) == neutral(state(4))


def test_what_later_commits_do_on_the_branches_of_an_earlier_version(branches: Path) -> None:
    """The chunks of the checkpoints before are shared, and history goes on through them."""
    repo = ckptstore.open(branches)
    made = repo.commit({"model": state(6)["model"]}, branch="task", step=2)
    assert made.new_bytes < 3_000
    assert [found.branch for found in repo.log("task", limit=3)] == ["task", None, None]
    found = repo.diff("main", "task")
    assert [change.path for change in found.arrays] == []
    assert repo.branch("fine", at="lowest", include="model/**").branch == "fine"
    assert neutral(repo.checkout("fine")) == neutral({"model": state(4)["model"]})
    assert repo.verify().problems == ()
