"""StorageSuite: what every Storage must do. Subclass it, give a `storage` fixture, and let pytest run it.

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
        """The buffer's length says how much; the rest of the key does not matter."""
        storage.put(KEY, b"0123456789")
        buffer = bytearray(4)
        storage.read_into(KEY, memoryview(buffer), start=3)
        assert bytes(buffer) == b"3456"

    @pytest.mark.parametrize(("length", "start"), [(11, None), (9, None), (5, 6), (1, 10)])
    def test_read_into_refuses_a_size_that_is_not_there(
        self, storage: Storage, length: int, start: int | None
    ) -> None:
        """Without a start the buffer must be as long as the key; with one the key must reach that far."""
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
        """And what the loser brought is nowhere."""
        assert storage.create("ops/1", b"first")
        assert not storage.create("ops/1", b"second")
        assert storage.get("ops/1", bytes_max=10) == b"first"
        assert dict(storage.list("")) == {"ops/1": 5}

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

    def test_a_put_that_is_not_confirmed_leaves_what_was_there(self, storage: Storage) -> None:
        """`confirm` is called before anybody can see the bytes, and what it raises comes out."""
        storage.put(KEY, b"old")

        def refuse() -> None:
            assert storage.get(KEY, bytes_max=10) == b"old"
            raise InvalidInputError("no")

        with pytest.raises(InvalidInputError, match="no"):
            storage.put(KEY, b"new", confirm=refuse)
        assert storage.get(KEY, bytes_max=10) == b"old"
        assert dict(storage.list("")) == {KEY: 3}

    def test_list_gives_every_key_under_a_folder_with_its_size(self, storage: Storage) -> None:
        """And nothing of a folder whose name only begins alike."""
        sizes = {"objects/ab/1": 1, "objects/cd/22": 2, "objects2/x": 3, "top": 4}
        for key, size in sizes.items():
            storage.put(key, bytes(size))
        assert dict(storage.list("")) == sizes
        assert dict(storage.list("objects/")) == {"objects/ab/1": 1, "objects/cd/22": 2}
        assert dict(storage.list("nowhere/")) == {}

    def test_delete_removes_keys_and_does_not_mind_missing_ones(self, storage: Storage) -> None:
        """In one call."""
        storage.put(KEY, b"x")
        storage.put("objects/ab/stays", b"y")
        storage.delete([KEY, KEY, "nowhere/x"])
        assert dict(storage.list("")) == {"objects/ab/stays": 1}

    def test_flush_takes_keys_that_others_put(self, storage: Storage) -> None:
        """And any number of them, none included."""
        storage.put(KEY, b"x")
        storage.flush([])
        storage.flush([KEY, "objects/ab/other"])

    def test_stale_tells_old_keys_from_new_ones_and_does_not_mind_missing_ones(
        self, storage: Storage
    ) -> None:
        """By the storage's own clock."""
        storage.put(KEY, b"x")
        storage.create("ops/000000000001.json", b"y")
        keys = [KEY, "ops/000000000001.json", "objects/ab/missing"]
        assert storage.stale(keys, seconds=0) == set(keys[:2])
        assert storage.stale(keys, seconds=3600) == set()

    def test_only_one_holds_the_lock(self, storage: Storage) -> None:
        """Whoever comes second waits."""
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
        assert storage.sweep(seconds=0) == 0
        assert storage.get(KEY, bytes_max=1) == b"x"
