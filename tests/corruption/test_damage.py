"""Any damage to any file: what is read is right or an error that names the file, and verify finds it and goes on."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import ckptstore
from ckptstore.digest import Digest
from ckptstore.errors import CkptStoreError
from tests.corruption import world as worlds
from tests.corruption.world import DAMAGES, World, flip, kind_of
from tests.properties.same import difference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLIPS_PER_FILE = 100
DOCUMENTS = ("marker", "operation", "manifest", "page", "structure")
KINDS = (*DOCUMENTS, "bundle", "chunk")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    return worlds.make(tmp_path_factory.mktemp("whole") / "store")


@pytest.fixture
def world(whole: World, tmp_path: Path) -> World:
    return whole.copy(tmp_path / "store")


def test_an_undamaged_repository_is_well(whole: World) -> None:
    report = whole.open().verify()
    assert report.ok
    assert report.checkpoints == len(whole.states) == 4
    assert {kind_of(whole, key) for key in whole.files()} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_any_flipped_bit_is_found_wherever_it_is(world: World, kind: str) -> None:
    """At a hundred places of each file: reads of what needs it fail, all others do not."""
    chance = random.Random(kind)
    for key in world.files(kind):
        path = world.root / key
        kept = path.read_bytes()
        for _ in range(FLIPS_PER_FILE):
            what = flip(path, chance)
            complaints = list(wrong(world, key))
            assert not complaints, f"{key}, {what}: {complaints}"
            path.write_bytes(kept)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_any_other_damage_is_found_too(world: World, kind: str, damage: Any) -> None:
    """And verify says exactly which checkpoints suffer."""
    chance = random.Random(f"{kind} {damage.__name__}")
    for key in world.files(kind):
        path = world.root / key
        kept = path.read_bytes()
        for _ in range(4 if damage.__name__ in ("truncate", "extend", "flip") else 1):
            what = damage(path, chance)
            complaints = [*wrong(world, key), *unverified(world, key)]
            if path.is_dir():
                path.rmdir()
            path.write_bytes(kept)
            if not newest_deleted(world, key, what):
                assert not complaints, f"{key}, {what}: {complaints}"


def newest_deleted(world: World, key: str, what: str) -> bool:
    """The newest operation gone is a repository as it was before it: nothing can tell."""
    return what == "deleted" and kind_of(world, key) == "operation"


def wrong(world: World, key: str) -> Iterator[str]:
    """What a reader is told that it should not be. Each checkpoint is read whole, and into arrays that exist."""
    needed = world.needs[key]
    for id, truth in world.states.items():
        target = worlds.state(77)
        before = worlds.state(77)
        error = None
        try:
            repo = world.open()
            found = repo.checkout(id)
            if difference(truth, found) is not None:
                yield f"{id} came out wrong"
            repo.checkout(id, into=target)
        except CkptStoreError as raised:
            error = raised
            if not named(key, str(raised)):
                yield f"the error does not name the file: {raised}"
        yield from touched(target, truth, before)
        if id in needed and error is None:
            yield f"{id} was read whole, though it needs the file"
        if error is not None and id not in needed and kind_of_key(key) == "object":
            yield f"{id} was not read, though it does not need the file"


def touched(target: Any, truth: Any, before: Any) -> Iterator[str]:
    """Every array of a target must hold, chunk by chunk, what was committed or what it held before."""
    for group in ("model", "other"):
        for name, array in target[group].items():
            right = (array == truth[group][name]) | (array == before[group][name])
            if not np.all(right):
                yield f"wrong bytes reached {group}/{name}"


def unverified(world: World, key: str) -> Iterator[str]:
    """What verify fails to say."""
    report = ckptstore.verify.verify(ckptstore.storage.LocalStorage(world.root))
    hit = [problem for problem in report.problems if problem.key == key]
    if len(hit) != 1:
        yield f"verify reports {report.problems}"
    elif set(hit[0].checkpoints) != world.needs[key]:
        yield f"verify says that {hit[0].checkpoints} suffer, and it is {set(world.needs[key])}"


def kind_of_key(key: str) -> str:
    return "object" if key.startswith("objects/") else "other"


def named(key: str, text: str) -> bool:
    """The error says the key, or the id or digest that the key stands for."""
    short = key.split("/")[-1].removesuffix(".json")
    return (
        key in text
        or short in text
        or short[:8] in text
        or key.replace("objects/", "").replace("/", "") in text
    )


def test_two_files_swapped_are_both_found(world: World) -> None:
    """Each is whole, and each lies under the other's name."""
    for kind in ("manifest", "page", "structure", "bundle", "chunk", "operation"):
        one, other = world.files(kind)[:2]
        for a, b in ((one, other), (other, one)):
            (world.root / a).rename(world.root / "aside")
            (world.root / b).rename(world.root / a)
            (world.root / "aside").rename(world.root / b)
            if a == one:
                found = {problem.key for problem in world.open().verify().problems}
                assert {one, other} <= found
                assert all("came out wrong" not in said for said in wrong(world, one))


def test_verify_finds_many_damages_in_one_run(world: World) -> None:
    """It goes on behind each, and tells every checkpoint that suffers from each."""
    chance = random.Random(1)
    hit = [
        chance.choice(world.files(kind))
        for kind in ("manifest", "page", "structure", "bundle", "chunk")
    ]
    for key in hit:
        flip(world.root / key, chance)
    report = world.open().verify()
    assert not report.ok
    assert set(hit) <= {problem.key for problem in report.problems}
    broken = {id for problem in report.problems for id in problem.checkpoints}
    for id in set(world.states) - broken:
        assert difference(world.states[id], world.open().checkout(id)) is None


def test_the_array_that_is_hit_keeps_its_old_bytes(world: World) -> None:
    """A checkout into existing arrays reads, checks and only then copies."""
    head = world.open().resolve("main").id
    old = worlds.state(77)
    for key in world.files("chunk"):
        if head not in world.needs[key]:
            continue
        kept = (world.root / key).read_bytes()
        flip(world.root / key, random.Random(2), position=0)
        target = worlds.state(77)
        with pytest.raises(ckptstore.CorruptError, match=key):
            world.open().checkout("main", into=target)
        assert not list(touched(target, world.states[head], old))
        (world.root / key).write_bytes(kept)


def test_a_commit_after_a_damaged_parent_works_and_heals_what_it_holds(world: World) -> None:
    """The head's page or manifest is unreadable; the next commit writes everything anew."""
    head = world.open().resolve("main").id
    for kind in ("manifest", "page"):
        key = next(key for key in world.files(kind) if world.needs[key] == {head})
        flip(world.root / key, random.Random(3))
        repo = world.open()
        made = repo.commit(worlds.state(2), step=50)
        assert difference(worlds.state(2), world.open().checkout(made.id)) is None
        shutil.rmtree(world.root)
        shutil.copytree(worlds.make(world.root.parent / f"again-{kind}").root, world.root)


def test_the_checks_above_would_fail_without_the_check_of_digests(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seeded bug: nothing is compared any more."""
    key = world.files("chunk")[0]
    flip(world.root / key, random.Random(4))

    class Equal(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    real = ckptstore.objects.blake3

    class Lenient:
        def __init__(self) -> None:
            self.hasher = real()
            self.update = self.hasher.update

        def hexdigest(self) -> str:
            return Equal(self.hasher.hexdigest())

    monkeypatch.setattr(ckptstore.objects, "blake3", Lenient)
    assert any("wrong" in complaint for complaint in wrong(world, key))


def test_a_digest_is_that_of_any_blake3() -> None:
    """The published value for no bytes, so that b3sum agrees."""
    assert Digest.of(b"") == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
