"""Matching: which stored array is meant by which name of a destination, and patterns that say so.

Two arrays of the same dtype and shape match if they hold the same bytes, or else if their paths
have the longest common end, and then beginning. Where two are equally likely, neither is matched.
Nothing is read from the checkpoint, and nothing is changed. See docs/adr/0056.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from ckptstore.arrays.frameworks import describe, form_of, in_order
from ckptstore.digest import Digest
from ckptstore.documents.page import ArrayEntry
from ckptstore.errors import UnsupportedValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from ckptstore.documents.entry import Entry

_TOKEN = re.compile(r"[0-9]+|[^\W\d_]+|.", re.DOTALL)  # numbers, words, and everything else


def matches(stored: Mapping[str, Entry], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return the path in the destination of each stored array that has an unambiguous match.

    Args:
        stored: Stored arrays by path.
        wanted: Arrays of the destination by path.
    """
    groups: dict[object, tuple[dict[str, Entry], dict[str, Any]]] = defaultdict(lambda: ({}, {}))
    for path, entry in stored.items():
        groups[entry.dtype, entry.shape][0][path] = entry
    for path, array in wanted.items():
        groups[form_of(array)][1][path] = array
    found: dict[str, str] = {}
    for entries, arrays in groups.values():
        if entries and arrays:
            same = _of_same_bytes(entries, arrays)
            found |= same
            rest = [path for path in entries if path not in same]
            taken = {*same.values()}
            found |= _of_same_end(rest, [path for path in arrays if path not in taken])
    return found


def _of_same_bytes(stored: Mapping[str, Entry], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Matches of one dtype and shape by digest."""
    contents: dict[object, list[str]] = defaultdict(list)
    for path, entry in stored.items():
        if isinstance(entry, ArrayEntry) and entry.digests:
            contents[entry.content].append(path)
    cuts = {stored[paths[0]].cut: paths[0] for paths in contents.values()}
    holders: dict[object, list[str]] = defaultdict(list)
    for path, array in wanted.items():
        for example in cuts.values():
            content = _content(array, stored[example], contents)
            if content in contents:
                holders[content].append(path)
    return {
        contents[content][0]: paths[0]
        for content, paths in holders.items()
        if len(paths) == len(contents[content]) == 1
    }


def _content(array: Any, entry: Entry, known: Collection[object]) -> object:
    """The digests of an array that is cut as a stored one; None if the first is not a known one."""
    assert isinstance(entry, ArrayEntry)
    firsts = {content[1][0] for content in known}  # type: ignore[index]
    try:
        source = describe(in_order(array, entry.order))
    except UnsupportedValueError:
        return None
    if source is None:
        return None
    digests, items = [], set()
    size = source.nbytes // math.prod(source.shape)
    for _, chunk in entry.grid():
        data = source.chunk(chunk, lambda size: memoryview(bytearray(size)))
        digests.append(Digest.of(data))
        if digests[0] not in firsts:
            return None
        first = bytes(data[:size])
        items |= {first} if bytes(data) == first * (len(data) // size) else {b"", first}
    # Arrays of one value, such as zeros, are equal by chance.
    return (entry.cut, tuple(digests)) if len(items) > 1 else None


def _of_same_end(stored: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Matches of one dtype and shape by the longest common end of their paths, in whole tokens.

    Of several with the same end, those with the longest common beginning match.
    """
    found: dict[str, str] = {}
    for one, other in _alike(stored, wanted, _ends):
        pairs = [(one, other)]
        if len(one) > 1 or len(other) > 1:
            pairs = [*_alike(one, other, _beginnings)]
        found |= {a[0]: b[0] for a, b in pairs if len(a) == len(b) == 1}
    return found


def _alike(
    stored: Sequence[str], wanted: Sequence[str], parts: Callable[[str], Iterator[tuple[int, str]]]
) -> Iterator[tuple[list[str], list[str]]]:
    """The paths of both sides that have the longest part in common, then the next, and so on."""
    groups: dict[tuple[int, str], tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, paths in enumerate((stored, wanted)):
        for path in paths:
            for part in parts(path):
                groups[part][side].append(path)
    done: tuple[set[str], set[str]] = set(), set()
    for _, both in sorted(groups.items(), reverse=True):
        one, other = ([p for p in paths if p not in done[side]] for side, paths in enumerate(both))
        if one and other:
            yield one, other
            done[0].update(one)
            done[1].update(other)


def _ends(path: str) -> Iterator[tuple[int, str]]:
    """The ends of a path that begin with a token, each with its number of tokens."""
    starts = [token.start() for token in _TOKEN.finditer(path)]
    for position, start in enumerate(starts):
        yield len(starts) - position, path[start:]


def _beginnings(path: str) -> Iterator[tuple[int, str]]:
    """The beginnings of a path that end with a token, each with its number of tokens."""
    for number, token in enumerate(_TOKEN.finditer(path), start=1):
        yield number, path[: token.end()]


def patterns(moves: Mapping[str, str], others: Collection[str]) -> dict[str, str]:
    """Return a short rename that moves these paths and no others.

    Args:
        moves: The new path of each path.
        others: The paths that stay where they are.
    """
    rules: dict[tuple[str, str], list[str]] = defaultdict(list)
    for old, new in moves.items():
        rules[_heads(old, new)].append(old)
    prefixes: list[tuple[str, str]] = []
    literals: dict[str, str] = {}
    every = [*moves, *others]
    for (old, new), paths in rules.items():
        # Of a rule that would move others too, the longest common beginning is tried.
        for more in ("", _common([path[len(old) :] for path in paths])):
            begins = {path for path in every if path.startswith(old + more)}
            if len(paths) > 1 and begins == {*paths}:
                prefixes.append((old + more, new + more))
                break
        else:
            literals |= {path: moves[path] for path in paths}
    # The pattern of a longer beginning has to come first; none of these begins with another.
    return {
        **{re.escape(old): replacement(new) for old, new in literals.items()},
        **{f"{re.escape(old)}(.*)": rf"{replacement(new)}\1" for old, new in prefixes},
    }


def _heads(old: str, new: str) -> tuple[str, str]:
    """The beginnings of two paths without their longest common end, in whole tokens."""
    tokens = [_TOKEN.findall(path) for path in (old, new)]
    common = 0
    for a, b in zip(*map(reversed, tokens), strict=False):
        if a != b:
            break
        common += len(a)
    return old[: len(old) - common], new[: len(new) - common]


def _common(texts: Sequence[str]) -> str:
    """The longest common beginning."""
    low, high = min(texts), max(texts)
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), None)
    return low if same is None else low[:same]


def replacement(text: str) -> str:
    """A text as the replacement of a pattern."""
    return text.replace("\\", r"\\")
