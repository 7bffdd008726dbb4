"""Objects: bytes by digest, never handed out unless they have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ckptstore.digest import Digest
from ckptstore.errors import CorruptError, InvalidInputError
from ckptstore.storage import LocalStorage, MemoryStorage, Storage
from ckptstore.store.objects import CHECK_STEP_BYTES, ObjectStore, digest_of, key_of

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 8192 + b"tail"  # two steps of a check, and a little
DIGEST = Digest.of(DATA)


@pytest.fixture(params=["memory", "local"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return MemoryStorage() if request.param == "memory" else LocalStorage(tmp_path)


def test_what_is_put_comes_back_by_its_digest_whole_and_in_parts(storage: Storage) -> None:
    objects = ObjectStore(storage)
    objects.put(DIGEST, DATA)
    objects.flush([DIGEST])
    assert objects.get(DIGEST, bytes_max=len(DATA)) == DATA
    buffer = memoryview(bytearray(len(DATA)))
    objects.read_into(DIGEST, buffer)
    assert buffer == DATA
    objects.read_range(DIGEST, buffer[:100], start=7, expected=Digest.of(DATA[7:107]))
    assert buffer[:100] == DATA[7:107]
    objects.check(DIGEST, size=len(DATA))
    ((digest, item),) = objects.list()
    assert (digest, item.key, item.size) == (DIGEST, key_of(DIGEST), len(DATA))


def test_it_is_there_only_with_the_right_size(storage: Storage) -> None:
    objects = ObjectStore(storage)
    assert not objects.has(DIGEST, size=len(DATA))
    objects.put(DIGEST, DATA)
    assert objects.has(DIGEST, size=len(DATA))
    assert not objects.has(DIGEST, size=len(DATA) - 1)


@pytest.mark.parametrize("position", [0, CHECK_STEP_BYTES - 1, CHECK_STEP_BYTES, len(DATA) - 1])
def test_one_flipped_bit_anywhere_is_found_by_every_way_of_reading(
    storage: Storage, position: int
) -> None:
    objects = ObjectStore(storage)
    damaged = bytearray(DATA)
    damaged[position] ^= 4
    storage.put(key_of(DIGEST), damaged)
    part = slice(max(0, position - 5), position + 1)
    buffer = memoryview(bytearray(len(DATA)))
    for read in (
        lambda: objects.get(DIGEST, bytes_max=len(DATA)),
        lambda: objects.read_into(DIGEST, buffer),
        lambda: objects.read_range(
            DIGEST,
            buffer[: part.stop - part.start],
            start=part.start,
            expected=Digest.of(DATA[part]),
        ),
        lambda: objects.check(DIGEST, size=len(DATA)),
    ):
        with pytest.raises(CorruptError, match=key_of(DIGEST)):
            read()


def test_a_missing_object_is_damage_and_says_which(storage: Storage) -> None:
    """Whoever asks for an object read its digest in a document: it must be there."""
    objects = ObjectStore(storage)
    buffer = memoryview(bytearray(3))
    for read in (
        lambda: objects.get(DIGEST, bytes_max=3),
        lambda: objects.read_into(DIGEST, buffer),
        lambda: objects.read_range(DIGEST, buffer, start=0, expected=DIGEST),
    ):
        with pytest.raises(CorruptError, match=f"{key_of(DIGEST)} is missing"):
            read()


def test_shared_memory_that_changed_since_it_was_hashed_is_never_put(storage: Storage) -> None:
    objects = ObjectStore(storage)
    with pytest.raises(InvalidInputError, match="changed while it was being committed"):
        objects.put(DIGEST, DATA[1:], is_shared=True)
    assert list(objects.list()) == []


def test_an_object_may_be_empty(storage: Storage) -> None:
    objects, empty = ObjectStore(storage), Digest.of(b"")
    objects.put(empty, b"")
    assert objects.get(empty, bytes_max=0) == b""
    objects.read_into(empty, memoryview(bytearray()))
    objects.check(empty, size=0)


def test_keys_and_digests_belong_to_each_other() -> None:
    assert key_of(DIGEST) == f"objects/{DIGEST[:2]}/{DIGEST[2:]}"
    assert digest_of(key_of(DIGEST)) == DIGEST
    for key in (
        "",
        "objects/",
        f"objects/{DIGEST}",
        f"objects/{DIGEST[:3]}/{DIGEST[3:]}",
        key_of(DIGEST).upper().replace("OBJECTS", "objects"),
        key_of(DIGEST)[:-1],
        f"{key_of(DIGEST)}0",
        f"checkpoints/{DIGEST}.json",
        f"objects/{DIGEST[:2]}/{DIGEST[2:4]}/{DIGEST[4:]}",
    ):
        assert digest_of(key) is None, key
