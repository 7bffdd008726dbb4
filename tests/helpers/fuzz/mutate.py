"""Changes of inputs: a value of a document in them, or some of their bytes."""

from __future__ import annotations

import ast
import copy
import json
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

BYTES_SHARE = 0.3  # of the changes, those that know nothing of JSON
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    8,
    255,
    65_536,
    2**31 - 1,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
    0.0,
    -0.0,
    1.5,
    1e308,
    "",
    "x",
    "/",
    "..",
    "../x",
    "a/b",
    "\0",
    "\ud800",
    "\x1b[2J",
    "nan",
    "inf",
    "9" * 30,
    "0" * 64,
    "f" * 64,
    "<f8",
    ",f8",
    "<M8[D/0]",
    "|V99999999999",
    "|O",
    "<U4",
    "float32",
    "bfloat16",
    "float4_e2m1fn_x2",
    "complex32",
    "zstd",
    "blosc",
    "gzip",
    "lz4",
    "delta",
    "sharding_indexed",
    [],
    {},
    [[]],
    [0],
    [1, 1],
    [2**62],
    {"x": 1},
)


def change(
    data: bytes, size_max: int, seed: int, otherwise: Callable[[bytes, int], bytes]
) -> bytes:
    """Change a value in a line that is a document; `otherwise` changes bytes.

    Args:
        data: The input. A line of it may be JSON, or a Python literal as in numpy's files.
        size_max: How many bytes the new one may have.
        seed: Decides how.
        otherwise: Changes bytes of any kind.
    """
    random = Random(seed)
    lines = data.split(b"\n")
    documents = [(at, *found) for at, line in enumerate(lines) if (found := _parsed(line))]
    if not documents or random.random() < BYTES_SHARE:
        return otherwise(data, size_max)
    at, document, write = random.choice(documents)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        document = _changed(document, random)
    lines[at] = write(document).encode(errors="surrogatepass")
    new = b"\n".join(lines)
    return new if len(new) <= size_max else otherwise(data, size_max)


def _parsed(line: bytes) -> tuple[Any, Callable[[Any], str]] | None:
    """The document in a line, if there is one, and how such a document is written."""
    if line[:1] not in (b"{", b"["):
        return None
    for read, write in ((json.loads, _json), (ast.literal_eval, repr)):
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return read(line.decode()), write
    return None


def _json(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _changed(document: Any, random: Random) -> Any:
    """A copy with one value replaced, removed, repeated or moved."""
    root = [copy.deepcopy(document)]
    places = list(_places(root))
    holder, key = random.choice(places)
    other, place = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 1:
            holder[str(random.choice(_VALUES))] = copy.deepcopy(holder[key])
        case 2:
            holder[key] = copy.deepcopy(other[place])
        case 3:
            holder[key] = [holder[key]] * random.choice((1, 2, 33))
        case 4 if isinstance(holder[key], int | float):
            number = holder[key]
            holder[key] = random.choice((-number, number * 2, number // 2, number + 1, number - 1))
        case _:
            holder[key] = random.choice(_VALUES)
    return root[0] if root else {}


def _places(holder: Any) -> Any:
    """All places of values, from the root on."""
    keys = range(len(holder)) if isinstance(holder, list) else list(holder)
    for key in keys:
        yield holder, key
        if isinstance(holder[key], list | dict):
            yield from _places(holder[key])
