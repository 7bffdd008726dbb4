"""Pytrees: nodes that are registered with JAX, and templates for new ones.

JAX itself says which children a node has and by which names, one level at a time, so nothing here
knows flax, optax or equinox. What a node holds beside its children (static fields) is not stored:
it comes from the template. JAX is not imported here: only a process that has imported it can hold
such a node. ADR 0075.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from ckptstore.documents.names import escape_key
from ckptstore.errors import InvalidInputError
from ckptstore.state.paths import join, shown_path, shown_type

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The codec of a random key, by the name of its implementation.
KEY_IMPLS: Final = {
    name: f"jax.random.key.{name}" for name in ("threefry2x32", "rbg", "unsafe_rbg")
}
_PLAIN: Final = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, type)
_NUMBERS: Final = frozenset({bool, int, float, complex})
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, tuple})


def _jax() -> Any:
    """JAX, if the program has imported it."""
    return sys.modules.get("jax")


def is_key(value: object) -> bool:
    """True for a typed random key, or an array of them."""
    jax = _jax()
    return jax is not None and isinstance(value, jax.Array) and _has_keys(value)


def _has_keys(value: Any) -> bool:
    """True for an array, or the description of one, whose elements are random keys."""
    jax = sys.modules["jax"]
    is_one: bool = jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key)
    return is_one


def encode_key(value: object) -> tuple[str, Any] | None:
    """The name of the codec of a random key, and its plain form; None for any other value."""
    if not is_key(value):
        return None
    from ckptstore.arrays.jax import key_form

    return key_form(value)


@dataclass(frozen=True, slots=True)
class Taken:
    """A node taken apart: its children by name, and the node of other children."""

    children: dict[str | int, Any] | list[Any]
    again: Callable[[Sequence[Any]], Any]


def taken_apart(value: Any) -> Taken | None:
    """Take a node that is registered with JAX apart; None for any other value."""
    jax = _jax()
    if jax is None or type(value) in _PLAIN or type(value) in _CONTAINERS:
        return None
    pairs, definition = jax.tree_util.tree_flatten_with_path(
        value, is_leaf=lambda item: item is not value
    )
    if any(len(path) != 1 for path, _ in pairs):
        return None  # a leaf has an empty path
    names = [_name(path[0]) for path, _ in pairs]
    children = [child for _, child in pairs]
    again = definition.unflatten
    if names == list(range(len(names))) and names:
        return Taken(children, again)
    if len(set(map(str, names))) < len(names):
        return Taken(dict(enumerate(children)), again)
    return Taken(dict(zip(names, children, strict=True)), again)


def _name(entry: Any) -> str | int:
    """The name of a child: a key, an attribute or a position."""
    for attribute in ("key", "name", "idx"):
        name = getattr(entry, attribute, None)
        if type(name) is str or type(name) is int:
            return name
    return str(entry).strip(".[]'\"")


def is_node(value: object) -> bool:
    """True for a node that is registered with JAX, and no container of Python's own."""
    return taken_apart(value) is not None


def children(value: object) -> dict[str | int, Any] | list[Any] | None:
    """Return the stored form of a node that is registered with JAX; None for any other value.

    A function among its children, or in a container that is one, is not stored; nor is a node that
    has a name and no leaves, such as the bookkeeping of flax nnx.
    """
    taken = taken_apart(value)
    if taken is None:
        return None
    if isinstance(taken.children, list):
        return [_without_functions(child) for child in taken.children]
    return {
        name: _without_functions(child)
        for name, child in taken.children.items()
        if not _is_bare(child)
    }


def _is_bare(value: object) -> bool:
    """True for a node without leaves."""
    if value is None or type(value) in _CONTAINERS:
        return False
    return not sys.modules["jax"].tree_util.tree_leaves(value) and is_node(value)


def _without_functions(value: Any) -> Any:
    """A child with None in place of functions."""
    if type(value) in (list, tuple):
        items = [_without_functions(item) for item in value]
        return value if all(map(_is, items, value)) else type(value)(items)
    if type(value) in (dict, OrderedDict):
        items = [_without_functions(item) for item in value.values()]
        same = all(map(_is, items, value.values()))
        return value if same else type(value)(zip(value, items, strict=True))
    return None if is_function(value) else value


def _is(one: object, other: object) -> bool:
    return one is other


def is_function(value: object) -> bool:
    """True for a function, such as an activation. Any other object may have a state."""
    if isinstance(value, partial):
        bound = (*value.args, *value.keywords.values())
        return is_function(value.func) and all(type(item) in _PLAIN for item in bound)
    if isinstance(value, _FUNCTIONS):
        return True
    jax = sys.modules["jax"]
    home = type(value).__module__.partition(".")[0]
    is_jitted = callable(value) and home in ("jax", "jaxlib", "numpy")
    return is_jitted and not isinstance(value, jax.Array) and not is_node(value)


def is_pytree(value: object) -> bool:
    """True for what has an array of JAX, the description of one, or a node of its own, in it."""
    jax = _jax()
    if jax is None:
        return False
    seen: set[int] = set()
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            left.extend(item.values() if isinstance(item, dict) else item)
        if isinstance(item, (jax.Array, jax.ShapeDtypeStruct)):
            return True
        if not isinstance(item, tuple) and type(item) not in _CONTAINERS and is_node(item):
            return True
    return False


class Fields(dict[Any, Any]):
    """The children of a node by name; the checkpoint has to have each of them, and no other."""


class Items(list[Any]):
    """The children of a node by position, as many as the checkpoint has."""


class Slot:
    """An array that is still to be made, or a number that may have become one.

    dtype, shape: of the array. like: the array of the template that it takes the place of; None
    for a description. sharding: of JAX, where it is to be; None for the default device.
    codec: of the random key whose data the array is. is_jax: False for an array of numpy.
    is_weak: whether its dtype yields to others, as that of a Python number. is_number: whether
    the template has a Python number, whose place an array of one element may take.
    """

    __slots__ = (
        "_value",
        "codec",
        "dtype",
        "is_filled",
        "is_jax",
        "is_number",
        "is_weak",
        "like",
        "shape",
        "sharding",
    )

    def __init__(
        self,
        dtype: str,
        shape: tuple[int, ...],
        *,
        like: Any = None,
        sharding: Any = None,
        codec: str | None = None,
        is_jax: bool = True,
        is_weak: bool = False,
        is_number: bool = False,
    ) -> None:
        self.dtype, self.shape, self.sharding, self.codec = dtype, shape, sharding, codec
        self.is_jax, self.is_weak, self.is_number = is_jax, is_weak, is_number
        self.like = like
        self.is_filled, self._value = False, None

    @classmethod
    def of(cls, value: Any) -> Slot:
        """The slot for an array like one of JAX, or as described by jax.ShapeDtypeStruct."""
        jax = sys.modules["jax"]
        codec, like = None, value if isinstance(value, jax.Array) else None
        if _has_keys(value):
            from ckptstore.arrays.jax import impl_of

            codec = KEY_IMPLS.get(str(impl_of(value)), "jax.random.key")
            if isinstance(value, jax.ShapeDtypeStruct):
                value = jax.eval_shape(jax.random.key_data, value)
            else:
                value = jax.random.key_data(value)
        if value.sharding is not None:
            try:
                value.sharding.shard_shape(tuple(value.shape))
            except ValueError as error:
                raise InvalidInputError(f"A template cannot be: {error}") from error
        is_free = isinstance(value, jax.Array) and not value.committed  # of the default device
        return cls(
            str(value.dtype),
            tuple(value.shape),
            like=like,
            sharding=None if is_free else value.sharding,
            codec=codec,
            is_weak=bool(value.weak_type),
        )

    @property
    def is_spread(self) -> bool:
        """True where several devices hold different parts of the array."""
        sharding = self.sharding
        return sharding is not None and not sharding.is_fully_replicated

    def fill(self, value: Any) -> None:
        """Give it its array, or its number."""
        self._value, self.is_filled = value, True

    @property
    def value(self) -> Any:
        """The value that was set, in the form that the template asks for."""
        if not self.is_jax or not hasattr(self._value, "sharding"):
            return self._value
        from ckptstore.arrays.jax import key_of, weak

        if self.codec is not None:
            return key_of(self._value, self.codec.rpartition(".")[2])
        return weak(self._value) if self.is_weak else self._value


@dataclass(slots=True)
class _Leaf:
    """A leaf of a template. made: what a checkout fills in its place."""

    template: Any
    made: Any

    def result(self, current: Any) -> Any:
        """The leaf of the new pytree. current: what is in the place of `made` now."""
        if isinstance(current, Slot):
            return current.value if current.is_filled else self.template
        return self.template if current is self.made else current


@dataclass(slots=True)
class _Branch:
    """A container of a template. made: the one with the same keys that a checkout fills."""

    made: Any
    parts: list[tuple[Any, _Branch | _Leaf]] = field(default_factory=list)
    again: Callable[[Sequence[Any]], Any] = list

    def result(self, current: Any) -> Any:
        """The node of the new pytree. current: as of a leaf."""
        if current is not self.made:
            return current  # plain values, which were replaced together
        return self.again([part.result(self.made[key]) for key, part in self.parts])


class Tree:
    """A pytree as the template of another one.

    Attributes:
        target: Dicts and lists of the same structure, with a slot for each array, for a checkout to
            fill.
        leaves: How many there are.
    """

    def __init__(self, template: object) -> None:
        self.leaves = len(sys.modules["jax"].tree_util.tree_leaves(template))
        self._root = self._part(template, "", is_nodes=True)
        self.target = self._root.made

    def put(self, value: Any) -> None:
        """Replace all of it, where it has plain values alone."""
        self.target = value

    def result(self) -> Any:
        """The new pytree. What was not filled is that of the template."""
        return self._root.result(self.target)

    def _part(self, value: Any, path: str, *, is_nodes: bool) -> _Branch | _Leaf:
        """A part of the template. is_nodes: whether a number in its place may become an array."""
        jax = sys.modules["jax"]
        if isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
            return _Leaf(value, Slot.of(value))
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(value) is numpy.ndarray:
            return _Leaf(value, Slot(str(value.dtype), value.shape, is_jax=False))
        is_number = type(value) in _NUMBERS or (
            numpy is not None and isinstance(value, numpy.generic)
        )
        if is_number and is_nodes:
            return _Leaf(value, Slot("", (), is_weak=True, is_number=True))
        if type(value) in _PLAIN or is_number:
            return _Leaf(value, value)
        if isinstance(value, (dict, list, tuple)) and (
            type(value) in _CONTAINERS or hasattr(value, "_fields")
        ):
            return self._container(value, path)
        taken = taken_apart(value)
        if taken is not None:
            return self._node(taken, path)
        if is_function(value) and path:
            return _Leaf(value, None)
        if hasattr(value, "load_state_dict") or hasattr(value, "device"):
            raise InvalidInputError(
                f"{shown_path(path)} is of type {shown_type(value)}, beside arrays of JAX. A "
                "checkout fills it in place, and makes a new pytree of these: pass each of them "
                "in a call of its own, with part= or include=."
            )
        return _Leaf(value, value)

    def _node(self, taken: Taken, path: str) -> _Branch:
        """The children of a node; of those by name, without the bare ones, which stay."""
        found = taken.children
        if isinstance(found, list):
            return self._branch(Items(), range(len(found)), found, taken.again, path)
        kept = {name: child for name, child in found.items() if not _is_bare(child)}

        def again(items: Sequence[Any]) -> Any:
            new = dict(zip(kept, items, strict=True))
            return taken.again([new.get(name, child) for name, child in found.items()])

        return self._branch(Fields(), list(kept), list(kept.values()), again, path)

    def _container(self, value: Any, path: str) -> _Branch:
        """A dict, list or tuple, or the fields of a namedtuple."""
        kind = type(value)
        if isinstance(value, dict):
            keys = list(value)
            is_plain = all(type(item) in _PLAIN for item in value.values())
            return self._branch(
                {} if is_plain else Fields(),
                keys,
                list(value.values()),
                lambda items: kind(zip(keys, items, strict=True)),
                path,
            )
        if hasattr(value, "_fields"):
            return self._branch(
                Fields(), list(kind._fields), list(value), lambda items: kind._make(items), path
            )
        is_plain = all(type(item) in _PLAIN for item in value)
        made: list[Any] = [] if is_plain else Items()
        return self._branch(made, range(len(value)), value, kind, path, is_nodes=not is_plain)

    def _branch(
        self,
        made: Any,
        keys: Sequence[Any],
        items: Sequence[Any],
        again: Callable[[Sequence[Any]], Any],
        path: str,
        *,
        is_nodes: bool = True,
    ) -> _Branch:
        parts = [
            (key, self._part(item, join(path, escape_key(str(key))), is_nodes=is_nodes))
            for key, item in zip(keys, items, strict=True)
        ]
        if isinstance(made, dict):
            made.update((key, part.made) for key, part in parts)
        else:
            made.extend(part.made for _, part in parts)
        return _Branch(made, parts, again)


class PytreeState:
    """A stateful object whose state is a pytree, which a checkout replaces by a new one."""

    def state_dict(self) -> Any:
        """The pytree."""
        raise NotImplementedError

    def adopt(self, pytree: Any) -> None:
        """Replace the pytree by another one of the same structure."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over what `state_dict` returned."""
        self.adopt(state_dict)

    def tree(self) -> Tree:
        """The pytree as a template."""
        return Tree(self.state_dict())
