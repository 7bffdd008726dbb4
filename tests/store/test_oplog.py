"""The log of operations: of many writers each counts once, and it is read in both directions."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptstore import moment
from ckptstore.digest import Digest
from ckptstore.documents import ref_page
from ckptstore.documents.canonical import Fields
from ckptstore.documents.marker import MARKER_KEY, Marker
from ckptstore.documents.operation import SEQ_MAX, Operation
from ckptstore.errors import (
    ConflictError,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from ckptstore.moment import Moment
from ckptstore.storage import LocalStorage, MemoryStorage, Storage
from ckptstore.store import oplog as oplog_module
from ckptstore.store.oplog import KEPT_OPERATIONS, Oplog, key_of, page_key_of
from tests.helpers.counting_storage import CountingStorage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ID = Digest.of(b"checkpoint")
STORE = "a random id"
LONG_AGO = Moment(-math.inf, -math.inf)


class FarStorage(MemoryStorage):
    """Memory of which a log reads no more than it must."""

    is_far = True


@pytest.fixture(params=["memory", "local", "far"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    kinds = {"memory": MemoryStorage, "far": FarStorage}
    return LocalStorage(tmp_path) if request.param == "local" else kinds[request.param]()


def count_up(log: Oplog) -> None:
    log.append(lambda newest: replace(newest, settings={"n": newest.settings.get("n", 0) + 1}))


def test_of_many_writers_at_once_each_counts_once(storage: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: count_up(Oplog(storage)), range(120)))
    log = Oplog(storage)
    assert log.newest().settings == {"n": 120}
    assert sorted(log.seqs()) == list(range(1, 121))
    assert [log.read(seq).settings["n"] for seq in range(1, 121)] == list(range(1, 121))
    assert len({log.read(seq).nonce for seq in range(1, 121)}) == 120


def forget_when(log: Oplog) -> None:
    """Have a log know what it knows since long ago."""
    for sight in list(log._recent._values.values()):
        log._recent.put(sight.operation.seq, sight._replace(moment=LONG_AGO))
    log._bound = log._bound and log._bound._replace(moment=LONG_AGO)
    log._confirmed = log._confirmed and LONG_AGO


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["count", "count thrice", "look", "late", "open", "be opened"]),
        )
    )
)
def test_of_handles_that_remember_each_sees_what_the_others_appended(
    calls: list[tuple[int, str]],
) -> None:
    """Also when the known operation is too old to be relied on, or only its number is known."""
    storage = FarStorage()
    handles = [Oplog(storage) for _ in range(3)]
    counted = 0
    for number, call in calls:
        if call == "late":
            forget_when(handles[number])
        elif call == "count":
            count_up(handles[number])
            counted += 1
        elif call == "count thrice":
            for _ in range(3):
                count_up(handles[number])
            counted += 3
        elif call == "open":
            handles[number] = Oplog(storage, end=handles[number].end())
        elif call == "be opened":  # and only used after others have appended
            handles[number] = Oplog(storage, end=handles[number].end())
            continue
        assert handles[number].newest().settings.get("n", 0) == counted
        assert handles[number].newest() == Oplog(storage).newest()


def test_a_decision_on_what_is_not_the_newest_any_more_is_made_again() -> None:
    """Its error is not the caller's."""
    storage = FarStorage()
    log, other = Oplog(storage), Oplog(storage)
    count_up(log)
    count_up(other)
    seen: list[int] = []

    def decide(newest: Operation) -> Operation:
        seen.append(newest.seq)
        if newest.seq == 1:
            raise ConflictError("old")
        return newest

    assert log.append(decide).seq == 3
    assert seen == [1, 2]


@pytest.mark.parametrize("begins", [0, 1])
def test_a_handle_that_slept_for_more_operations_than_are_kept_finds_the_newest(
    begins: int,
) -> None:
    """Also one that has only been opened."""
    storage = FarStorage()
    opened = []
    log = Oplog(storage)
    for _ in range(begins + 1):
        opened.append(Oplog(storage, end=log.end()))
        count_up(log)
    for handle in (log, *opened):
        forget_when(handle)
    for _ in range(KEPT_OPERATIONS + 150):
        count_up(Oplog(storage))
    count_up(log)
    assert log.newest().settings == {"n": KEPT_OPERATIONS + 152 + begins}
    assert all(handle.newest() == log.newest() for handle in opened)


@pytest.mark.parametrize("is_late", [True, False], ids=["long ago", "a moment ago"])
def test_a_repository_that_went_away_under_a_handle_that_remembers_is_an_error(
    is_late: bool,
) -> None:
    storage = FarStorage()
    marker = Marker(store=STORE)
    storage.create(MARKER_KEY, marker.encode())
    log = Oplog(storage, store=STORE)
    count_up(log)
    if is_late:
        forget_when(log)
    storage.delete([item.key for item in storage.list("")])
    with pytest.raises(StorageError, match="no longer holds the repository"):
        count_up(log)
    assert [item.key for item in storage.list("")] == []


def test_what_a_decision_raises_ends_the_attempt_and_appends_nothing() -> None:
    log = Oplog(MemoryStorage())

    def refuse(newest: Operation) -> Operation:
        raise ConflictError("no")

    with pytest.raises(ConflictError, match="no"):
        log.append(refuse)
    assert log.seqs() == set()


def test_the_number_and_the_nonce_are_the_logs_own() -> None:
    log = Oplog(MemoryStorage())
    made = log.append(lambda newest: Operation(seq=99, nonce="mine", done="x"))
    assert (made.seq, made.done) == (1, "x")
    assert made.nonce != "mine"
    assert log.newest() == made


def test_before_the_first_operation_there_is_nothing() -> None:
    log = Oplog(MemoryStorage())
    assert log.newest() == Operation()
    assert list(log.changes(log.newest())) == []


def test_the_operations_from_one_to_the_newest_are_read_or_their_loss_is_told() -> None:
    storage = MemoryStorage()
    log = Oplog(storage)
    for number in range(5):
        log.append(lambda newest, number=number: replace(newest, done=str(number)))
    assert [operation.done for operation in log.between(3, log.newest())] == ["2", "3", "4"]
    assert [operation.done for operation in log.between(5, log.newest())] == ["4"]
    assert len(list(log.between(0, log.newest()))) == 5
    storage.delete(["ops/000000000003.json"])
    with pytest.raises(NotFoundError):
        list(log.between(2, log.newest()))


def test_the_operations_are_read_backwards_past_what_is_missing_or_damaged() -> None:
    storage = MemoryStorage()
    log = Oplog(storage)
    for _ in range(6):
        count_up(log)
    storage.delete([key_of(2)])
    storage.delete([key_of(4)])
    storage.put(key_of(4), b"{}")
    found = [(one.seq, before and before.seq) for one, before in log.changes(log.newest())]
    assert found == [(6, 5), (5, None), (3, None), (1, 0)]


def test_the_operation_before_one_that_was_pruned_or_is_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    log = Oplog(storage)
    for _ in range(3):
        count_up(log)
    storage.delete([key_of(2)])
    with pytest.raises(CorruptError, match=r"ops/000000000002\.json is missing, so operation 3"):
        log.before(3, log.newest())
    monkeypatch.setattr(oplog_module, "KEPT_OPERATIONS", 1)
    with pytest.raises(NotFoundError, match="too old to go back to: only the newest 1 are"):
        log.before(3, log.newest())


def test_a_writer_that_slept_while_its_number_was_used_and_pruned_is_told() -> None:
    storage = MemoryStorage()
    count_up(Oplog(storage))
    slept: list[bool] = []

    def sleep(newest: Operation) -> Operation:
        if not slept:
            slept.append(True)
            for _ in range(KEPT_OPERATIONS + 150):
                count_up(Oplog(storage))
        return newest

    with pytest.raises(ConflictError, match="its outcome is unknown"):
        Oplog(storage).append(sleep)
    assert Oplog(storage).newest().settings == {"n": KEPT_OPERATIONS + 151}


def test_a_newest_operation_that_was_pruned_under_the_reader_is_looked_for_again() -> None:
    class Late(MemoryStorage):
        """Deletes an operation between listing and reading, as a pruning writer does."""

        taken = 0

        def get(self, key: str, *, bytes_max: int) -> bytes:
            if self.taken < 3:
                self.taken += 1
                count_up_in_place(self)
                self.delete([key])
            return super().get(key, bytes_max=bytes_max)

    def count_up_in_place(storage: MemoryStorage) -> None:
        seq = max(Oplog(storage).seqs()) + 1
        storage.create(key_of(seq), Operation(seq=seq, nonce=str(seq)).encode())

    storage = Late()
    storage.create(key_of(1), Operation(seq=1).encode())
    assert Oplog(storage).newest().seq == 4


def test_a_file_under_another_operations_name_is_damage(storage: Storage) -> None:
    storage.create(key_of(2), Operation(seq=1).encode())
    with pytest.raises(CorruptError, match="states that it is operation 1"):
        Oplog(storage).newest()


def test_files_that_are_no_operations_are_passed_over(storage: Storage) -> None:
    count_up(Oplog(storage))
    for key in ("ops/1.json", "ops/x.json", "ops/000000000009.txt", "ops/0000000000009.json"):
        storage.put(key, b"x")
    assert Oplog(storage).seqs() == {1}


def test_behind_the_last_number_there_is_no_operation(storage: Storage) -> None:
    storage.create(key_of(SEQ_MAX), Operation(seq=SEQ_MAX).encode())
    with pytest.raises(CorruptError, match="last possible number"):
        count_up(Oplog(storage))


MANY = {f"release-{number:05}": ID for number in range(5_000)}


def tag(log: Oplog, name: str) -> None:
    log.append(lambda newest: replace(newest, tags={**newest.tags, name: ID}, undoes=None))


@pytest.fixture
def many() -> CountingStorage:
    """A storage with an operation that has many tags."""
    storage = CountingStorage()
    Oplog(storage).append(lambda newest: replace(newest, tags=MANY, heads={"main": ID}))
    return storage


def test_one_more_of_many_tags_writes_few_bytes_and_reads_none_again(many: CountingStorage) -> None:
    log = Oplog(many)
    assert log.newest().tags == MANY
    sizes = []
    for number in range(200):
        many.forget()
        tag(log, f"another-{number}")
        sizes.append(sum(many.written.values()))
        assert not [key for key in many.reads if key.startswith("refs/")]
    assert max(sizes) < 48 << 10
    assert Oplog(many).newest().tags == log.newest().tags
    assert len(log.newest().tags) == 5_200


def test_a_few_refs_are_in_the_operation_as_ever(many: CountingStorage) -> None:
    log = Oplog(many)
    log.append(lambda newest: replace(newest, tags={"v1": ID}))
    document = json.loads(many.get(key_of(2), bytes_max=1 << 20))["operation"]
    assert document["format"] == 1
    assert document["tags"] == {"v1": ID}
    assert "tag_pages" not in document
    assert log.newest().heads == {"main": ID}


def test_an_operation_with_pages_is_one_that_earlier_versions_refuse(many: CountingStorage) -> None:
    document = json.loads(many.get(key_of(1), bytes_max=1 << 20))["operation"]
    assert document["format"] == 2
    with pytest.raises(InvalidInputError, match="newer ckptstore"):
        Fields(document, name="ops/1").version()


def test_pages_are_pruned_with_the_operations_that_have_them(
    many: CountingStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of writers that lost a race too; all that a kept operation has stay."""
    monkeypatch.setattr(oplog_module, "KEPT_OPERATIONS", 10)
    monkeypatch.setattr(oplog_module, "PRUNE_EVERY", 5)
    log = Oplog(many)
    lost = ref_page.encode({"lost": ID})
    many.put(page_key_of(ref_page.page_name(3, lost)), lost)
    for number in range(60):
        if number % 20 == 10:
            before = log.newest().tags
            log.append(lambda newest: replace(newest, tags={}))
            log.append(lambda newest, before=before: replace(newest, tags=before))
        tag(log, f"another-{number}")
        operations = [Oplog(many).read(seq) for seq in sorted(log.seqs())]
    named = {name for operation in operations for name in operation.tag_pages}
    listed = {name for name, _ in log.list_pages() if name}
    assert named <= listed
    assert all(ref_page.seq_of(name) > operations[0].seq - 5 for name in listed - named)
    assert ref_page.page_name(3, lost) not in listed


@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_a_page_that_is_missing_or_damaged_is_an_error_that_names_it(
    many: CountingStorage, damage: str
) -> None:
    key = page_key_of(Oplog(many).newest().tag_pages[3])
    data = many.get(key, bytes_max=1 << 20)
    many.delete([key])
    if damage == "flipped":
        many.put(key, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(CorruptError, match=key):
        Oplog(many).newest()


def test_of_many_writers_of_many_refs_each_counts_once(many: CountingStorage) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: tag(Oplog(many), f"another-{n}"), range(40)))
    assert len(Oplog(many).newest().tags) == 5_040


class Clock:
    """The clocks of this machine, which stand still. passed: what they show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = Moment(0.0, 0.0)
        monkeypatch.setattr(moment, "now", lambda: self.passed)


def keep(operations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oplog_module, "KEPT_OPERATIONS", operations)
    monkeypatch.setattr(oplog_module, "PRUNE_EVERY", operations // 5)


def pausing(meanwhile: Callable[[], None]) -> Callable[[Operation], Operation]:
    """A decision to change nothing, in whose first call other things happen."""
    events = iter([meanwhile])

    def decide(newest: Operation) -> Operation:
        for event in events:
            event()
        return newest

    return decide


@pytest.mark.parametrize(
    "passed", [Moment(3.0, 3.0), Moment(3.0, 0.0), Moment(0.0, 3.0)], ids=["both", "awake", "wall"]
)
def test_a_writer_that_paused_while_its_number_was_used_and_pruned_is_told(
    passed: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whichever clock noticed that."""
    keep(50, monkeypatch)
    clock, storage = Clock(monkeypatch), FarStorage()
    log = Oplog(storage)
    count_up(log)

    def meanwhile() -> None:
        for _ in range(70):
            count_up(Oplog(storage))
        clock.passed = passed

    with pytest.raises(ConflictError, match="its outcome is unknown"):
        log.append(pausing(meanwhile))


def test_a_thread_that_paused_is_told_though_another_one_goes_on_with_the_same_handle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keep(50, monkeypatch)
    storage = FarStorage()
    log = Oplog(storage)
    count_up(log)

    def meanwhile() -> None:
        for _ in range(70):
            count_up(log)

    with pytest.raises(ConflictError, match="its outcome is unknown"):
        log.append(pausing(meanwhile))


def test_operations_one_after_the_other_are_appended_without_a_listing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seconds later, one listing shows that the next number was never used."""

    class Far(CountingStorage):
        is_far = True

    clock, storage = Clock(monkeypatch), Far()
    log = Oplog(storage)
    count_up(log)
    for listings in (0, 0, 1, 0):
        if listings:
            clock.passed = Moment(clock.passed.awake + 3, clock.passed.wall + 3)
        storage.forget()
        count_up(log)
        assert storage.calls["list"] == listings


def test_a_writer_waits_the_less_the_more_often_others_were_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage, waited = FarStorage(), list[float]()
    log, other = Oplog(storage), Oplog(storage)
    count_up(log)
    clock = Clock(monkeypatch)
    monkeypatch.setattr(oplog_module.time, "sleep", waited.append)
    create = storage.create

    def slow(key: str, data: object, **options: object) -> bool:
        if len(waited) < 20:
            monkeypatch.setattr(storage, "create", create)
            count_up(other)
            monkeypatch.setattr(storage, "create", slow)
        clock.passed = Moment(clock.passed.awake + 0.16, clock.passed.wall)
        return create(key, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "create", slow)
    count_up(log)
    assert [round(seconds, 2) for seconds in waited] == [
        *[round(0.01 * left, 2) for left in range(15, -1, -1)],
        *[0.0] * 4,
    ]
    assert log.newest().settings == {"n": 22}


def test_a_writer_that_lost_decides_on_the_operation_that_was_first() -> None:
    """Which `create` has read, so that it is not read again."""

    class Far(CountingStorage):
        is_far = True

    storage = Far()
    log, other = Oplog(storage), Oplog(storage)
    count_up(log)
    seen: list[int] = []

    def decide(newest: Operation) -> Operation:
        if not seen:
            count_up(other)
        seen.append(newest.seq)
        storage.forget()
        return newest

    log.append(decide)
    assert seen == [1, 2]
    assert storage.reads == {key_of(3): 1}  # a look whether there is a newer one
