"""Repositories in which one array's entry lies."""

from __future__ import annotations

from typing import Any

from tests.helpers.hostile.cases import Case, repository
from tests.helpers.hostile.forge import MISSING, Forge


def _entry(story: str, **fields: Any) -> Case:
    """The page's only array with fields replaced; its path is followed by the structure."""

    def given(forge: Forge) -> None:
        path = fields.get("path", "w")
        forge.honest(
            arrays=[forge.entry(**fields)],
            structure={"dict": [["w", {"tensor": path}]]},
        )

    return repository(f"an array {story}", given)


def _without(field: str) -> Case:
    def given(forge: Forge) -> None:
        entry = forge.entry()
        del entry[field]
        forge.honest(arrays=[entry])

    return repository(f"an array without {field}", given)


def _dtype(story: str, dtype: object) -> Case:
    return _entry(f"whose dtype is {story}", dtype=dtype)


def _shape(story: str, shape: object, **fields: Any) -> Case:
    return _entry(f"of shape {story}", shape=shape, **{"chunk_shape": shape, **fields})


def _grid(story: str, shape: list[int], chunk_shape: object, count: int) -> Case:
    def given(forge: Forge) -> None:
        digests = [forge.object(bytes(8))] * count
        entry = forge.entry(shape=shape, chunk_shape=chunk_shape, digests=digests)
        forge.honest(arrays=[entry])

    return repository(f"an array {story}", given)


def _numpy_float4(forge: Forge) -> None:
    """A dtype that only torch has, claimed for a numpy array."""
    entry = forge.entry(dtype="float4_e2m1fn_x2", shape=[8], chunk_shape=[8])
    forge.honest(arrays=[entry], structure={"dict": [["w", {"ndarray": "w"}]]}, ref={"bytes": 8})


CASES = (
    *(_without(field) for field in ("path", "dtype", "shape", "chunk_shape", "digests")),
    _entry("whose path has a NUL", path="w\0"),
    _entry("whose path is absolute", path="/etc/passwd"),
    _entry("whose path has an empty part", path="a//b"),
    _entry("whose path ends in a slash", path="w/"),
    _entry("whose path is empty", path=""),
    _entry("whose path has a million characters", path="w" * 10**6),
    _entry("whose path steers a terminal", path="\x1b[2J"),
    _entry("whose path is a lone surrogate", path="\udc80"),
    _entry("whose path is a number", path=5),
    _entry("whose path is null", path=None),
    _dtype("object", "object"),
    _dtype("O", "O"),
    _dtype("builtins.eval", "builtins.eval"),
    _dtype("__class__", "__class__"),
    _dtype("float128", "float128"),
    _dtype("int4", "int4"),
    _dtype("a number", 4),
    _dtype("null", None),
    _dtype("a list", ["float32"]),
    _dtype("an object", {"float32": 1}),
    _dtype("a million characters long", "f" * 10**6),
    _shape("-2", [-2]),
    _shape("2.0", [2.0]),
    _shape("true", [True]),
    _shape('"2"', ["2"]),
    _shape("null", None),
    _shape("a number", 2),
    _shape("an object", {"0": 2}),
    _shape("2^63", [2**63]),
    _shape("2^62 x 2^62", [2**62, 2**62]),
    _shape("2^61, of 2^63 bytes", [2**61]),
    _shape("2^40, in one chunk", [2**40]),
    _shape("0 x 2^62 x 2^62", [0, 2**62, 2**62], digests=[MISSING]),
    _shape("65 dimensions", [1] * 65),
    _shape("100,000 dimensions", [1] * 100_000),
    _shape("of 4,000 digits", [10**4000]),
    _entry("with no chunk", digests=[]),
    _entry("with a chunk too many", digests=[MISSING, MISSING]),
    _entry("whose chunks are null", digests=None),
    _entry("whose chunks are one string", digests=MISSING),
    _entry("whose chunk is a path", digests=["../../../../etc/passwd"]),
    _entry("whose chunk is a digest in capitals", digests=["A" * 64]),
    _entry("whose chunk is not there", digests=[MISSING]),
    _entry("that is longer than its chunk", shape=[3], chunk_shape=[3]),
    _entry("that is shorter than its chunk", shape=[1], chunk_shape=[1]),
    _grid("with a chunk of a grid in two dimensions too few", [4, 4], [2, 2], 3),
    _grid("with a chunk of a grid in two dimensions too many", [4, 4], [2, 2], 5),
    _grid("whose chunks of a grid in two dimensions are too short", [4, 4], [2, 2], 4),
    _grid("whose chunks have no length in one dimension", [4, 4], [4, 0], 1),
    _grid("whose chunks are longer than the array by 1", [4, 4], [4, 5], 1),
    _grid("whose chunks are longer than a length of 0", [0, 4], [2, 2], 0),
    _grid("with 2^62 x 2^62 chunks", [2**62, 1, 2**62], [1, 1, 1], 1),
    _grid("whose columns have more bytes than a chunk may have", [2**27, 4], [2**27, 1], 4),
    _grid("whose chunks have no length", [4], [0], 1),
    _grid("whose chunks have a negative length", [4], [-1], 1),
    _grid("whose chunks have another number of dimensions", [4], [4, 1], 1),
    _grid("whose chunks have half a length", [4], [0.5], 8),
    _grid("with 2^40 chunks, of which one is listed", [2**40], [1], 1),
    _grid("whose chunks are longer than the array by 2^62", [4], [2**62], 2),
    repository(
        "a numpy array of a dtype that only torch has", _numpy_float4, refused=("checkout",)
    ),
)
