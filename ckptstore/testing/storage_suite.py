"""StorageSuite: what every Storage must do. Subclass it, add a `storage` fixture, and run pytest.

Example:
    class TestMyStorage(StorageSuite):
        @pytest.fixture
        def storage(self) -> Storage:
            return MyStorage(...)
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from ckptstore.storage import Storage

__all__ = ["StorageSuite"]

KEY = "objects/ab/cd"
WRITERS = 8


class StorageSuite:
    """The contract of `ckptstore.storage.Storage`, rule by rule."""

    def test_what_is_put_is_what_is_got(self, storage: Storage) -> None:
        """For bytes of all sizes around the steps in which they are read."""
        for size in (0, 1, 4096, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 3 << 20):
            data = bytes(i * 31 % 256 for i in range(256)) * (size // 256 + 1)
            storage.put(KEY, data[:size])
            assert storage.get(KEY, bytes_max=size) == data[:size]
            assert storage.size(KEY) == size

    def test_put_takes_any_buffer_and_replaces_what_was_there(self, storage: Storage) -> None:
        """A bytearray, a part of a memoryview, and longer bytes before shorter ones."""
        storage.put(KEY, bytearray(b"a long value"))
        storage.put(KEY, memoryview(b"xshorty")[1:6])
        assert storage.get(KEY, bytes_max=100) == b"short"

    def test_read_into_fills_the_buffer_and_shows_each_part_in_order(
        self, storage: Storage
    ) -> None:
        """The parts that `seen` is called with are together the whole."""
        data = bytes(range(256)) * 8192
        storage.put(KEY, data)
        buffer, seen = bytearray(len(data)), bytearray()
        storage.read_into(KEY, memoryview(buffer), seen=seen.extend)
        assert bytes(buffer) == bytes(seen) == data

    def test_read_into_from_a_start_reads_a_part(self, storage: Storage) -> None:
        """The buffer's length determines how much; the rest of the key does not matter."""
        storage.put(KEY, b"0123456789")
        buffer = bytearray(4)
        storage.read_into(KEY, memoryview(buffer), start=3)
        assert bytes(buffer) == b"3456"

    @pytest.mark.parametrize(("length", "start"), [(11, None), (9, None), (5, 6), (1, 10)])
    def test_read_into_refuses_a_size_that_is_not_there(
        self, storage: Storage, length: int, start: int | None
    ) -> None:
        """Without a start the sizes must be equal; with one the key must reach that far."""
        storage.put(KEY, b"0123456789")
        with pytest.raises(CorruptError, match=KEY):
            storage.read_into(KEY, memoryview(bytearray(length)), start=start)

    def test_get_refuses_more_bytes_than_the_caller_takes(self, storage: Storage) -> None:
        """Before they are read."""
        storage.put(KEY, b"0123456789")
        with pytest.raises(CorruptError, match=KEY):
            storage.get(KEY, bytes_max=9)

    def test_a_missing_key_is_not_found_and_has_no_size(self, storage: Storage) -> None:
        """Whether its folder is there or not."""
        storage.put("objects/ab/other", b"")
        for key in (KEY, "nowhere/x", "nothing"):
            with pytest.raises(NotFoundError):
                storage.get(key, bytes_max=1)
            with pytest.raises(NotFoundError):
                storage.read_into(key, memoryview(bytearray(1)))
            assert storage.size(key) is None

    def test_create_succeeds_once(self, storage: Storage) -> None:
        """And the bytes of the loser are nowhere."""
        assert storage.create("ops/1", b"first")
        assert not storage.create("ops/1", b"second")
        assert storage.get("ops/1", bytes_max=10) == b"first"
        assert _sizes(storage) == {"ops/1": 5}

    def test_of_many_creators_exactly_one_wins_and_its_bytes_are_there(
        self, storage: Storage
    ) -> None:
        """On threads at once, for many keys."""
        for round in range(20):
            key = f"ops/{round}"
            with ThreadPoolExecutor(WRITERS) as pool:
                bodies = [f"writer {writer}".encode() for writer in range(WRITERS)]
                won = list(pool.map(lambda body, key=key: storage.create(key, body), bodies))
            assert sum(won) == 1
            assert storage.get(key, bytes_max=100) == bodies[won.index(True)]

    @pytest.mark.parametrize("size", [0, 1, 1 << 18, (1 << 18) + 1, 1 << 20])
    def test_a_staged_copy_is_what_was_seen_of_changing_memory(
        self, storage: Storage, size: int
    ) -> None:
        """Even if the memory changes between the pieces."""
        memory, copied = bytearray(size), bytearray()

        def seen(piece: memoryview) -> None:
            copied.extend(piece)
            memory[:] = bytes([len(copied) % 251]) * size

        storage.stage(memory, seen=seen).put(KEY)
        assert len(copied) == size
        assert storage.get(KEY, bytes_max=size) == copied

    def test_what_is_staged_is_seen_once_it_is_put(self, storage: Storage) -> None:
        """With the bytes that the memory had then; what is dropped was never there."""
        storage.put(KEY, b"old")
        memory = bytearray(b"new")
        staged, dropped = storage.stage(memory), storage.stage(memory)
        memory[:] = b"???"
        dropped.drop()
        assert _sizes(storage) == {KEY: 3}
        assert storage.get(KEY, bytes_max=10) == b"old"
        staged.put(KEY)
        staged.drop()
        assert storage.get(KEY, bytes_max=10) == b"new"
        assert _sizes(storage) == {KEY: 3}

    def test_what_is_put_in_a_batch_is_there_during_and_after_it(self, storage: Storage) -> None:
        """And a batch sees what was there before, and what others put meanwhile."""
        storage.put(KEY, b"old")
        with storage.batch() as batch:
            assert batch.size(KEY) == 3
            batch.put(KEY, b"longer")
            batch.stage(b"x").put("objects/cd/staged")
            storage.put("objects/ab/other", b"")
            batch.flush([KEY, "objects/cd/staged"])
            assert batch.size("objects/ab/other") == 0
            assert storage.get(KEY, bytes_max=10) == b"longer"
        assert _sizes(storage) == {KEY: 6, "objects/cd/staged": 1, "objects/ab/other": 0}

    def test_list_gives_every_key_under_a_folder_with_its_size(self, storage: Storage) -> None:
        """And nothing of a folder whose name only begins alike."""
        sizes = {"objects/ab/1": 1, "objects/cd/22": 2, "objects2/x": 3, "top": 4}
        for key, size in sizes.items():
            storage.put(key, bytes(size))
        assert _sizes(storage) == sizes
        assert _sizes(storage, "objects/") == {"objects/ab/1": 1, "objects/cd/22": 2}
        assert _sizes(storage, "nowhere/") == {}

    def test_delete_removes_keys_and_does_not_mind_missing_ones(self, storage: Storage) -> None:
        """In one call."""
        storage.put(KEY, b"x")
        storage.put("objects/ab/stays", b"y")
        storage.delete([KEY, KEY, "nowhere/x"])
        assert _sizes(storage) == {"objects/ab/stays": 1}

    def test_a_copy_has_the_bytes_and_outlives_the_first_key(self, storage: Storage) -> None:
        """It replaces what was there; a missing key is an error and leaves it."""
        storage.put(KEY, b"one")
        storage.put("history/x", b"other")
        storage.copy(KEY, "history/x")
        storage.copy(KEY, "history/x")
        storage.put(KEY, b"two")
        storage.delete([KEY])
        assert storage.get("history/x", bytes_max=10) == b"one"
        with pytest.raises(NotFoundError):
            storage.copy(KEY, "history/x")
        assert _sizes(storage) == {"history/x": 3}

    def test_a_reserve_is_no_key_and_can_be_released(self, storage: Storage) -> None:
        """As often as one likes; storages without one release nothing."""
        for _ in range(2):
            storage.hold_reserve()
        assert _sizes(storage) == {}
        assert storage.sweep() == 0
        assert list(storage.temporaries()) == []
        held = storage.reserve_bytes()
        assert storage.release_reserve() == bool(held)
        assert storage.reserve_bytes() == 0
        assert not storage.release_reserve()

    def test_flush_takes_keys_that_others_put(self, storage: Storage) -> None:
        """And any number of them, including none."""
        storage.put(KEY, b"x")
        storage.flush([])
        storage.flush([KEY, "objects/ab/other"])

    def test_a_listing_tells_when_each_key_was_stored(self, storage: Storage) -> None:
        """In seconds by the clock of `now`, and updated whenever a key is put again."""
        before = storage.now()
        storage.put(KEY, b"x")
        storage.create("ops/000000000001.json", b"y")
        times = [item.modified for item in storage.list("")]
        assert len(times) == 2
        assert all(before <= time <= storage.now() for time in times)
        assert all(abs(time - before) < 3600 for time in times)
        while storage.now() <= max(times):
            pass
        again = storage.now()
        storage.put(KEY, b"z")
        assert not storage.create("ops/000000000001.json", b"z")
        stored = {item.key: item.modified for item in storage.list("")}
        assert stored["ops/000000000001.json"] < again <= stored[KEY]

    def test_an_empty_storage_can_be_prepared_more_than_once(self, storage: Storage) -> None:
        """And one that holds only what a repository may hold, at any depth."""
        for _ in range(2):
            storage.prepare({"top", "objects/"})
            storage.put("top", b"x")
            storage.put("objects/ab/cd", b"y")
        assert _sizes(storage) == {"top": 1, "objects/ab/cd": 1}

    def test_a_storage_that_holds_other_things_is_not_prepared(self, storage: Storage) -> None:
        """They are named, and stay."""
        storage.put("photos/one", b"x")
        with pytest.raises(InvalidInputError, match="photos"):
            storage.prepare({"top", "objects/"})
        assert _sizes(storage) == {"photos/one": 1}

    @pytest.mark.parametrize(
        "key", ["", "/x", "../x", "a/../b", "a//b", ".x", "a/b/c/d", "a\0", "ä"]
    )
    def test_a_key_outside_the_grammar_is_refused(self, storage: Storage, key: str) -> None:
        """By whatever takes a key."""
        with pytest.raises(InvalidInputError):
            storage.get(key, bytes_max=1)
        with pytest.raises(InvalidInputError):
            storage.put(key, b"")
        with pytest.raises(InvalidInputError):
            storage.create(key, b"")
        with pytest.raises(InvalidInputError):
            storage.size(key)

    def test_only_one_holds_the_lock(self, storage: Storage) -> None:
        """The second one waits."""
        order: list[str] = []

        def second() -> None:
            with storage.lock():
                order.append("second")

        with storage.lock():
            waiting = threading.Thread(target=second)
            waiting.start()
            waiting.join(0.05)
            order.append("first")
        waiting.join(10)
        assert order == ["first", "second"]

    def test_sweep_leaves_every_key(self, storage: Storage) -> None:
        """Only what is half written goes."""
        storage.put(KEY, b"x")
        assert storage.sweep() == 0
        assert storage.get(KEY, bytes_max=1) == b"x"


def _sizes(storage: Storage, prefix: str = "") -> dict[str, int]:
    """Return the size of every key that is listed, by key."""
    sizes = {item.key: item.size for item in storage.list(prefix)}
    assert sorted(storage.keys(prefix)) == sorted(sizes)
    return sizes
