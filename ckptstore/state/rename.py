"""Rename: the arrays of a state under other paths, and the state's structure with them moved there.

Only keys of dicts can change. A part of a path that stands for a place in a list or tuple, or for something inside a
codec's value or an OrderedDict's _metadata, stays as it is. Plain values stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ckptstore.documents import structure
from ckptstore.documents.names import check_path, escape_first, escape_key, unescape_key
from ckptstore.documents.structure import Node, array_path, tag_of
from ckptstore.errors import InvalidInputError, shown
from ckptstore.state.tree import join, leaves, node_segments, unkey

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DICTS = ("dict", "ordered_dict")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class Rename:
    """Regular expressions over whole paths, each with what a path that it matches becomes; the first match wins."""

    patterns: tuple[tuple[re.Pattern[str], str], ...] = ()

    @classmethod
    def of(cls, rename: Mapping[str, str] | None) -> Self:
        """Take what a user passed: replacements by pattern, or None."""
        if rename is None:
            return cls()
        if not isinstance(rename, Mapping):
            raise InvalidInputError(
                f"rename is {shown(rename)}; a dict of replacements by regular expression is expected."
            )
        return cls(tuple(_pattern(old, new) for old, new in rename.items()))

    def names(self, paths: Iterable[str]) -> dict[str, str]:
        """The new path of each path, checked: none stands twice, and each pattern matches something."""
        listed = list(paths)
        for pattern, _ in self.patterns:
            if not any(map(pattern.fullmatch, listed)):
                raise InvalidInputError(
                    f"The rename {pattern.pattern!r} matches no array that is chosen. A pattern must match a whole "
                    "path; `ckptstore ls` lists the paths."
                )
        names: dict[str, str] = {}
        olds: dict[str, str] = {}
        for path in listed:
            names[path] = new = self._new(path)
            if new in olds:
                raise InvalidInputError(
                    f"Two arrays would have the path {shown(new)}: {shown(olds[new])} and {shown(path)}. "
                    "Rename them apart, or exclude one."
                )
            olds[new] = path
        return names

    def _new(self, path: str) -> str:
        for pattern, replacement in self.patterns:
            if match := pattern.fullmatch(path):
                try:
                    new = match.expand(replacement)
                except (re.error, IndexError) as error:
                    raise InvalidInputError(
                        f"The replacement {shown(replacement)} does not fit {pattern.pattern!r}: {error}."
                    ) from error
                try:
                    return new if new == path else check_path(new)
                except InvalidInputError as error:
                    raise InvalidInputError(f"{shown(path)} cannot be renamed: {error}") from error
        return path


def _pattern(old: object, new: object) -> tuple[re.Pattern[str], str]:
    if not isinstance(old, str) or not isinstance(new, str):
        raise InvalidInputError(f"The rename {shown(old)} to {shown(new)} is not one of strings.")
    try:
        return re.compile(old), new
    except re.error as error:
        raise InvalidInputError(
            f"The rename {shown(old)} is not a regular expression: {error}."
        ) from error


def paths(root: Node) -> list[str]:
    """The paths of all arrays of a structure, in the state's own order."""
    return [path for path, node in leaves(root) if array_path(node) is not None]


def move(root: Node, names: Mapping[str, str], *, source: Node) -> Node:
    """The structure with every array at its new path.

    names: the new path of every array. source: the structure before anything was left out, which says what was tied.
    A dict keeps its order, a renamed key its place; dicts are made as needed, and those that lose all they had are
    dropped. One that is made is an OrderedDict, with the same _metadata, where all of it was one under other keys.
    """
    found = ((path, node) for path, node in leaves(source) if array_path(node) is not None)
    ties = {path: node.get("tied", path) for path, node in found}
    return _relabelled(_Move(names, source).moved(root), names, ties, {})


@dataclass(slots=True)
class _Dict:
    """A dict of the new structure, by the path segments of its keys. node: what was there; None for one that is made."""

    node: Node = None
    items: dict[str, _Item] = field(default_factory=dict)
    keys: set[tuple[type, object]] = field(default_factory=set)  # all that it had and has

    @classmethod
    def of(cls, node: Node) -> Self:
        """An empty one in the place of a dict node, or of nothing."""
        pairs = [] if node is None else node[tag_of(node)]
        return cls(node, keys={_typed(key) for key, _ in pairs})

    def was(self) -> str | None:
        """Of a dict that is made: the path of the one dict that all of it was, under the same keys."""
        homes = {item.home(segment) for segment, item in self.items.items()}
        return homes.pop() if len(homes) == 1 else None


@dataclass(slots=True)
class _Item:
    """A key, what is under it, and the place where that was before; "" for what was in no dict."""

    key: Node
    content: Node | _Dict
    place: str

    def home(self, segment: str) -> str | None:
        """The path of the dict that it was in under the same key."""
        content = self.content
        is_made = isinstance(content, _Dict) and content.node is None
        place = content.was() if is_made else self.place
        above, _, last = (place or "").rpartition("/")
        return above if place and last == segment else None

    def first(self) -> str:
        """The place of the first thing in here."""
        inner = self.content.items if isinstance(self.content, _Dict) else {}
        return next((item.first() for item in inner.values()), self.place)


class _Move:
    """One structure on its way to another: every leaf is put in anew, in the order in which it was found."""

    def __init__(self, names: Mapping[str, str], source: Node) -> None:
        self.names = names
        self.dicts: dict[str, Node] = {}
        self.keys: dict[str, Node] = {}
        self.segments: dict[str, dict[object, str]] = {}
        self.root = _Dict()
        self.index(source, "")

    def index(self, source: Node, place: str) -> None:
        """Note the segment of every key of a dict, and every key by the path of what it leads to."""
        if isinstance(source, dict) and (tag := tag_of(source)) in _DICTS:
            listed = node_segments(source[tag])
            self.segments[place] = {}
            for (key, item), segment in zip(source[tag], listed, strict=True):
                self.segments[place][_typed(key)] = segment
                self.keys[join(place, segment)] = key
                self.index(item, join(place, segment))

    def below(self, node: Node, place: str) -> Iterator[tuple[Node, str]]:
        """What a dict holds, each with its place."""
        segments = self.segments[place]
        return ((item, join(place, segments[_typed(key)])) for key, item in node[tag_of(node)])

    def note(self, node: Node, place: str) -> None:
        """Note every dict by its place."""
        if isinstance(node, dict) and tag_of(node) in _DICTS:
            self.dicts[place] = node
            for inner in self.below(node, place):
                self.note(*inner)

    def moved(self, root: Node) -> Node:
        """The structure after it."""
        self.note(root, "")
        path = array_path(root)
        if "" in self.dicts:
            self.root = _Dict.of(root)
            self.walk(root, "")
        elif path is not None and self.names[path] != path:
            self.put(self.names[path], root, "")
        else:
            self.refuse_renames(root, _reason(root, ""))
            return root
        return self.built(self.root)

    def walk(self, node: Node, place: str) -> None:
        """Put everything below a node where it belongs."""
        path = array_path(node)
        if path is not None:
            new = self.names[path]
            self.put(place if new == path else new, node, place)
        elif place in self.dicts:
            metadata = node.get("metadata")
            self.refuse_renames(metadata, "it lies in the _metadata of an OrderedDict")
            if not node[tag_of(node)] or paths(metadata):
                self.dict_at(place, place)
            for inner in self.below(node, place):
                self.walk(*inner)
        else:
            self.refuse_renames(node, _reason(node, place))
            self.put(place, node, place)

    def refuse_renames(self, node: Node, reason: str) -> None:
        """Raise InvalidInputError when an array in here has another path from now on."""
        for path in paths(node):
            if self.names[path] != path:
                raise InvalidInputError(
                    f"{shown(path)} cannot be renamed to {shown(self.names[path])}: {reason}, and only keys of dicts "
                    "can change. Leave it out of the pattern, or exclude it."
                )

    def put(self, path: str, node: Node, place: str) -> None:
        """Put a leaf at a path; place: where it was."""
        above, _, segment = path.rpartition("/")
        parent = self.dict_at(above, place)
        if segment in parent.items:
            raise _collision(path, place, parent.items[segment])
        parent.items[segment] = _Item(self.key_at(path, parent, place, behind=0), node, place)

    def dict_at(self, path: str, place: str) -> _Dict:
        """The dict at a path; those that are missing on the way to it are made."""
        here, reached = self.root, ""
        parts = path.split("/") if path else []
        if len(parts) >= structure.DEPTH_MAX:
            raise InvalidInputError(
                f"{shown(path)} lies more than {structure.DEPTH_MAX} levels deep, which no state may."
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

    def key_at(self, path: str, parent: _Dict, place: str, *, behind: int) -> Node:
        """The key that leads to a path: the one that did, or a new one, which no other segment may stand for.

        behind: how many segments follow on the way to what was at `place`.
        """
        if path in self.keys:
            return self.keys[path]
        key = self.new_key(path.rpartition("/")[2], parent, place, behind)
        if _typed(key) in parent.keys:
            raise InvalidInputError(
                f"{shown(path)} would be a second way to write a key that is there already."
            )
        parent.keys.add(_typed(key))
        return key

    def new_key(self, segment: str, parent: _Dict, place: str, behind: int) -> Node:
        """The key of a segment that was not there.

        It is the key that the array had by that segment, if any, before all so far from the end of its path. Else it is an
        integer if it reads so and the array or the dict has such keys, and otherwise a string.
        """
        old = list(self.keys_to(place))
        for known, key in [*old[behind : behind + 1], *old]:
            if known == segment:
                return key
        kinds = {type(key) for _, key in old} | {kind for kind, _ in parent.keys}
        if int in kinds and _INTEGER.fullmatch(segment):
            return structure.encode_int(int(segment))
        return structure.encode_str(_unescaped(segment))

    def keys_to(self, place: str) -> Iterator[tuple[str, Node]]:
        """The segments of a place with their keys, the last one first."""
        while place:
            above, _, segment = place.rpartition("/")
            yield segment, self.keys[place]
            place = above

    def built(self, made: _Dict) -> Node:
        """The node of a dict."""
        origin, is_made = made.node, made.node is None
        if is_made and (was := made.was()) is not None:
            origin = self.dicts[was]
        pairs = [
            [
                item.key,
                self.built(item.content) if isinstance(item.content, _Dict) else item.content,
            ]
            for item in made.items.values()
        ]
        node = {"dict" if origin is None else tag_of(origin): pairs}
        metadata = None if origin is None else origin.get("metadata")
        if metadata is not None and not (is_made and paths(metadata)):
            node["metadata"] = metadata
        return node


def _typed(key: Node) -> tuple[type, object]:
    plain = unkey(key)
    return type(plain), plain


def _collision(path: str, place: str, other: _Item) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(other.first())} and {shown(place)} cannot both lie at {shown(path)}. "
        "Choose another path, or exclude one of them."
    )


def _reason(node: Node, place: str) -> str:
    name = shown(place) if place else "the state"
    if isinstance(node, list):
        return f"{name} is a list"
    is_tuple = isinstance(node, dict) and "tuple" in node
    return f"{name} is a tuple" if is_tuple else f"{name} was made by a codec"


def _unescaped(segment: str) -> str:
    """The key that a part of a path stands for."""
    with suppress(ValueError):
        key = unescape_key(segment)
        if segment == (escaped := escape_key(key)):
            return key
        if _INTEGER.fullmatch(key) and segment == escape_first(escaped):
            return key
    raise InvalidInputError(
        f"The part {shown(segment)} of a path is not a key as paths write it: for % write %25, for a control "
        "character % and two uppercase hexadecimal digits, and nothing else so."
    )


def _relabelled(
    node: Node, names: Mapping[str, str], ties: Mapping[str, str], first: dict[str, str]
) -> Node:
    """The same with every array node naming its new path; of those that are one array, the first is plain."""
    if isinstance(node, list):
        return [_relabelled(item, names, ties, first) for item in node]
    path = array_path(node)
    if path is not None:
        new = names[path]
        plain = first.setdefault(ties[path], new)
        tag = tag_of(node)
        return {tag: new} if plain == new else {tag: new, "tied": plain}
    if not isinstance(node, dict):
        return node
    tag = tag_of(node)
    if tag in _DICTS:
        pairs = [[key, _relabelled(item, names, ties, first)] for key, item in node[tag]]
        made = {tag: pairs}
        if "metadata" in node:
            made["metadata"] = _relabelled(node["metadata"], names, ties, first)
        return made
    if tag == "tuple":
        return {tag: _relabelled(node[tag], names, ties, first)}
    if tag == "type":
        return {**node, "value": _relabelled(node["value"], names, ties, first)}
    return node
