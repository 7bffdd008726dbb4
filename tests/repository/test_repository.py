"""The public face: what each verb gives, and what it says when it cannot."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import ckptstore
from ckptstore import ConflictError, ExpiredError, InvalidInputError, NotFoundError
from ckptstore.state import codecs
from ckptstore.store.catalog import EXPIRED, Catalog, key_of

if TYPE_CHECKING:
    from pathlib import Path

    from ckptstore.digest import Digest
    from ckptstore.documents.manifest import Manifest

SMALL_CHUNKS = 64 << 10
NOON = 1_767_268_800.0  # 2026-01-01 12:00 UTC


def memory(clock: float = NOON) -> ckptstore.Repository:
    return ckptstore.init("memory://", chunk_size=SMALL_CHUNKS, clock=lambda: clock)


def test_a_commit_gives_the_facts_of_its_checkpoint() -> None:
    repo = memory()
    first = repo.commit({"w": np.zeros(3)})
    state = {"w": np.zeros(3), "big": torch.zeros(50_000), "empty": np.zeros((0, 2)), "lr": 0.1}
    made = repo.commit(
        state, step=7, metrics={"val_loss": 0.5}, message="so far", meta={"run": ["a", 1]}
    )
    for found in (made, repo.resolve("main"), ckptstore.open(repo.url).resolve(made.id)):
        assert found == made
        assert (found.step, found.metrics, found.message) == (7, {"val_loss": 0.5}, "so far")
        assert (found.parents, found.meta) == ((first.id,), {"run": ["a", 1]})
        assert found.created == datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert not found.expired
        assert (found.array_count, found.array_bytes) == (3, 24 + 200_000)
    # Of the four chunks of zeros three are the same.
    assert 65_536 < made.new_bytes - (200_000 % 65_536) < 65_536 + 3_000
    assert first.parents == ()
    assert first.step is None


def test_a_checkpoint_records_the_branch_it_was_made_on() -> None:
    repo = memory()
    first = repo.commit({"a": np.zeros(3), "b": np.ones(3)})
    assert first.branch == "main"
    assert repo.branch("plain").branch == "main"  # the same checkpoint
    assert repo.commit({"a": np.ones(3)}, branch="plain").branch == "plain"
    assert repo.branch("part", include="a").branch == "part"
    assert repo.resolve("part~1") == first
    with repo.session("curves") as session:
        assert session.commit().branch == "curves"
    repo.delete_branch("plain")
    assert [found.branch for found in ckptstore.open(repo.url).log("part")] == ["part", "main"]


def test_a_retried_commit_keeps_its_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    repo = memory()
    other = ckptstore.open(repo.url)
    stored = Catalog.store

    def late(self: Catalog, manifest: Manifest) -> Digest:
        monkeypatch.setattr(Catalog, "store", stored)
        other.commit({"n": 0}, branch="runs/1")
        return stored(self, manifest)

    monkeypatch.setattr(Catalog, "store", late)
    made = repo.commit({"n": 1}, branch="runs/1", retry=True)
    assert made.parents == (repo.resolve("runs/1~1").id,)
    assert made.branch == "runs/1"


def test_a_checkpoint_lists_its_arrays_and_its_plain_values() -> None:
    state = {
        "w": torch.zeros(5, 10_000, dtype=torch.bfloat16),
        "s": [np.float32(2), (torch.tensor(1), None)],
        "opt": {0: {"lr": 1e-3, "betas": (0.9, float("inf"))}},
        "empty": torch.zeros(0, 3),
        "shape": torch.Size([1, 2]),
    }
    made = memory().commit(state)
    facts = [
        (a.path, a.dtype, a.shape, a.chunk_shape, a.nbytes, a.chunk_count) for a in made.arrays
    ]
    assert facts == [
        ("empty", "float32", (0, 3), (1, 3), 0, 0),
        ("s/1/0", "int64", (), (), 8, 1),
        ("w", "bfloat16", (5, 10_000), (3, 10_000), 100_000, 2),
    ]
    assert made.values == {
        "s/0": np.float32(2),
        "s/1/1": None,
        "opt/0/lr": 1e-3,
        "opt/0/betas/0": 0.9,
        "opt/0/betas/1": float("inf"),
        "shape": torch.Size([1, 2]),
    }
    assert made.array_count == len(made.arrays)


def test_a_checkpoint_cannot_be_changed() -> None:
    repo = memory()
    meta = {"tags": ["a"]}
    made = repo.commit({}, metrics={"a": 1}, meta=meta)
    with pytest.raises(AttributeError):
        made.step = 5  # type: ignore[misc]
    meta["tags"].append("later")
    for found in (made, repo.resolve("main")):
        assert found.meta == {"tags": ["a"]}
        found.meta["tags"].append("mine")
    assert repo.resolve("main").meta == {"tags": ["a"]}


def test_the_repr_of_a_checkpoint_is_short() -> None:
    repo = memory()
    checkpoint = repo.commit({"w": 1}, step=3, metrics={"loss": 0.5}, meta={"long": "x" * 999})
    start = f"Checkpoint({checkpoint.id[:8]}, step=3, branch='main'"
    assert repr(checkpoint) == f"{start})"
    assert repo.resolve(repr(checkpoint)[11:19]) == checkpoint
    assert repr(replace(checkpoint, expired=True)) == f"{start}, expired=True)"


def test_a_repository_is_made_once_and_opened_by_its_url(tmp_path: Path) -> None:
    url = tmp_path / "deep" / "store"
    with pytest.raises(NotFoundError, match="is not a repository"):
        ckptstore.open(url)
    repo = ckptstore.init(url)
    assert repr(repo) == f"Repository({str(url)!r})"
    with pytest.raises(ConflictError, match="is already a repository"):
        ckptstore.init(url)
    assert ckptstore.open(repo.url).url == repo.url
    repo.commit({"a": 1})
    assert ckptstore.open(url, create=True).checkout() == {"a": 1}
    assert ckptstore.open(tmp_path / "other", create=True).branches() == {}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(InvalidInputError, match=r"holds other things \(thesis\.tex\)"):
        ckptstore.init(tmp_path / "full")


@pytest.mark.parametrize("size", [0, -1, (64 << 10) - 1, (256 << 20) + 1])
def test_a_chunk_size_outside_its_bounds_is_refused(size: int) -> None:
    with pytest.raises(InvalidInputError, match="chunk size"):
        ckptstore.init("memory://", chunk_size=size)


def test_one_name_is_never_both_a_branch_and_a_tag() -> None:
    repo = memory()
    repo.commit({})
    repo.tag("v1")
    repo.branch("side")
    for refused in (
        lambda: repo.branch("v1"),
        lambda: repo.tag("side"),
        lambda: repo.tag("v1"),
        lambda: repo.branch("side"),
        lambda: repo.commit({"a": 1}, branch="v1"),
    ):
        with pytest.raises(ConflictError):
            refused()
    assert repo.ref_names()[1].keys() == {"v1"}
    assert len(repo.log()) == 1


def test_what_names_nothing_is_refused_and_changes_nothing() -> None:
    repo = memory()
    for refused in (
        lambda: repo.checkout(),
        lambda: repo.branch("a"),
        lambda: repo.tag("a", at="nope"),
        lambda: repo.delete_branch("main"),
        lambda: repo.delete_tag("v1"),
        lambda: repo.log("main"),
        lambda: repo.resolve("latest"),
        lambda: repo.undo(),
    ):
        with pytest.raises(NotFoundError):
            refused()
    assert repo.log() == []
    assert (repo.branches(), repo.tags()) == ({}, {})
    for refused in (
        lambda: repo.commit({}, branch="best"),
        lambda: repo.commit({}, branch="a b"),
        lambda: repo.commit({}, step="3"),  # type: ignore[arg-type]
        lambda: repo.commit({}, metrics={"a": "b"}),
        lambda: repo.commit({}, meta={"a": {1}}),
        lambda: repo.commit({}, message=5),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidInputError):
            refused()
    assert repo.usage().objects == 0


def test_an_undo_says_what_it_took_back() -> None:
    repo = memory()
    made = repo.commit({"a": 1})
    repo.tag("v1")
    repo.delete_tag("v1")
    undone = [repo.undo() for _ in range(3)]
    assert [(u.operation, u.description) for u in undone] == [
        (3, "deleted tag v1"),
        (2, f"made tag v1 at {made.id.short}"),
        (1, f"committed {made.id.short} to main"),
    ]
    assert repo.branches() == {}
    assert repo.checkout(made.id) == {"a": 1}  # nothing is erased


def test_usage_counts_what_is_reached_and_what_it_takes(tmp_path: Path) -> None:
    repo = ckptstore.init(tmp_path / "store", chunk_size=SMALL_CHUNKS)
    state = {"w": np.arange(100_000)}
    for step in range(3):
        repo.commit(state, step=step)
    repo.branch("side", at="main~1")
    repo.tag("v1")
    usage = repo.usage()
    assert (usage.checkpoints, usage.branches, usage.tags) == (3, 2, 1)
    assert usage.array_bytes == 3 * 800_000
    listed = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    files = {path: path.stat().st_size for path in listed if path.parent.name != "tmp"}
    objects = [size for path, size in files.items() if "objects" in path.parts]
    assert (usage.objects, usage.stored_bytes) == (len(objects), sum(objects))
    assert usage.metadata_bytes == sum(files.values()) - sum(objects)
    assert 800_000 < usage.stored_bytes < 803_000


def test_a_branch_that_moved_is_a_conflict_unless_a_retry_is_asked_for() -> None:
    """Of many commits to one branch at once none is lost."""
    repo = memory()
    repo.commit({"n": -1})

    def commit(number: int) -> str:
        return ckptstore.open(repo.url).commit({"n": number}, retry=True).id

    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(commit, range(24)))
    log = repo.log("main")
    assert {c.id for c in log[:-1]} == set(made)
    assert all(a.parents == (b.id,) for a, b in itertools.pairwise(log))
    assert repo.verify().ok


def test_without_a_retry_the_second_of_two_commits_at_once_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(codecs, "_registered", {})
    repo = memory()
    repo.commit({"n": 0})

    class Slow:
        """A value that takes so long to read that somebody else commits meanwhile."""

        @property
        def form(self) -> list[int]:
            ckptstore.open(repo.url).commit({"n": 1})
            return [2]

    ckptstore.register_codec(Slow, lambda slow: slow.form, lambda form: form)
    first = repo.branches()["main"].id
    with pytest.raises(ConflictError, match=r"Branch 'main' moved .* while committing"):
        repo.commit({"n": Slow()})
    assert repo.checkout() == {"n": 1}
    assert repo.resolve("main~1").id == first
    assert repo.commit({"n": Slow()}, retry=True).parents == (repo.resolve("main~1").id,)
    assert repo.checkout() == {"n": [2]}


def test_an_expired_checkpoint_keeps_its_facts_and_says_what_became_of_its_arrays() -> None:
    repo = memory()
    old = repo.commit({"a": np.zeros(3)}, step=1, metrics={"loss": 0.5})
    repo.commit({"a": np.ones(3)}, step=2)
    storage = repo._storage
    data = storage.get(key_of(old.id), bytes_max=100_000)
    storage.put(key_of(old.id, EXPIRED), data)
    storage.delete([key_of(old.id)])
    for found in (repo.resolve(old.id), repo.resolve("main~1"), repo.log()[1]):
        assert found.expired
        assert (found.step, found.metrics) == (1, {"loss": 0.5})
    with pytest.raises(ExpiredError, match=old.id.short):
        repo.checkout("main~1")
    assert repo.verify().ok
    assert repo.usage().checkpoints == 1


def test_a_selection_of_nothing_says_what_was_asked_for() -> None:
    repo = memory()
    repo.commit({"model": {"w": np.zeros(3)}, "step": 3})
    assert repo.checkout(include="step") == {"step": 3}
    with pytest.raises(InvalidInputError, match=r"include 'optimizer' and exclude 'model'"):
        repo.checkout(include="optimizer", exclude="model")


def test_a_clock_before_1970_counts_as_1970() -> None:
    assert memory(clock=-5).commit({}).created == datetime(1970, 1, 1, tzinfo=UTC)


def test_verify_tells_its_progress() -> None:
    repo = memory()
    repo.commit({"a": np.arange(100_000)})
    seen: list[tuple[int, int]] = []
    report: Any = repo.verify(progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert max(seen) == (report.bytes, report.bytes)
    assert len(seen) == report.objects
    assert report.checkpoints == 1
