"""A digest is 64 lowercase hexadecimal digits, and nothing else is one."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from ckptstore.digest import Digest, DigestMap
from ckptstore.errors import InvalidInputError

EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_it_is_the_blake3_of_the_bytes_of_any_buffer() -> None:
    assert Digest.of(b"") == EMPTY
    data = bytes(range(200))
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8)):
        assert Digest.of(buffer) == Digest.of(data)
    assert Digest.of(memoryview(data)[1:]) == Digest.of(data[1:]) != Digest.of(data)


def test_it_is_a_string_in_every_use() -> None:
    digest = Digest.parse(EMPTY)
    assert digest.short == "af1349b9"
    assert {EMPTY: 1}[digest] == 1
    assert sorted([digest, "a", "b"]) == ["a", EMPTY, "b"]
    again = pickle.loads(pickle.dumps(digest))
    assert (type(again), again) == (Digest, EMPTY)


NO_DIGESTS = {
    "nothing": "",
    "one less": EMPTY[:-1],
    "one more": EMPTY + "0",
    "upper case": EMPTY.upper(),
    "end of line": EMPTY + "\n",
    "space": " " + EMPTY[1:],
    "digits of another script": "٠" * 64,
    "a path": "../" + EMPTY[3:],
    "bytes": EMPTY.encode(),
    "number": 5,
    "none": None,
    "long": "x" * 1_000_000,
}


@pytest.mark.parametrize("kind", NO_DIGESTS)
def test_anything_else_is_refused_in_a_short_message(kind: str) -> None:
    text = NO_DIGESTS[kind]
    with pytest.raises(InvalidInputError, match="is not a digest") as error:
        Digest.parse(text)
    assert len(str(error.value)) < 200


def test_a_map_of_digests_is_a_dict_of_them() -> None:
    """Also with many in one bucket, which begin with the same digits."""
    chance = random.Random(1)
    digests = [
        Digest(prefix + chance.randbytes(30).hex())
        for prefix in ("0000", "ffff", "ab12")
        for _ in range(200)
    ]
    numbers, truth = DigestMap(), {}
    for _ in range(3000):
        digest = chance.choice(digests)
        assert numbers.get(digest) == truth.get(digest)
        assert (digest in numbers) == (digest in truth)
        numbers[digest] = truth[digest] = chance.choice([0, 7, 2**64 - 1])
    assert len(numbers) == len(truth)
    assert dict(numbers.items()) == truth
    assert [digest[:4] for digest, _ in numbers.items()] == sorted(digest[:4] for digest in truth)


def test_bytes_that_lie_across_two_entries_of_a_map_are_no_digest() -> None:
    """Those of the second half of one digest and its number, and so on over the next entry."""
    raw = bytes(range(8)) + bytes(range(8)) + bytes(range(100, 116))
    first, second = raw.hex(), raw[:8].hex() + "77" * 24
    numbers = DigestMap()
    numbers[first], numbers[second] = 1, 2
    across = raw[8:] + (1).to_bytes(8, "little")
    assert across.hex() not in numbers
    numbers[across.hex()] = 3
    assert [numbers.get(digest) for digest in (first, second, across.hex())] == [1, 2, 3]
