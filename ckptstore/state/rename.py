"""Rename: the arrays of a state under other paths, and the structure with them moved there.

A pattern that matches no array may match a key of a dict, with which everything below it moves.
Otherwise plain values stay where they are. Only keys of dicts can change. A part of a path that is
a position in a list or tuple, or that leads into a codec's value or the _metadata of an
OrderedDict, stays as it is. See docs/adr/0056.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Self

from ckptstore.documents.names import check_path, escape_first, escape_key, unescape_key
from ckptstore.documents.nodes import ArrayNode, DictNode, InnerNode, ListNode, TupleNode
from ckptstore.documents.structure import DEPTH_MAX
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.paths import children, join, key_segments
from ckptstore.state.tree import arrays, relabel, retie

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from ckptstore.documents.nodes import Key, Node

_PLAIN_PART = re.compile(r"\\[^a-zA-Z0-9]|[^\\^$*+?{}\[\]|()]")
_PLAIN = re.compile(rf"(?:{_PLAIN_PART.pattern})*")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")

Pattern = tuple[re.Pattern[str], str]  # with its replacement


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The new paths of a state.

    Attributes:
        arrays: The new path of every array.
        keys: The new paths of keys that move with everything below them.
    """

    arrays: Mapping[str, str]
    keys: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: str) -> str:
        """The new path of an array, or of anything else."""
        new = self.arrays.get(path)
        return self.below(path) if new is None else new

    def below(self, path: str) -> str:
        """The new path of what moves only with the innermost key above it, or is that key."""
        if self.keys:
            for above in _upwards(path):
                if above in self.keys:
                    return self.keys[above] + path[len(above) :]
        return path


@dataclass(frozen=True, slots=True)
class Rename:
    """Regular expressions over whole paths, each with its replacement; the first match wins."""

    patterns: tuple[Pattern, ...] = ()

    @classmethod
    def of(cls, rename: Mapping[str, str] | None) -> Self:
        """Check what a user passed: replacements by pattern, or None.

        Raises:
            InvalidInputError: It is not a dict of strings, or a pattern is not a regular
                expression.
        """
        if rename is None:
            return cls()
        if not isinstance(rename, Mapping):
            raise InvalidInputError(
                f"rename is {shown(rename)}; "
                "a dict of replacements by regular expression is expected."
            )
        return cls(tuple(_pattern(old, new) for old, new in rename.items()))

    def names(self, paths: Iterable[str], others: Iterable[str] = ()) -> Names:
        """The new paths of a state.

        Args:
            paths: The paths of its arrays.
            others: The paths of whatever else is in it: plain values, empty dicts and lists.

        Raises:
            InvalidInputError: Two arrays get the same path, a new one is not a legal path, or a
                pattern matches nothing.
        """
        listed = list(paths)
        index = _Index(self.patterns)
        unused = index.unused(listed)
        keys = _keys(unused, listed, others) if unused else {}
        whole = Names(arrays={}, keys=keys)
        names: dict[str, str] = {}
        olds: dict[str, str] = {}
        for path in listed:
            found = index.first(path)
            new = whole.below(path) if found is None else _expanded(path, found)
            names[path] = new = new if new == path else _checked(path, new)
            if new in olds:
                raise InvalidInputError(
                    f"Two arrays would have the path {shown(new)}: {shown(olds[new])} and "
                    f"{shown(path)}. Rename them apart, or exclude one."
                )
            olds[new] = path
        return Names(arrays=names, keys=keys)

    def names_in(self, root: Node, *, source: Node | None = None) -> Names:
        """The new paths of a structure; errors as of `names`.

        source: the structure before anything was left out of it, whose paths are meant.
        """
        listed = [node.path for node in arrays(root)]
        if not self.patterns:
            return Names(arrays=dict(zip(listed, listed, strict=True)))
        return self.names(listed, _others(root, "", root if source is None else source))

    def within(self, paths: Collection[str], others: Iterable[str]) -> Self:
        """The patterns that match something; arguments as of `names`."""
        unused = _Index(self.patterns).unused(paths)
        unused = _Index(unused).unused(_places(paths, others))
        return type(self)(tuple(pattern for pattern in self.patterns if pattern not in unused))

    def to_dict(self) -> dict[str, str]:
        """The replacements by pattern, as `of` takes them."""
        return {pattern.pattern: new for pattern, new in self.patterns}


def _keys(
    patterns: Sequence[Pattern], paths: Collection[str], others: Iterable[str]
) -> dict[str, str]:
    """The new paths of the keys that patterns match, each of which has to match one."""
    places, index = _places(paths, others), _Index(patterns)
    if unused := index.unused(places):
        raise InvalidInputError(
            f"The rename {shown(unused[0][0].pattern)} matches no array that is chosen, and no "
            "key. A pattern must match a whole path; `ckptstore ls` lists the paths."
        )
    found = ((place, index.first(place)) for place in places)
    return {
        place: _checked(place, _expanded(place, pattern))
        for place, pattern in found
        if pattern is not None
    }


def _places(paths: Collection[str], others: Iterable[str]) -> list[str]:
    """The paths of everything that is no array: plain values, and the keys above them."""
    known = {*paths}
    every = (above for path in chain(paths, others) for above in _upwards(path))
    return [*dict.fromkeys(path for path in every if path not in known)]


def _upwards(path: str) -> Iterator[str]:
    """A path, and those above it."""
    while path:
        yield path
        path = path.rpartition("/")[0]


def _others(node: Node, place: str, source: Node) -> Iterator[str]:
    """The paths of everything that is no array and has nothing below it.

    source: the node before anything was left out, without which a key may be escaped otherwise.
    """
    if isinstance(node, ArrayNode):
        return
    before, below = list(children(source, place)), list(children(node, place))
    if not below:  # also a None in place of a list that was left out
        yield from [place] if place else []
        return
    if isinstance(node, DictNode) and isinstance(source, DictNode):
        by_key = dict(zip(source.items, before, strict=True))
        before = [by_key[key] for key in node.items]
    for (_, inner), (where, item) in zip(below, before, strict=True):
        yield from _others(inner, where, item)


def _expanded(path: str, pattern: Pattern) -> str:
    """The path that a pattern gives to one that it matches."""
    old, replacement = pattern
    match = old.fullmatch(path)
    assert match is not None
    try:
        return match.expand(replacement)
    except (re.error, IndexError) as error:
        raise InvalidInputError(
            f"The replacement {shown(replacement)} does not fit {shown(old.pattern)}: {error}."
        ) from error


def _checked(path: str, new: str) -> str:
    """The new path of a path, if it is a legal one."""
    try:
        return check_path(new)
    except InvalidInputError as error:
        raise InvalidInputError(f"{shown(path)} cannot be renamed: {error}") from error


class _Index:
    """Finds the first of some patterns that matches a path.

    Patterns of characters and dots only, as in a dict that spells out the name of each array, are
    looked up. Otherwise n names of n arrays would take n * n comparisons.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        self.names = [_plain_name(pattern.pattern) for pattern, _ in patterns]
        self.others = [position for position, name in enumerate(self.names) if name is None]
        # The position of each name, by its length and by where it has dots that match anything.
        self.places: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        for position, name in enumerate(self.names):
            if name is not None:
                text, dots = name
                places = self.places.setdefault(len(text), {}).setdefault(dots, {})
                places.setdefault(text, position)

    def first(self, path: str) -> Pattern | None:
        """The first pattern that matches a whole path."""
        plain = (
            places.get(_dotted(path, dots))
            for dots, places in self.places.get(len(path), {}).items()
        )
        first = min((position for position in plain if position is not None), default=None)
        for position in self.others:
            if first is not None and first < position:
                break
            if self.patterns[position][0].fullmatch(path):
                return self.patterns[position]
        return None if first is None else self.patterns[first]

    def unused(self, paths: Collection[str]) -> list[Pattern]:
        """The patterns that match no path."""
        matched = {
            (_dotted(path, dots), dots) for path in paths for dots in self.places.get(len(path), {})
        }
        return [
            pattern
            for pattern, name in zip(self.patterns, self.names, strict=True)
            if not (any(map(pattern[0].fullmatch, paths)) if name is None else name in matched)
        ]


def _plain_name(pattern: str) -> tuple[str, tuple[int, ...]] | None:
    """The text that a pattern without operators matches, and where a dot matches any character."""
    if not _PLAIN.fullmatch(pattern):
        return None
    parts = _PLAIN_PART.findall(pattern)
    dots = tuple(position for position, part in enumerate(parts) if part == ".")
    return "".join(part[-1] for part in parts), dots


def _dotted(path: str, dots: tuple[int, ...]) -> str:
    if not dots:
        return path
    letters = list(path)
    for position in dots:
        letters[position] = "."
    return "".join(letters)


def _pattern(old: object, new: object) -> Pattern:
    if not isinstance(old, str) or not isinstance(new, str):
        raise InvalidInputError(f"The rename {shown(old)} to {shown(new)} is not one of strings.")
    try:
        return re.compile(old), new
    except (re.error, RecursionError, OverflowError) as error:
        raise InvalidInputError(
            f"The rename {shown(old)} is not a regular expression: {error}."
        ) from error


def move(root: Node, names: Names, *, source: Node) -> Node:
    """The structure with everything at its new path.

    A dict keeps its order, a renamed key its place; dicts are made as needed, and those that lose
    everything they had are dropped. A dict that is made is an OrderedDict with the same _metadata
    where everything in it was in one OrderedDict under the same keys.

    Args:
        root: The structure.
        names: The new paths.
        source: The structure before anything was left out of it, whose paths those of `root` are.

    Raises:
        InvalidInputError: Something cannot get its new path.
    """
    moved = _Move(names, source).moved(root)
    renamed = relabel(moved, lambda node: ArrayNode(node.kind, names.of(node.path), node.first))
    return retie(renamed)  # a tie is still to an old path here


@dataclass(slots=True)
class _Dict:
    """A dict of the new structure.

    node: the dict that was in its place; None for a dict that is made. items: by the path segments
    of its keys. keys: all that it had and has. has_integers: whether any of these is an integer.
    """

    node: DictNode | None = None
    items: dict[str, _Item] = field(default_factory=dict)
    keys: set[Key] = field(default_factory=set)
    has_integers: bool = False

    @classmethod
    def of(cls, node: DictNode | None) -> Self:
        """An empty one in the place of a dict, or of nothing."""
        keys = set(node.items if node else ())
        return cls(node, keys=keys, has_integers=any(isinstance(key, int) for key in keys))

    def add_key(self, key: Key) -> None:
        """Add a key that is new to it."""
        self.keys.add(key)
        self.has_integers = self.has_integers or isinstance(key, int)

    def was(self) -> str | None:
        """Of a dict that is made: the path of the one dict that had all of it under these keys."""
        homes = {item.home(segment) for segment, item in self.items.items()}
        return homes.pop() if len(homes) == 1 else None


@dataclass(slots=True)
class _Item:
    """A key, what is under it, and the place where that was before; "" for what was in no dict."""

    key: Key
    content: Node | _Dict
    place: str

    def home(self, segment: str) -> str | None:
        """The path of the dict that it was in under the same key."""
        place: str | None = self.place
        if isinstance(self.content, _Dict) and self.content.node is None:
            place = self.content.was()
        above, _, last = (place or "").rpartition("/")
        return above if place and last == segment else None

    def first(self) -> str:
        """The place of the first thing in here."""
        inner = self.content.items if isinstance(self.content, _Dict) else {}
        return next((item.first() for item in inner.values()), self.place)


class _Move:
    """One structure on its way to another: every leaf is inserted again, in order."""

    def __init__(self, names: Names, source: Node) -> None:
        self.names = names
        self.dicts: dict[str, DictNode] = {}
        self.keys: dict[str, Key] = {}
        self.segments: dict[str, dict[Key, str]] = {}
        self.root = _Dict()
        self.index(source, "")

    def index(self, source: Node, place: str) -> None:
        """Note the segment of every key of a dict, and every key by the path it leads to."""
        if isinstance(source, DictNode):
            segments = dict(zip(source.items, key_segments(source.items), strict=True))
            self.segments[place] = segments
            for key, item in source.items.items():
                self.keys[join(place, segments[key])] = key
                self.index(item, join(place, segments[key]))

    def below(self, node: DictNode, place: str) -> Iterator[tuple[Node, str]]:
        """The values of a dict, each with its place."""
        segments = self.segments[place]
        return ((item, join(place, segments[key])) for key, item in node.items.items())

    def note(self, node: Node, place: str) -> None:
        """Note every dict by its place."""
        if isinstance(node, DictNode):
            self.dicts[place] = node
            for inner in self.below(node, place):
                self.note(*inner)

    def moved(self, root: Node) -> Node:
        """The structure after it."""
        self.note(root, "")
        if isinstance(root, DictNode):
            self.root = _Dict.of(root)
            self.walk(root, "")
        elif isinstance(root, ArrayNode) and self.names.of(root.path) != root.path:
            self.put(self.names.of(root.path), root, "")
        else:
            self.refuse_renames(root, "")
            return root
        return self.built(self.root)

    def walk(self, node: Node, place: str) -> None:
        """Put everything below a node where it belongs."""
        at = self.names.below(place)
        if isinstance(node, ArrayNode):
            new = self.names.of(node.path)
            self.put(at if new == self.names.below(node.path) else new, node, place)
        elif isinstance(node, DictNode):
            self.check_still(node.metadata, "it is in the _metadata of an OrderedDict")
            if not node.items and at != place:
                self.put(at, node, place)
            elif not node.items or any(arrays(node.metadata)):
                self.dict_at(at, place)
            for inner in self.below(node, place):
                self.walk(*inner)
        else:
            if isinstance(node, InnerNode):
                self.refuse_renames(node, place)
            self.put(at, node, place)

    def refuse_renames(self, node: Node, place: str) -> None:
        """Raise InvalidInputError when something in here gets another path within it."""
        at, above = self.names.below(place), f"{place}/" if place else ""
        inner = (array.path for array in arrays(node))
        keys = (key for key in self.names.keys if key != place and key.startswith(above))
        for path in chain(inner, keys):
            if self.names.of(path) != at + path[len(place) :]:
                raise _immovable(path, self.names.of(path), _reason(node, place))

    def check_still(self, node: Node, reason: str) -> None:
        """Raise InvalidInputError when an array in here gets another path."""
        for path in (array.path for array in arrays(node)):
            if self.names.of(path) != path:
                raise _immovable(path, self.names.of(path), reason)

    def put(self, path: str, node: Node, place: str) -> None:
        """Put a leaf at a path. place: where it was."""
        above, _, segment = path.rpartition("/")
        parent = self.dict_at(above, place)
        if segment in parent.items:
            raise _collision(path, place, parent.items[segment])
        parent.items[segment] = _Item(self.key_at(path, parent, place, behind=0), node, place)

    def dict_at(self, path: str, place: str) -> _Dict:
        """The dict at a path; those that are missing on the way to it are made."""
        here, reached = self.root, ""
        parts = path.split("/") if path else []
        if len(parts) >= DEPTH_MAX:
            raise InvalidInputError(
                f"{shown(path)} is more than {DEPTH_MAX} levels deep, which no state may be."
            )
        for behind, segment in zip(range(len(parts), 0, -1), parts, strict=True):
            reached = join(reached, segment)
            if segment not in here.items:
                made = _Dict.of(self.dicts.get(reached))
                here.items[segment] = _Item(
                    self.key_at(reached, here, place, behind=behind), made, reached
                )
            item = here.items[segment]
            if not isinstance(item.content, _Dict):
                raise _collision(reached, place, item)
            here = item.content
        return here

    def key_at(self, path: str, parent: _Dict, place: str, *, behind: int) -> Key:
        """The key that leads to a path: the one that did, or a new one no other segment is for.

        behind: how many segments follow on the way to what was at `place`.
        """
        if path in self.keys:
            return self.keys[path]
        key = self.new_key(path.rpartition("/")[2], parent, place, behind)
        if key in parent.keys:
            raise InvalidInputError(
                f"{shown(path)} would be a second way to write a key that is there already."
            )
        parent.add_key(key)
        return key

    def new_key(self, segment: str, parent: _Dict, place: str, behind: int) -> Key:
        """The key of a segment that was not there.

        If the array had a key of that segment it is that one, the one equally far from the end of
        its path before others. Otherwise it is an integer if it reads like one and the array or the
        dict has integer keys, else a string.
        """
        old = list(self.keys_to(place))
        for known, key in [*old[behind : behind + 1], *old]:
            if known == segment:
                return key
        is_integer = _INTEGER.fullmatch(segment) and -(2**63) <= int(segment) < 2**64
        if is_integer and (parent.has_integers or any(isinstance(key, int) for _, key in old)):
            return int(segment)
        return _unescaped(segment)

    def keys_to(self, place: str) -> Iterator[tuple[str, Key]]:
        """The segments of a place with their keys, the last one first."""
        while place:
            above, _, segment = place.rpartition("/")
            yield segment, self.keys[place]
            place = above

    def built(self, made: _Dict) -> DictNode:
        """The node of a dict."""
        items = {
            item.key: self.built(item.content) if isinstance(item.content, _Dict) else item.content
            for item in made.items.values()
        }
        if made.node is not None:
            return replace(made.node, items=items)
        was = made.was()
        origin = None if was is None else self.dicts[was]
        if origin is None:
            return DictNode(items)
        metadata = None if any(arrays(origin.metadata)) else origin.metadata
        return DictNode(items, origin.is_ordered, metadata)


def _immovable(path: str, new: str, reason: str) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(path)} cannot be renamed to {shown(new)}: {reason}, and only keys of dicts can "
        "change. Leave it out of the pattern, or exclude it."
    )


def _collision(path: str, place: str, other: _Item) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(other.first())} and {shown(place)} cannot both be at {shown(path)}. "
        "Choose another path, or exclude one of them."
    )


def _reason(node: Node, place: str) -> str:
    name = shown(place) if place else "the state"
    if isinstance(node, ListNode | TupleNode):
        return f"{name} is a {'list' if isinstance(node, ListNode) else 'tuple'}"
    return f"{name} was made by a codec"


def _unescaped(segment: str) -> str:
    """The key that a part of a path stands for."""
    with suppress(ValueError):
        key = unescape_key(segment)
        if segment == (escaped := escape_key(key)):
            return key
        if _INTEGER.fullmatch(key) and segment == escape_first(escaped):
            return key
    raise InvalidInputError(
        f"The part {shown(segment)} of a path is not an escaped key: write %25 for %, and % with "
        "two uppercase hexadecimal digits for a control character; nothing else is escaped."
    )
