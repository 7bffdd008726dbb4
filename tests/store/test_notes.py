"""Notes give a checkpoint metrics after its commit, at a cost that their number does not change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError, CorruptError, InvalidInputError, NotFoundError, Repository
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.retention import KeepBest, MaxToKeep
from tests.helpers.counting_storage import CHUNK_BYTES, CountingStorage


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    made = ckptstore.init(tmp_path / "store")
    for step in range(4):
        made.commit({"n": step}, step=step, metrics={"val_loss": 1.0 - step / 10})
    return made


def again(repo: Repository) -> Repository:
    """A handle as another process has it, which knows nothing yet."""
    return ckptstore.open(repo.url)


def notes_of(repo: Repository) -> list[Path]:
    return sorted((Path(repo.url) / "notes").iterdir())


def test_a_note_gives_metrics_and_words_to_its_checkpoint_and_to_no_other(repo: Repository) -> None:
    before = repo.resolve("main~1")
    made = repo.annotate("main~1", metrics={"val_acc": 0.9}, message="on the test set")
    for handle in (repo, again(repo)):
        found = handle.resolve("main~1")
        assert found == made
        assert found.metrics == {"val_loss": before.metrics["val_loss"], "val_acc": 0.9}
        (note,) = found.notes
        assert (note.message, note.metrics) == ("on the test set", {"val_acc": 0.9})
        assert note.user
        assert note.host
        assert note.program
        assert found.id == before.id
        assert ["val_acc" in item.metrics for item in handle.log()] == [False, True, False, False]
        assert not handle.branches()["main"].notes


def test_the_newest_value_wins_whoever_wrote_it(repo: Repository) -> None:
    handles = [repo, again(repo), again(repo)]
    for value, handle in enumerate([*handles, *handles]):
        handle.annotate("main", metrics={"val_loss": value, f"of-{value}": 1})
        for other in handles:
            assert other.resolve("main").metrics["val_loss"] == value
    assert len(again(repo).resolve("main").notes) == 6


def test_best_goes_by_notes(repo: Repository) -> None:
    other = again(repo)
    assert other.resolve("best:val_loss").step == 3
    repo.annotate("main~2", metrics={"val_loss": 0.01})
    for handle in (repo, other, again(repo)):
        assert handle.resolve("best:val_loss").step == 1


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("who", ["other", "same"])
def test_gc_goes_by_notes_of_any_process(repo: Repository, when: str, who: str) -> None:
    writer = again(repo) if who == "other" else repo
    if when == "between":
        repo.gc(MaxToKeep(4))
    for step in range(4):
        writer.annotate(f"main@step={step}", metrics={"val_acc": 0.9 - abs(step - 1) / 10})
    repo.gc(KeepBest("val_acc"), grace=0)
    assert [found.step for found in repo.log() if not found.expired] == [3, 1]


def test_an_expired_checkpoint_has_its_notes_and_takes_new_ones(repo: Repository) -> None:
    repo.annotate("main~2", metrics={"val_acc": 0.5})
    repo.gc(MaxToKeep(1), grace=0)
    repo.annotate("main~2", metrics={"val_acc": 0.6})
    found = again(repo).resolve("main~2")
    assert (found.expired, found.metrics["val_acc"]) == (True, 0.6)
    assert repo.verify().ok


def test_undo_takes_a_note_back_and_does_it_again(repo: Repository) -> None:
    for value in (0.5, 0.6):
        repo.annotate("main", metrics={"val_acc": value})
    first = repo.operations(limit=2)[1]
    assert str(first.moves[0] if first.moves else "") == f"note on {repo.resolve('main').id.short}"
    undone = repo.undo()
    assert undone.description.endswith(": val_acc=0.6")
    for handle in (repo, again(repo)):
        assert handle.resolve("main").metrics["val_acc"] == 0.5
    with pytest.raises(ConflictError, match=rf"taken back by operation .*undo\({undone.redo}\)"):
        repo.undo(undone.operation)
    repo.undo(undone.redo)
    assert again(repo).resolve("main").metrics["val_acc"] == 0.6
    repo.undo(first.number)
    assert again(repo).resolve("main").metrics["val_acc"] == 0.6
    repo.undo()
    assert "val_acc" not in again(repo).resolve("main").metrics
    assert repo.resolve("main").notes == ()


@pytest.mark.parametrize(
    "arguments",
    [{}, {"metrics": {}}, {"metrics": {"a": "b"}}, {"message": 5}, {"metrics": {"a\n": 1.0}}],
)
def test_what_is_no_note_is_refused(repo: Repository, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        repo.annotate("main", **arguments)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        repo.annotate("nowhere", metrics={"a": 1})
    assert not (Path(repo.url) / "notes").exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_note_is_an_error_that_names_it_and_gc_deletes_nothing(repo: Repository) -> None:
    repo.annotate("main~1", metrics={"val_loss": 0.01})
    (path,) = notes_of(repo)
    flip(path)
    open_since = again(repo)
    for act in (open_since.log, lambda: again(repo).gc(KeepBest("val_loss"), grace=0)):
        with pytest.raises(CorruptError, match=rf"{path.name} is damaged.*delete it and annotate"):
            act()
    (problem,) = repo.verify().problems
    assert problem.key == f"notes/{path.name}"
    assert "delete it and annotate" in problem.heal
    path.unlink()
    assert again(repo).verify().ok
    assert len(again(repo).log()) == len(open_since.log()) == 4


def test_a_note_under_the_name_of_another_checkpoint_is_refused(repo: Repository) -> None:
    repo.annotate("main~1", metrics={"val_loss": 0.01})
    (path,) = notes_of(repo)
    head = repo.resolve("main").id
    path.rename(path.with_name(head + path.name[64:]))
    with pytest.raises(CorruptError, match="is a note on another checkpoint"):
        again(repo).resolve("main")


def test_files_of_others_are_no_notes(repo: Repository) -> None:
    repo.annotate("main", metrics={"val_acc": 0.5})
    (path,) = notes_of(repo)
    path.with_name("README.md").write_text("words")
    assert again(repo).resolve("main").metrics["val_acc"] == 0.5
    assert repo.verify().foreign == ("notes/README.md",)
    assert repo.usage().metadata_bytes > path.stat().st_size


def calls(history: int) -> tuple[dict[str, int], ...]:
    """The calls of a commit, and of gcs by a new and a used handle, after a history with notes."""
    storage = CountingStorage()
    marker = Marker(store="0" * 32, chunk_bytes=CHUNK_BYTES)
    storage.create(MARKER_KEY, marker.encode())
    repo = Repository(storage, marker)
    policy = MaxToKeep(2) | KeepBest("val_acc")
    for step in range(history):
        repo.commit({"w": np.arange(100) + step}, step=step)
        for value in range(3):
            repo.annotate("main", metrics={"val_acc": 0.5 + value / 10 + step / 1000})
        repo.gc(policy, grace=0)
    results = []
    for handle in (Repository(storage, marker), repo):
        storage.forget()
        handle.commit({"w": np.arange(100) - 1}, step=history)
        results.append(dict(storage.calls))
        storage.forget()
        handle.gc(policy, grace=0, leftovers=False)
        results.append(dict(storage.calls))
    return tuple(results)


def test_a_commit_and_a_gc_cost_the_same_however_many_notes_there_are() -> None:
    few, many = calls(4), calls(24)
    assert many == few


@pytest.mark.concurrency
def test_of_many_annotators_at_once_each_counts(repo: Repository) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = pool.map(
            lambda n: again(repo).annotate("main", metrics={f"of-{n}": n, "all": n}), range(12)
        )
        list(done)
    for handle in (repo, again(repo)):
        found = handle.resolve("main").metrics
        assert {f"of-{n}": n for n in range(12)}.items() <= found.items()
        assert len(handle.resolve("main").notes) == 12
    assert repo.resolve("main").metrics["all"] == again(repo).resolve("main").metrics["all"]
