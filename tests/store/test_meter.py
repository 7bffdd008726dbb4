"""Progress of long operations, as a listener is told of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import ckptstore
from ckptstore import InvalidInputError, Progress
from ckptstore.retention import MaxToKeep


@pytest.fixture
def repo() -> ckptstore.Repository:
    return ckptstore.init("memory://", chunk_size=64 << 10)


def state(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    large = {f"large.{number}": random.random(30_000) for number in range(4)}
    return {**large, "small": random.random(1000), "same": np.ones(50_000)}


BYTES = 4 * 240_000 + 8_000 + 400_000


def told(repo: ckptstore.Repository, operation: Any, kind: str) -> list[Progress]:
    """What a listener was told of one kind during an operation, in order."""
    seen: list[Progress] = []
    repo.on_progress(seen.append)
    operation()
    repo.on_progress(None)
    found = [progress for progress in seen if progress.kind == kind and progress.total]
    assert [progress.done for progress in found] == sorted(progress.done for progress in found)
    assert len({(progress.total, progress.operation) for progress in found}) == 1
    return found


def test_a_commit_counts_every_byte_also_of_what_is_there(repo: ckptstore.Repository) -> None:
    for seed in (1, 1, 2):
        found = told(repo, lambda seed=seed: repo.commit(state(seed)), "stored")
        assert (found[-1].done, found[-1].total) == (BYTES, BYTES)
        assert len(found) > 4


@pytest.mark.parametrize("options", [{}, {"into": state(9)}, {"lazy": True}])
def test_a_checkout_counts_what_it_reads(repo: ckptstore.Repository, options: Any) -> None:
    repo.commit(state(1))

    def read() -> None:
        found = repo.checkout("main", **options)
        if options.get("lazy"):
            repo.commit(found, branch="copy")
            assert [array[:].sum() for array in found.values()]

    found = told(repo, read, "stored" if options.get("lazy") else "read")
    assert (found[-1].done, found[-1].total) == (BYTES, BYTES)


def test_only_what_is_chosen_is_expected(repo: ckptstore.Repository) -> None:
    repo.commit({"model": state(1), "other": state(2)})
    found = told(repo, lambda: repo.checkout("main", include="model/large*"), "read")
    assert (found[-1].done, found[-1].total) == (960_000, 960_000)


def test_a_numeric_diff_counts_what_both_sides_have_once(repo: ckptstore.Repository) -> None:
    repo.commit(state(1))
    repo.commit(state(2))
    found = told(repo, lambda: repo.diff("main~1", "main", numeric=True), "read")
    assert (found[-1].done, found[-1].total) == (2 * 968_000, 2 * 968_000)
    other = ckptstore.init("memory://", chunk_size=64 << 10)
    other.commit(state(3))
    found = told(repo, lambda: repo.diff("main", "main", numeric=True, other=other), "read")
    assert (found[-1].done, found[-1].total) == (2 * 968_000, 2 * 968_000)


def test_a_verify_counts_the_bytes_of_objects(repo: ckptstore.Repository) -> None:
    repo.commit(state(1))
    report = repo.verify()
    found = told(repo, repo.verify, "verified")
    assert (found[-1].done, found[-1].total) == (report.bytes, report.bytes)
    part = told(repo, lambda: repo.verify(sample=0.3), "verified")
    assert part[-1].done == part[-1].total < report.bytes


def test_a_gc_counts_the_objects_it_deletes(repo: ckptstore.Repository) -> None:
    for seed in range(3):
        repo.commit(state(seed))
    reports: list[Any] = []
    found = told(repo, lambda: reports.append(repo.gc(MaxToKeep(1))), "deleted")
    assert reports[0].objects == found[-1].done == found[-1].total > 8


def test_without_a_listener_nothing_is_told(repo: ckptstore.Repository) -> None:
    seen: list[Progress] = []
    repo.on_progress(seen.append)
    repo.on_progress(None)
    repo.commit(state(1))
    assert seen == []
    with pytest.raises(InvalidInputError, match="listener is 3"):
        repo.on_progress(3)  # type: ignore[arg-type]


def test_a_listener_of_one_call_gives_way_afterwards(repo: ckptstore.Repository) -> None:
    repo.commit(state(1))
    seen: list[Progress] = []
    repo.on_progress(seen.append)
    counts: list[tuple[int, int]] = []
    repo.verify(progress=lambda done, total: counts.append((done, total)))
    assert seen == []
    assert counts
    repo.checkout("main")
    assert seen


def test_each_operation_has_a_number_of_its_own_in_every_handle(
    repo: ckptstore.Repository,
) -> None:
    other = ckptstore.init("memory://", chunk_size=64 << 10)
    seen: list[Progress] = []
    for handle in (repo, other):
        handle.on_progress(seen.append)
    for seed, handle in enumerate((repo, other, repo)):
        handle.commit(state(seed))
    for _ in range(2):
        repo.checkout("main")
    repo.gc(MaxToKeep(1))
    operations = list(dict.fromkeys(progress.operation for progress in seen))
    assert len(operations) == 6
    assert operations == sorted(operations)
    for operation in operations:
        found = [progress for progress in seen if progress.operation == operation]
        assert len({(progress.kind, progress.total) for progress in found}) == 1
        assert [progress.done for progress in found] == sorted(progress.done for progress in found)
