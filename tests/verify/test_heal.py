"""Every problem states the way to heal it, and that way works."""

from __future__ import annotations

import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ckptstore.storage import LocalStorage
from ckptstore.verify import heal, verify
from tests.helpers.damage import world as worlds
from tests.helpers.damage.damages import delete, empty, fifo, flip, folder, link, truncate
from tests.helpers.equality import difference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.helpers.damage.damages import Damage
    from tests.helpers.damage.world import World

OBJECTS = ("page", "structure", "bundle", "chunk")
FILES = (flip, truncate, empty)


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("damage", FILES, ids=lambda damage: damage.__name__)
def test_a_damaged_object_is_moved_aside_and_put_again_by_a_commit_of_the_same_state(
    world: World, kind: str, damage: Damage
) -> None:
    head = str(world.open().resolve("main").id)
    key = next(key for key in world.files(kind) if head in world.needs[key])
    damage(world.root / key, random.Random(1))
    damaged = (world.root / key).read_bytes()
    report = world.open().verify()
    assert [problem.heal for problem in report.problems] == [heal.DAMAGED]
    digest = key.removeprefix("objects/").replace("/", "")
    assert (report.damaged, report.repair()) == ((digest,), (digest,))
    assert (world.root / "damaged" / digest).read_bytes() == damaged
    (problem,) = world.open().verify().problems
    assert (problem.key, problem.heal) == (key, heal.MISSING)
    world.open().commit(world.states[head], branch="again")
    assert world.open().verify().ok
    assert difference(world.states[head], world.open().checkout(head)) is None


@pytest.mark.parametrize("call", ["get", "put", "flush", "create"])
def test_what_a_commit_stores_again_during_a_repair_stays(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It stores again what was cut short. The repair may have looked at that already."""
    head = str(world.open().resolve("main").id)
    key = next(key for key in world.files("chunk") if head in world.needs[key])
    truncate(world.root / key, random.Random(1))
    report = world.open().verify()
    original = getattr(LocalStorage, call)

    def beside_commit(self: LocalStorage, first: Any, *args: Any, **options: Any) -> Any:
        places = ("ops/",) if call == "create" else (key, "damaged/")
        if not str(first).startswith(places) and "damaged/" not in str(first):
            return original(self, first, *args, **options)
        monkeypatch.undo()
        if call == "create":  # the commit is published first, so this fails
            world.open().commit(world.states[head], branch="again")
        result = original(self, first, *args, **options)
        if call != "create":
            world.open().commit(world.states[head], branch="again")
        return result

    monkeypatch.setattr(LocalStorage, call, beside_commit)
    assert report.repair() == ()
    monkeypatch.undo()
    assert world.open().verify().ok
    assert difference(world.states[head], world.open().checkout("again")) is None
    assert not list((world.root / "damaged").iterdir())


def test_a_commit_that_is_published_after_a_repair_has_condemned_stores_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaced the object before the repair deleted it, and waits until that has ended."""
    head = str(world.open().resolve("main").id)
    key = next(key for key in world.files("chunk") if head in world.needs[key])
    truncate(world.root / key, random.Random(1))
    report = world.open().verify()
    has_begun, has_condemned, has_put = (threading.Event() for _ in range(3))
    batch, create = LocalStorage.batch, LocalStorage.create

    @contextmanager
    def then_put(self: LocalStorage) -> Iterator[Any]:
        has_begun.set()
        assert has_condemned.wait(60)
        with batch(self) as storage:
            yield storage
        has_put.set()

    def then_wait(self: LocalStorage, *args: Any, **options: Any) -> bool:
        is_created = create(self, *args, **options)
        if not has_condemned.is_set():
            has_condemned.set()
            assert has_put.wait(60)
        return is_created

    monkeypatch.setattr(LocalStorage, "batch", then_put)
    monkeypatch.setattr(LocalStorage, "create", then_wait)
    commit = partial(world.open().commit, world.states[head], branch="again")
    with ThreadPoolExecutor() as pool:
        committing = pool.submit(commit)
        assert has_begun.wait(60)
        assert len(report.repair()) == 1
        committing.result()
    assert world.open().verify().ok
    assert difference(world.states[head], world.open().checkout("again")) is None


def test_a_commit_over_a_damaged_object_alone_heals_nothing(world: World) -> None:
    """It trusts the size; so the report says to move the object aside first."""
    head = str(world.open().resolve("main").id)
    key = next(key for key in world.files("chunk") if head in world.needs[key])
    flip(world.root / key, random.Random(1))
    world.open().commit(world.states[head], branch="again")
    assert [problem.key for problem in world.open().verify().problems] == [key]


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_missing_object_is_put_again_by_a_commit_of_the_same_state(
    world: World, kind: str
) -> None:
    head = str(world.open().resolve("main").id)
    key = next(key for key in world.files(kind) if head in world.needs[key])
    delete(world.root / key, random.Random(1))
    report = world.open().verify()
    assert [problem.heal for problem in report.problems] == [heal.MISSING]
    assert report.repair() == ()
    world.open().commit(world.states[head])
    assert world.open().verify().ok


@pytest.mark.parametrize("kind", worlds.KINDS)
@pytest.mark.parametrize("damage", [flip, delete, link], ids=lambda damage: damage.__name__)
def test_any_file_is_restored_from_another_copy(
    world: World, tmp_path: Path, kind: str, damage: Damage
) -> None:
    """Whatever happened to it, and whether or not it was moved aside before."""
    key = world.files(kind)[-1]
    path = world.root / key
    kept = shutil.copy(path, tmp_path / "kept")
    damage(path, random.Random(1))
    report = verify(LocalStorage(world.root))
    for problem in report.problems:
        assert problem.key == key
        assert "copy" in problem.heal.lower()
    report.repair()
    path.unlink(missing_ok=True)
    shutil.copy(kept, path)
    assert world.open().verify().ok


def test_what_the_history_alone_names_is_given_up_with_the_branch_that_was_made_from_it(
    world: World,
) -> None:
    repo = world.open()
    for step in (1, 2, 3):
        repo.commit({"x": step}, branch="cut", step=step)
    lost = repo.resolve("cut~1").id
    delete(world.root / f"checkpoints/{lost}.json", random.Random(1))
    (problem,) = world.open().verify().problems
    assert (problem.checkpoints, problem.heal) == ((lost,), heal.HISTORY)
    repo.commit(repo.checkout("cut"), branch="rest")
    repo.delete_branch("cut")
    repo.gc(grace=0)
    assert world.open().verify().ok
    assert world.open().checkout("rest") == {"x": 3}


def test_what_was_healed_meanwhile_is_not_moved(world: World) -> None:
    key = world.files("chunk")[0]
    whole = (world.root / key).read_bytes()
    flip(world.root / key, random.Random(1))
    report = world.open().verify()
    (world.root / key).write_bytes(whole)
    assert report.damaged
    assert report.repair() == ()
    assert (world.root / key).read_bytes() == whole


@pytest.mark.parametrize("damage", [fifo, folder, link], ids=lambda damage: damage.__name__)
def test_what_is_no_file_stays_where_it_is(world: World, damage: Damage) -> None:
    key = world.files("chunk")[0]
    damage(world.root / key, random.Random(1))
    report = world.open().verify()
    assert [problem.key for problem in report.problems] == [key]
    assert report.repair() == ()
    assert (world.root / key).is_symlink() or (world.root / key).exists()
