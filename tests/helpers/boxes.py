"""Boxes: stand-ins for arrays, with which states are taken apart without torch and numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from ckptstore.state import flatten as flattening
from ckptstore.state.flatten import Flat, unflatten
from ckptstore.testing.strategies import plain_values, states


@dataclass(frozen=True)
class Box:
    """Stands for an array; `memory` for where it is."""

    name: int
    memory: int | None = None
    kind: str = "tensor"

    @property
    def identity(self) -> object:
        return self.memory


@dataclass(frozen=True)
class Pair:
    """A value whose codec makes a list of two values."""

    first: Any
    second: Any


def describe(value: object) -> Box | None:
    return value if isinstance(value, Box) else None


def encode(value: object) -> tuple[str, object] | None:
    return ("pair", [value.first, value.second]) if isinstance(value, Pair) else None


def flatten(value: Any) -> Flat[Box]:
    return flattening.flatten(value, describe=describe, encode=encode)


def build(root: Any, arrays: dict[str, Box]) -> Any:
    """The state again. A pair comes out as the list that its codec made."""
    return unflatten(root, array=lambda path, kind: arrays[path], decode=lambda n, v: v)


BOXES = st.builds(Box, st.integers(0, 10**6))
TIED_BOXES = st.builds(Box, st.just(0), st.integers(0, 3), st.sampled_from(["tensor", "ndarray"]))
PLAIN = plain_values().filter(lambda value: type(value).__module__ == "builtins")
STATES = states(leaves=BOXES | st.integers(0, 9) | st.none(), max_leaves=25)
RICH_STATES = states(
    leaves=TIED_BOXES | PLAIN | st.builds(Pair, TIED_BOXES, TIED_BOXES | PLAIN), max_leaves=25
)


def ways(value: Any, way: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Every leaf by the keys and positions that lead to it, with the type of each key."""
    if isinstance(value, dict):
        pairs = [((type(key), key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        pairs = list(enumerate(value))
    else:
        return {way: value}
    return {w: leaf for key, item in pairs for w, leaf in ways(item, (*way, key)).items()}
