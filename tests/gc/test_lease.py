"""A gc on a storage whose lock reaches no other process: a lease in the operation takes its place.

Processes are handles here, which live by a clock that moves on with each call of the storage.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest

import ckptstore
from ckptstore import ConflictError, Repository, moment
from ckptstore.commit import committer
from ckptstore.documents.marker import Marker
from ckptstore.errors import CkptStoreError, CorruptError, StorageError
from ckptstore.gc import execute, finish
from ckptstore.gc.ownership import Ownership, TakenOverError
from ckptstore.retention import KeepAll, MaxToKeep
from ckptstore.store import oplog
from ckptstore.store.oplog import Oplog
from ckptstore.testing.faults import Killed
from tests.gc import test_interleavings as interleavings
from tests.helpers.crash.parts import some
from tests.helpers.equality import difference
from tests.helpers.far_storage import LEASE, MARGIN, FarStorage, with_clocks
from tests.helpers.schedule import Schedule, sticky

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

DAY = 86_400.0
CALLS_MIN = 8  # of a commit; a gc makes more
TOOK_OVER = "took over a gc that was interrupted"
MARKER = Marker(store="0" * 32, chunk_bytes=64 << 10)

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("one_thread")]


def state(number: int) -> dict[str, Any]:
    return interleavings.state(number)


class Far:
    """A repository on such a storage, and any number of processes that use it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.storage = FarStorage()
        self.storage.create("ckptstore.json", MARKER.encode())
        with_clocks(monkeypatch, self.storage)
        self.repo = self.open()

    def open(self, *, days: float = 0) -> Repository:
        """A handle of another process, whose clock is wrong by some days."""
        return Repository(self.storage, MARKER, clock=lambda: self.storage.time + days * DAY)

    def commit(self, *numbers: int) -> list[Any]:
        return [self.repo.commit(state(number), step=number).id for number in numbers]

    def condemned(self) -> Any:
        return self.repo._oplog.newest().condemned

    def done(self) -> list[str]:
        newest = self.repo._oplog.newest()
        return [operation.done for operation in self.repo._oplog.between(1, newest)]

    def dies(self, *, after: int = 0, keep: int = 1) -> None:
        """Have a gc die at a delete of objects, after some others."""
        left = [after]

        def die(keys: list[str]) -> None:
            if keys[0].startswith("objects/"):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed

        self.storage.on_delete = die
        with pytest.raises(Killed):
            self.open().gc(MaxToKeep(keep), grace=0)
        self.storage.on_delete = lambda keys: None
        assert self.condemned() is not None


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Far:
    return Far(monkeypatch)


# ------------------------------------------------------------------------------ one after another


def test_a_gc_ends_with_nothing_condemned(far: Far) -> None:
    far.commit(0, 1, 2, 3)
    assert len(far.repo.gc(MaxToKeep(1), grace=0).expired) == 3
    assert far.condemned() is None
    assert len(far.open(days=-3).gc(MaxToKeep(1), grace=0, leftovers=False).expired) == 0
    assert far.repo.verify().ok


def test_what_a_dead_gc_condemned_is_finished_only_after_lease_and_margin(far: Far) -> None:
    """By the storage's clock, whatever those of the processes show."""
    first, *_ = far.commit(0, 1)
    far.dies()
    since = far.storage._modified[oplog.key_of(far.condemned().since)]
    taken: list[float] = []
    real = Ownership.take_over

    def take_over(self: Ownership, done: str) -> None:
        taken.append(far.storage.time - since)
        real(self, done)

    with patch.object(Ownership, "take_over", take_over):
        again = far.open(days=40).commit(state(0), branch="again")
    assert len(taken) == 1
    assert taken[0] >= LEASE + MARGIN
    assert far.done().count(TOOK_OVER) == 1
    assert difference(state(0), far.repo.checkout(again.id)) is None
    assert far.repo.resolve(first).expired
    assert far.repo.verify().ok


def test_a_commit_that_needs_nothing_of_it_does_not_wait(far: Far) -> None:
    far.commit(0, 1)
    far.dies()
    before = far.storage.time
    far.open().commit(state(7))
    assert far.storage.time - before < LEASE
    assert far.condemned() is not None


def test_a_waiting_commit_logs_for_whom_it_waits_and_until_when(
    far: Far, caplog: pytest.LogCaptureFixture
) -> None:
    far.commit(0, 1)
    far.dies()
    with caplog.at_level(logging.WARNING, "ckptstore.gc.finish"):
        far.open().commit(state(0), branch="again")
    (record,) = caplog.records
    assert "Waiting for a gc of " in record.getMessage()
    assert "2001-09-09 01:" in record.getMessage()


def test_a_gc_whose_part_makes_no_progress_is_a_conflict_that_names_the_time(far: Far) -> None:
    """Unlike a commit, which needs what is condemned, it can be repeated at any time."""
    far.commit(0, 1)
    far.dies()
    with (
        patch.object(finish, "GC_PATIENCE_SECONDS", 1.0),
        pytest.raises(ConflictError, match=r"or after 2001-09-09 01:.* by the clock of the stor"),
    ):
        far.open().gc(MaxToKeep(1), grace=0)
    assert far.open().gc(MaxToKeep(1), grace=0).expired == ()
    assert far.condemned() is None


def test_a_gc_that_failed_is_finished_by_its_own_handle_at_once(far: Far) -> None:
    """The process knows that nothing deletes any more."""
    far.commit(0, 1)

    def fail(keys: list[str]) -> None:
        far.storage.on_delete = lambda keys: None
        raise StorageError("The network is down.")

    far.storage.on_delete = fail
    with pytest.raises(StorageError, match="network"):
        far.repo.gc(MaxToKeep(1), grace=0)
    before = far.storage.time
    far.repo.commit(state(0), branch="again")
    assert far.storage.time - before < LEASE + MARGIN
    assert far.done().count(TOOK_OVER) == 1
    assert far.repo.verify().ok


def test_a_commit_waits_for_the_part_it_met_and_not_for_the_whole_gc(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptstore.gc.remaining.BATCH", 1)
    far.commit(0, 1, 2)
    parts: list[Any] = []
    delete = execute.delete

    def beside(stores: Any, condemned: Any, **options: Any) -> Any:
        parts.append(condemned)
        if len(parts) > 1:
            before = far.storage.time
            finish.wait_for_gc(far.open()._stores(), parts[-2])
            assert far.storage.time - before < finish.POLL_SECONDS
        return delete(stores, condemned, **options)

    monkeypatch.setattr(execute, "delete", beside)
    far.repo.gc(MaxToKeep(1), grace=0)
    assert len(parts) > 4
    assert len({part.owner for part in parts}) == 1
    assert far.repo.verify().ok


def test_a_gc_that_stalls_goes_on_by_an_operation_if_nobody_took_over(far: Far) -> None:
    far.commit(0, 1)

    def stall(look: Any) -> None:
        far.storage.time += LEASE if far.storage.deleted else 0
        look()

    with stalling(stall):
        assert len(far.repo.gc(MaxToKeep(1), grace=0).expired) == 1
    assert "gc goes on with what it condemned" in far.done()
    assert far.condemned() is None
    assert far.repo.verify().ok


def stalling(stall: Callable[[Any], None]) -> AbstractContextManager[object]:
    """A gc that stalls before each look."""
    look = Ownership.look
    return patch.object(Ownership, "look", lambda self: stall(lambda: look(self)))


def test_a_gc_that_stalls_past_its_lease_deletes_nothing_more_once_another_took_over(
    far: Far,
) -> None:
    """Neither objects nor manifests, though a commit has put both again meanwhile."""
    far.commit(0, 1)
    deletes: list[int] = []

    def stall(look: Any) -> None:
        if not deletes:
            far.storage.time += LEASE + MARGIN
            deletes.append(0)
            far.open().commit(state(0), branch="again")
            deletes.append(len(far.storage.deleted))
        look()

    with (
        stalling(stall),
        pytest.raises(TakenOverError, match="Another process took over this gc"),
    ):
        far.repo.gc(MaxToKeep(1), grace=0)
    assert len(far.storage.deleted) == deletes[-1] > 0
    assert far.repo.verify().ok
    assert difference(state(0), far.repo.checkout("again")) is None
    far.repo.gc(MaxToKeep(1), grace=0)
    assert far.condemned() is None
    assert far.repo.verify().ok


@pytest.mark.parametrize("is_first", [True, False])
def test_a_gc_that_another_came_before_begins_again(
    far: Far, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """After it has judged, and even when the other one is over already."""
    far.commit(0, 1, 2, 3)
    real, other = execute.find_remaining, []

    def after_another(*args: Any) -> Any:
        left = real(*args)
        if not other:
            other.append(None)
            if is_first:
                far.open().gc(MaxToKeep(2), grace=0)
            else:
                far.dies(keep=2)
                far.storage.time += LEASE + MARGIN
        return left

    monkeypatch.setattr(execute, "find_remaining", after_another)
    far.repo.gc(MaxToKeep(1), grace=0)
    assert [item.expired for item in far.repo.log()] == [False, True, True, True]
    assert far.condemned() is None
    assert far.repo.verify().ok
    assert far.repo.usage().objects == sum(key.startswith("objects/") for key in far.storage._data)


def test_a_gc_that_misses_a_page_beside_another_begins_again(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads what another one deletes meanwhile. Without another, the page is missing."""
    far.commit(0, 1, 2)
    plan = far.repo.plan_gc(MaxToKeep(1), grace=0)
    real, tried = execute.find_remaining, []

    def beside_another(*args: Any) -> Any:
        tried.append(None)
        if len(tried) == 1:
            far.open().gc(MaxToKeep(2), grace=0)
            raise CorruptError("objects/00 is missing.")
        return real(*args)

    monkeypatch.setattr(execute, "find_remaining", beside_another)
    assert len(plan.execute().expired) == 1
    assert len(tried) == 3  # with that of the other one

    def alone(*args: Any) -> Any:
        raise CorruptError("objects/00 is missing.")

    monkeypatch.setattr(execute, "find_remaining", alone)
    with pytest.raises(CorruptError):
        plan.execute()


def test_a_condemnation_without_owner_or_whose_operation_was_pruned_is_taken_over(
    far: Far,
) -> None:
    """As in a copy of a folder that an earlier version wrote; it waits as long as ever."""
    for owner, number in (("", 0), ("someone", 2)):
        far.commit(number, number + 1)
        far.dies()
        held = far.condemned()
        if owner:
            far.repo.tag("later", "main")
            far.storage.delete([oplog.key_of(held.since)])
        else:
            since = far.repo._oplog.newest().seq + 1
            bare = replace(held, owner="", since=0)
            far.repo._oplog.append(lambda newest, bare=bare: replace(newest, condemned=bare))
            assert far.repo._oplog.stored_by(since) is not None
        before = far.storage.time
        far.open().commit(state(number), branch=f"again-{number}")
        assert far.storage.time - before >= LEASE + MARGIN - 1
        assert far.repo.verify().ok


def test_damaged_objects_are_moved_aside_by_the_same_rule(far: Far) -> None:
    far.commit(0)
    key = next(key for key in far.storage._data if key.startswith("objects/"))
    far.storage.put(key, b"damaged")
    report = far.repo.verify()
    assert not report.ok
    assert len(report.repair()) == 1
    assert far.condemned() is None
    far.repo.commit(state(0), branch="again")  # on main it would trust its parent
    assert far.repo.verify().ok


def test_an_undo_over_a_damaged_operation_waits_until_no_gc_can_be_at_work(far: Far) -> None:
    far.commit(0, 1)
    far.storage.put(oplog.key_of(far.repo._oplog.newest().seq), b"damaged")
    fresh = far.open()  # which does not remember the operation
    with pytest.raises(ConflictError, match=r"Retry in 1 minutes"):
        fresh.undo()
    far.storage.time += LEASE + MARGIN
    fresh.undo()
    assert fresh.resolve("main").step == 0


def test_leftovers_of_commits_over_a_slow_line_stay_for_a_day(far: Far) -> None:
    far.commit(0)
    far.repo.commit(state(9), branch="side")
    left = [key for key in far.storage._data if key.startswith("objects/")]
    far.repo.commit(state(0), branch="other")
    ids = {far.repo.resolve("side").id}
    far.repo.delete_branch("side")
    far.repo.gc(KeepAll(), grace=0)  # only the objects are left of it
    assert far.repo.resolve(ids.pop()).expired
    for key in left:
        far.storage.create(key, b"x")
    far.storage.time += DAY / 2
    assert far.repo.gc(KeepAll()).objects == 0
    far.storage.time += DAY / 2
    assert far.repo.gc(KeepAll()).objects > 0


def test_a_delete_that_comes_later_than_the_margin_would_lose(
    far: Far,
) -> None:
    """The control: without the margin, and a server that refuses old requests, data is lost."""
    far.commit(0, 1)
    assert not is_lost(far, state(0), margin=MARGIN)
    far.commit(2, 3)
    assert is_lost(far, state(2), margin=0.0)


def is_lost(far: Far, expiring: dict[str, Any], *, margin: float) -> bool:
    """Hold one delete of a gc until a commit has taken over and has put the same again."""
    far.storage.signed_seconds = None if margin == 0 else MARGIN - 1
    sent, may_arrive = threading.Event(), threading.Event()

    def hold(keys: list[str]) -> None:
        if threading.current_thread() is gc and keys[0].startswith("objects/"):
            sent.set()
            assert may_arrive.wait(60)

    failures: list[Exception] = []

    def collect() -> None:
        try:
            far.open().gc(MaxToKeep(1), grace=0)
        except (ConflictError, StorageError) as error:
            failures.append(error)

    gc = threading.Thread(target=collect)
    with patch("ckptstore.store.condemned.MARGIN_SECONDS", margin):
        far.storage.on_delete = hold
        gc.start()
        assert sent.wait(60)
        far.open().commit(expiring, branch=f"again-{margin}")
        may_arrive.set()
        gc.join()
    far.storage.on_delete = lambda keys: None
    (failure,) = failures
    assert isinstance(failure, TakenOverError if margin == 0 else StorageError)
    return not far.repo.verify().ok


def stands_still(far: Far, call: int) -> tuple[bool, str | None]:
    """A commit stands still at a call, while a gc takes what it has found or put.

    Returns whether it got so far, and what is wrong afterwards.
    """
    me = threading.get_ident()
    committing = far.open()
    committing._oplog.newest()  # so that it puts before it looks
    far.storage.calls_until_stall[me] = call
    far.storage.on_stall = lambda: far.open(days=9).gc(MaxToKeep(1), grace=0)
    committing.commit(state(0), branch="again")
    if far.storage.calls_until_stall.pop(me, None) is not None:
        return False, None
    report = far.open().verify()
    if not report.ok:
        return True, f"stalled at call {call}: {report.problems[0]}"
    is_same = difference(state(0), far.open().checkout("again")) is None
    return True, None if is_same else "another state came back"


def since_the_look() -> AbstractContextManager[object]:
    """A commit that takes its look as what came before its puts."""
    real = committer.Committer._written_beside

    def written(self: Any, look: Callable[[], Any], *args: Any) -> Any:
        begun = []
        made, _, head = real(self, lambda: begun.append(look()) or begun[-1], *args)
        return made, begun[-1].newest, head

    return patch.object(committer.Committer, "_written_beside", written)


@pytest.mark.parametrize("since", [committer.SINCE_MAX, 0], ids=["few operations", "many"])
def test_a_commit_that_stands_still_at_any_call_puts_again_what_a_gc_took(
    since: int, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "SINCE_MAX", since)
    assert first_complaint(far, stands_still) is None


@pytest.mark.seeded
@pytest.mark.parametrize(
    "bug",
    [since_the_look, interleavings.never_condemned, interleavings.only_the_newest],
    ids=lambda bug: bug.__name__.replace("_", "-"),
)
def test_a_commit_that_stands_still_shows_mistakes(
    bug: Callable[[], AbstractContextManager[object]], far: Far
) -> None:
    with bug():
        assert first_complaint(far, stands_still) is not None


def copied(storage: FarStorage) -> Callable[[], None]:
    """Copy a storage; what is returned puts the copy in place."""
    data, modified = dict(storage._data), dict(storage._modified)

    def put_back() -> None:
        storage._data, storage._modified = dict(data), dict(modified)

    return put_back


@pytest.mark.parametrize("others", [0, 2, 3, 6])
def test_a_handle_relies_on_nothing_of_a_repository_that_an_older_copy_replaced(
    others: int, far: Far
) -> None:
    """Others have appended operations with the numbers that it knows, or fewer, or more."""
    known = far.open()
    known.commit(state(0))
    put_back = copied(far.storage)
    for number in (1, 2):
        known.commit(state(number))
    put_back()
    for number in range(3, 3 + others):
        far.open().commit(state(number))
    far.storage.time += 3600
    with suppress(CkptStoreError):
        known.commit(state(2))
        assert difference(state(2), far.open().checkout("main")) is None
    assert far.open().verify().ok


def test_a_first_look_long_after_the_opening_sees_another_repository(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the puts, beside which it looks, take so long that it looks once more."""
    monkeypatch.setattr(committer, "beside", lambda job, other: (other(), job())[::-1])
    far.repo.commit(state(0))
    end = Oplog(far.storage).end()
    known = Repository(far.storage, MARKER, clock=lambda: far.storage.time, end=end)
    other = Marker(store="1" * 32, chunk_bytes=MARKER.chunk_bytes)
    far.storage._data.clear()
    far.storage._modified.clear()
    far.storage.create("ckptstore.json", other.encode())
    Repository(far.storage, other, clock=lambda: far.storage.time).commit(state(1))
    far.storage.time += 3600
    put = far.storage.put

    def slow_put(key: str, data: Any) -> None:
        far.storage.time += 3
        put(key, data)

    monkeypatch.setattr(far.storage, "put", slow_put)
    with pytest.raises(StorageError, match="holds another repository"):
        known.commit(state(2))


def test_a_commit_whose_known_head_expired_leaves_no_manifest_without_objects(far: Far) -> None:
    rng = np.random.default_rng(0)
    frozen, first, second = (rng.random(30_000) for _ in range(3))
    known = far.open()
    known.commit({"frozen": frozen, "w": first})
    kept = far.repo.commit(state(0))
    far.repo.gc(MaxToKeep(1), grace=0)
    made = known.commit({"frozen": frozen, "w": second})  # it took the first to be there
    live = {key for key in far.storage._data if key.startswith("checkpoints/")}
    assert live == {f"checkpoints/{one.id}.json" for one in (kept, made)}
    assert far.open().verify().ok


def test_a_commit_that_begins_again_puts_no_object_twice(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "SINCE_MAX", 2)
    rng = np.random.default_rng(0)
    first, second = ({f"w{n}": rng.random(8192) for n in range(40)} for _ in range(2))
    known = far.open()
    known.commit(first, branch="a")
    for number in range(3):
        far.repo.commit(state(number))
    puts: Counter[str] = Counter()
    put = far.storage.put

    def counted_put(key: str, data: Any) -> None:
        puts[key] += 1
        put(key, data)

    monkeypatch.setattr(far.storage, "put", counted_put)
    made = known.commit(second, branch="a")
    objects = {key: count for key, count in puts.items() if key.startswith("objects/")}
    assert set(objects.values()) == {1}
    sizes = [far.storage.size(key) for key in objects]
    assert made._manifest.new_bytes == sum(size for size in sizes if size is not None)


# ------------------------------------------------------------------------------------ every order


class FarWorld(interleavings.World):
    """The world of `test_interleavings` on such a storage."""

    def far(self, storage: FarStorage, actors: int) -> list[Repository]:
        """Handles of processes whose clocks are wrong by days; each second one knows the log."""
        for key, data in self.data.items():
            storage.put(key, data)
        handles = [
            Repository(
                storage,
                self.marker,
                clock=lambda days=number * 30 - 40: 1e9 + 1 + days * DAY,  # type: ignore[misc]
                end=Oplog(storage).end(),
            )
            for number in range(actors)
        ]
        for handle in handles[::2]:
            handle._oplog.newest()
        return handles


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> FarStorage:
    """One that each schedule begins anew."""
    storage = FarStorage()
    with_clocks(monkeypatch, storage)
    return storage


FATES = ("lives", "lives", "dies", "stalls")


def play(world: FarWorld, storage: FarStorage, cast: Sequence[Any], seed: int) -> str | None:
    """One schedule, in which some actors die or stall; what is wrong afterwards, or None."""
    rng = random.Random(seed)
    choose = sticky(rng, [0.0, 0.5, 0.8, 0.95])
    storage.__init__()  # type: ignore[misc]
    *handles, judge = world.far(storage, len(cast) + 1)
    fates = [rng.choice(FATES) for _ in cast]
    moments = [rng.randrange(1, 150) for _ in cast]

    def acted(act: Any, repo: Repository, fate: str, moment: int) -> Any:
        me = threading.get_ident()
        if fate != "lives":
            (storage.calls_left if fate == "dies" else storage.calls_until_stall)[me] = moment
        try:
            return act(repo, world)
        except Killed:
            return None
        finally:
            storage.calls_left.pop(me, None)
            storage.calls_until_stall.pop(me, None)

    storage.schedule = Schedule(choose)
    roles = zip(cast, handles, fates, moments, strict=True)
    results = storage.schedule.run(
        [lambda role=role: acted(*role) for role in roles]  # type: ignore[misc]
    )
    storage.schedule = None
    storage.time += LEASE + MARGIN
    judge.gc(KeepAll(), grace=0)
    survived = [
        (act, result)
        for act, result in zip(cast, results, strict=True)
        if not (
            (result is None and act is not interleavings.read_the_old)
            or isinstance(result, StorageError)
        )
    ]
    acts, results = [act for act, _ in survived], [result for _, result in survived]
    return interleavings.complaint(judge, world, acts, results)


PARTS = 2
SCHEDULES = 200  # in each part


@pytest.mark.parametrize("part", some(range(PARTS), range(2 * PARTS)))
def test_whatever_the_order_and_whoever_dies_nothing_that_was_acknowledged_is_lost(
    part: int, storage: FarStorage, record_property: Callable[[str, object], None]
) -> None:
    seeds = range(part * SCHEDULES, (part + 1) * SCHEDULES)
    played = interleavings.commits_of(partial(play, FarWorld(), storage), seeds)
    record_property("commits beside gc", played)


def no_look() -> AbstractContextManager[object]:
    return patch.object(Ownership, "look", lambda self: None)


def taken_over_at_once() -> AbstractContextManager[object]:
    return patch.object(finish._Deadline, "is_over", lambda self: True)


def taken_over_without_an_operation() -> AbstractContextManager[object]:
    def take_over(self: Ownership, done: str) -> None:
        self._began = moment.now()
        self._lease = 0.0

    return patch.object(Ownership, "take_over", take_over)


def ended_for_another() -> AbstractContextManager[object]:
    return patch.object(Ownership, "check", lambda self, newest: None)


def waits_for_nothing() -> AbstractContextManager[object]:
    """A commit that takes what is condemned as released."""

    def wait(stores: Any, met: Any) -> None:
        stores.append(lambda newest: replace(newest, condemned=None), "released")

    return patch("ckptstore.gc.wait_for_gc", wait)


def stalled(far: Far, call: int) -> tuple[bool, str | None]:
    """A gc stands still at a call, while a commit needs what it deletes and waits as it has to.

    Returns whether it got so far, and what is wrong afterwards.
    """
    me = threading.get_ident()
    far.storage.calls_until_stall[me] = call

    def beside() -> None:
        far.open(days=-9).commit(state(0), branch="again")

    far.storage.on_stall = beside
    try:
        far.open(days=9).gc(MaxToKeep(1), grace=0)
    except ConflictError:
        pass
    except ckptstore.CkptStoreError as error:
        return True, f"stalled at call {call}: {error}"
    finally:
        is_over = far.storage.calls_until_stall.pop(me, None) is not None
    if is_over:
        return False, None
    report = far.open().verify()
    if not report.ok:
        return True, f"stalled at call {call}: {report.problems[0]}"
    is_same = difference(state(0), far.open().checkout("again")) is None
    return True, None if is_same else "another state came back"


def first_complaint(far: Far, stalled: Callable[[Far, int], tuple[bool, str | None]]) -> str | None:
    """What is wrong after a process stood still at any of its calls; None if nothing ever is."""
    far.commit(0, 1, 2)
    data, modified = dict(far.storage._data), dict(far.storage._modified)
    for call in range(1, 1000):
        far.storage._data, far.storage._modified = dict(data), dict(modified)
        is_there, complaint = stalled(far, call)
        if complaint or not is_there:
            assert complaint or call > CALLS_MIN
            return complaint
    raise AssertionError


def test_a_gc_that_stands_still_at_any_call_takes_nothing_that_a_commit_put_again(
    far: Far,
) -> None:
    assert first_complaint(far, stalled) is None


@pytest.mark.seeded
@pytest.mark.parametrize(
    "bug",
    [
        interleavings.never_condemned,
        no_look,
        taken_over_at_once,
        taken_over_without_an_operation,
        ended_for_another,
        waits_for_nothing,
    ],
    ids=lambda bug: bug.__name__.replace("_", "-"),
)
def test_a_gc_that_stands_still_shows_mistakes(
    bug: Callable[[], AbstractContextManager[object]], far: Far
) -> None:
    with bug():
        assert first_complaint(far, stalled) is not None


def test_a_gc_killed_at_any_call_is_finished_by_a_commit_or_the_next_gc(
    far: Far, record_property: Callable[[str, object], None]
) -> None:
    far.commit(0, 1, 2)
    data, modified = dict(far.storage._data), dict(far.storage._modified)
    me = threading.get_ident()
    kills = 0
    while True:
        far.storage._data, far.storage._modified = dict(data), dict(modified)
        far.storage.calls_left[me] = kills
        try:
            far.open().gc(MaxToKeep(1), grace=0)
        except Killed:
            kills += 1
        else:
            break
        finally:
            del far.storage.calls_left[me]
        if kills % 2:
            made = far.open(days=3).commit(state(0), branch="again")
            assert difference(state(0), far.repo.checkout(made.id)) is None
        far.open(days=-3).gc(MaxToKeep(1), grace=0)
        fresh = far.open()
        assert fresh._oplog.newest().condemned is None
        assert fresh.verify().ok
        assert difference(state(2), fresh.checkout("main")) is None
        assert [item.expired for item in fresh.log("main")] == [False, True, True]
    assert kills > 30
    record_property("kills", kills)


def die_at_objects(keys: list[str]) -> None:
    if keys[0].startswith("objects/"):
        raise Killed


def test_a_dead_gc_is_taken_over_only_when_its_time_is_over(storage: FarStorage) -> None:
    world = FarWorld()
    for seed in range(60):
        storage.__init__()  # type: ignore[misc]
        *handles, judge = world.far(storage, 4)
        storage.on_delete = die_at_objects
        with pytest.raises(Killed):
            judge.gc(MaxToKeep(1), grace=0)
        storage.on_delete = lambda keys: None
        judge = Repository(storage, world.marker)
        left = judge._oplog.newest()
        assert left.condemned is not None
        storage.schedule = Schedule(sticky(random.Random(seed), [0.0, 0.5]))
        acts = [
            interleavings.commit_the_same_again,
            interleavings.commit_partly_the_same,
            interleavings.collect,
        ]
        results = storage.schedule.run(
            [
                lambda act=act, repo=repo: act(repo, world)  # type: ignore[misc]
                for act, repo in zip(acts, handles, strict=True)
            ]
        )
        storage.schedule = None
        failed = [result for result in results if isinstance(result, Exception)]
        # A delete was signed too long ago, or the others waited so long that the gc seemed dead.
        assert all(isinstance(error, StorageError | ConflictError) for error in failed)
        later = [left, *judge._oplog.between(left.seq + 1, judge._oplog.newest())]
        assert TOOK_OVER in [operation.done for operation in later]
        for before, after in pairwise(later):
            if after.done == TOOK_OVER:  # of the dead gc, or of one that stood still as long
                assert before.condemned is not None
                since = storage._modified[oplog.key_of(before.condemned.since)]
                assert storage._modified[oplog.key_of(after.seq)] - since >= LEASE + MARGIN
        assert judge.verify().ok
