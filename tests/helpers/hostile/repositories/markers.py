"""Repositories whose marker lies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.helpers.hostile.cases import repository
from tests.helpers.hostile.forge import Forge, digest_of, dumps, sealed

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.hostile.cases import Case


def _marker(story: str, data: bytes | Callable[[Forge], bytes]) -> Case:
    def given(forge: Forge) -> None:
        forge.honest()
        forge.marker_path.write_bytes(data(forge) if callable(data) else data)

    return repository(f"a marker {story}", given, refused=("open",))


def _fields(story: str, **fields: Any) -> Case:
    document = {"format": 1, "store": "f" * 32, "hash": "blake3", "chunk_size": 65536, **fields}
    return _marker(story, sealed("repository", document))


def _without(field: str) -> bytes:
    document = {"format": 1, "store": "f" * 32, "hash": "blake3", "chunk_size": 65536}
    del document[field]
    return sealed("repository", document)


CASES = (
    _marker("that is empty", b""),
    _marker("that is not sealed", dumps({"format": 1})),
    _marker("that is sealed as an operation", sealed("operation", {"format": 1})),
    _marker(
        "with a second document beside the sealed one",
        dumps({"blake3": digest_of(dumps({"format": 1})), "repository": {"format": 1}, "more": 1}),
    ),
    _marker(
        "with spaces between its values", sealed("repository", {"format": 1}).replace(b":", b": ")
    ),
    _marker("of 40 MB", lambda forge: b" " * (40 << 20)),
    _marker("of 100,000 open brackets", b"[" * 60_000),
    _marker("holding an integer of 60,000 digits", b'{"blake3":' + b"9" * 60_000 + b"}"),
    _marker("that is not UTF-8", b'{"blake3":"\xff\xfe"}'),
    _marker("that says its format twice", b'{"blake3":"x","repository":{"format":1,"format":2}}'),
    _marker("with NaN for a format", b'{"blake3":"x","repository":{"format":NaN}}'),
    _fields("of a newer format", format=2),
    _fields("of format 0", format=0),
    _fields("of format true", format=True),
    _fields("of format 1.0", format=1.0),
    _fields("of another hash", hash="md5"),
    _fields("whose chunks have no bytes", chunk_size=0),
    _fields("whose chunks have a negative size", chunk_size=-65536),
    _fields("whose chunks have 2^70 bytes", chunk_size=2**70),
    _fields("whose chunks have 65536.5 bytes", chunk_size=65536.5),
    _fields("whose chunk size is a string", chunk_size="65536"),
    _fields("whose store has no id", store=""),
    _fields("whose store has an id of a million characters", store="f" * 60_000),
    _marker("without a chunk size", _without("chunk_size")),
    _marker("without a hash", _without("hash")),
)
