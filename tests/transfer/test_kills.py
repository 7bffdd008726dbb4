"""A transfer that is killed at any call leaves the target sound, and the next one goes on."""

from __future__ import annotations

import pytest

import ckptstore
from ckptstore.storage import MemoryStorage
from ckptstore.testing.faults import Killed, LosingStorage
from tests.helpers.counting_storage import CountingStorage
from tests.helpers.transfers import assert_sound, log_of, planned, repository_in, state

pytestmark = pytest.mark.crash


def _run() -> ckptstore.Repository:
    """A run of three checkpoints, one of which has expired, with a tag and a note."""
    repo = repository_in(MemoryStorage("source"))
    for number in range(3):
        repo.commit(state(number), step=number, metrics={"loss": 1.0 / (number + 1)})
    repo.branch("fine", at="main~1")
    repo.tag("v1", at="main~1")
    repo.annotate("main~2", metrics={"acc": 0.5})
    repo.expire("main~2").execute()
    return repo


def _calls(source: ckptstore.Repository, *, has_more: bool = False) -> int:
    """How many calls change something when nothing is killed."""
    storage = LosingStorage()
    target = repository_in(storage)
    if has_more:
        planned(source, target, branches="fine").execute()
    storage.changes_left = 1000
    planned(source, target).execute()
    return 1000 - storage.changes_left


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("has_more", [False, True], ids=["empty", "behind"])
@pytest.mark.parametrize("loses", ["kill", "power"])
def test_a_transfer_that_is_killed_at_any_call_is_repeated(loses: str, has_more: bool) -> None:
    source = _run()
    calls = _calls(source, has_more=has_more)
    assert calls >= 10
    for left in range(calls):
        storage = LosingStorage()
        target = repository_in(storage)
        if has_more:
            planned(source, target, branches="fine").execute()
        before = target.ref_names()
        storage.changes_left = left
        with pytest.raises(Killed):
            planned(source, target).execute()
        storage.changes_left = None
        memory = storage if loses == "kill" else storage.after_power_failure(lambda key: False)
        again = repository_in(memory)
        assert again.ref_names() in (before, source.ref_names()), left
        assert_sound(again)
        planned(source, again).execute()
        assert_sound(again)
        assert again.ref_names() == source.ref_names()
        assert log_of(again, "main") == log_of(source, "main")
        assert again.resolve("main~2").expired


@pytest.mark.usefixtures("one_thread")
def test_what_was_sent_before_a_kill_is_not_sent_again() -> None:
    source = _run()
    storage = LosingStorage(changes_left=None)
    target = repository_in(storage)
    plan = planned(source, target)
    storage.changes_left = plan.objects - 2
    with pytest.raises(Killed):
        plan.execute()
    storage.changes_left = None
    assert planned(source, repository_in(storage)).objects == 2


@pytest.mark.usefixtures("one_thread")
def test_nothing_is_visible_before_what_it_refers_to() -> None:
    source, storage = _run(), CountingStorage()
    target = repository_in(storage)
    target.set_grace(60)
    storage.forget()
    planned(source, target).execute()
    folders = [key.partition("/")[0] for key in storage.written]
    last = {folder: len(folders) - folders[::-1].index(folder) - 1 for folder in {*folders}}
    first = {folder: folders.index(folder) for folder in {*folders}}
    assert last["objects"] < first["history"] <= last["notes"] < first["checkpoints"]
    assert last["history"] < first["ops"] < first["checkpoints"]  # announced
    assert last["checkpoints"] < last["ops"]  # published
    assert folders.count("ops") == 2


def test_a_transfer_goes_on_over_a_storage_that_only_half_has_an_object() -> None:
    source = _run()
    storage = MemoryStorage("target")
    target = repository_in(storage)
    plan = planned(source, target)
    digest = next(iter(plan._work._lacking.objects))
    storage.put(target._objects.key(digest), b"short")
    planned(source, target).execute()
    assert_sound(target)
