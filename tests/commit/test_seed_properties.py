"""Derived checkpoints against a model: the result of renaming keys of the state."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from ckptstore import InvalidInputError
from ckptstore.documents.names import escape_key
from ckptstore.state.paths import key_segments
from ckptstore.testing.strategies import keys, states
from tests.helpers.counting_storage import CountingStorage, array_objects, repository
from tests.helpers.equality import difference
from tests.helpers.ties import arrays_of, literal, same_ties

FRESH = ("fresh", "a", "a/b", "", "%", "é", "..", "\ud800")
Chain = tuple[
    Any, ...
]  # what leads to a place: keys of dicts, and _Place for a place in a list or tuple


@dataclass(frozen=True)
class _Place:
    number: int


@dataclass(frozen=True)
class _Renamed:
    """An array, a key with all below it, or all arrays below a dict, under another chain."""

    old: Chain
    new: Chain
    is_dict: bool

    def __call__(self, chain: Chain) -> Chain | None:
        """The new chain of what the pattern matches."""
        if self.is_dict:
            is_below = len(chain) > len(self.old) and same(chain[: len(self.old)], self.old)
            return (*self.new, *chain[len(self.old) :]) if is_below else None
        return self.new if same(chain, self.old) else None


class _Renames:
    """Renames of a state. Those that match no array apply to keys, the innermost first."""

    def __init__(self, state: Any, renames: list[_Renamed]) -> None:
        arrays = [chain for chain, value in walk(state) if is_array(value)]
        keys = [chain for chain, value in walk(state) if chain and not is_array(value)]
        self.all = renames
        self.of_keys = [r for r in renames if not any(r(chain) is not None for chain in arrays)]
        self.is_used = all(any(r(chain) is not None for chain in keys) for r in self.of_keys)

    def __call__(self, chain: Chain, *, is_array: bool) -> Chain:
        if is_array and (new := first(self.all, chain)) is not None:
            return new
        for length in range(len(chain), 0, -1):
            if (new := first(self.of_keys, chain[:length])) is not None:
                return (*new, *chain[length:])
        return chain


def first(renames: list[_Renamed], chain: Chain) -> Chain | None:
    return next((new for rename in renames if (new := rename(chain)) is not None), None)


def same(one: Chain, other: Chain) -> bool:
    """1 and True and "1" are different keys."""
    return len(one) == len(other) and all(
        type(a) is type(b) and a == b for a, b in zip(one, other, strict=True)
    )


def walk(state: Any, chain: Chain = ()) -> Any:
    """Every place of a state in its own order."""
    yield chain, state
    if isinstance(state, dict):
        for key, item in state.items():
            yield from walk(item, (*chain, key))
    elif type(state) in (list, tuple):
        for number, item in enumerate(state):
            yield from walk(item, (*chain, _Place(number)))


def path_of(state: Any, chain: Chain) -> str:
    """The path of a chain of keys, with unknown keys escaped."""
    parts = []
    for key in chain:
        if isinstance(key, _Place):
            parts.append(str(key.number))
            state = state[key.number]
            continue
        known = isinstance(state, dict) and any(same((key,), (other,)) for other in state)
        if known:
            segments = key_segments(state)
            parts.append(segments[[same((key,), (k,)) for k in state].index(True)])
        else:
            parts.append(escape_key(key))
        state = state[key] if known else None
    return "/".join(parts) or "array"


def moves_of(state: Any, renames: list[_Renamed]) -> list[tuple[Chain, Chain, Any]]:
    """What is to move as one, with its old and its new chain."""
    target = _Renames(state, renames)
    if not target.is_used:
        raise ValueError("unused")
    moves = []
    for chain, value in walk(state):
        new = target(chain, is_array=is_array(value))
        depth = next((n for n, key in enumerate(chain) if isinstance(key, _Place)), None)
        if depth is not None:
            if new != (*target(chain[:depth], is_array=False), *chain[depth:]):
                raise ValueError("in a list")
        elif type(value) not in (dict, OrderedDict) or not value:
            # A position in a list that was left out is an ordinary key.
            keys = (str(key.number) if isinstance(key, _Place) else key for key in new)
            moves.append((chain, tuple(keys), value))
    return moves


def renamed(state: Any, renames: list[_Renamed]) -> Any:
    """The state under other keys; ValueError where that cannot be."""
    dicts = [(chain, value) for chain, value in walk(state) if type(value) in (dict, OrderedDict)]
    kinds: dict[Chain, type] = {typed(chain): type(value) for chain, value in dicts}
    moves = moves_of(state, renames)
    if moves and moves[0][1] == ():
        return moves[0][2]
    made: dict[Chain, Any] = {(): kinds.get((), dict)()}
    used: set[Chain] = set()
    for old, new, value in moves:
        for length in range(1, len(new)):
            above = typed(new[:length])
            if above in used:
                raise ValueError("below a leaf")
            if above not in made:
                made[above] = (kinds.get(above) or kind_of_made(new[:length], moves, kinds))()
                made[above[:-1]][new[length - 1]] = made[above]
        if typed(new) in used or (typed(new) in made and not (value == {} and old == new)):
            raise ValueError("taken")
        if type(value) in (dict, OrderedDict):
            made.setdefault(typed(new), value)
            value = made[typed(new)]
            used |= set() if old == new else {typed(new)}
        else:
            used.add(typed(new))
        if new:
            made[typed(new[:-1])][new[-1]] = value
    return made[()]


def typed(chain: Chain) -> Chain:
    return tuple((type(key), key) for key in chain)


def kind_of_made(chain: Chain, moves: list[tuple[Chain, Chain, Any]], kinds: Any) -> type:
    """Of a dict that is made: of the dict whose content all of it was, under the same keys."""
    homes = set()
    for old, new, _ in moves:
        if same(new[: len(chain)], chain):
            rest = new[len(chain) :]
            is_whole = len(old) >= len(rest) and same(old[len(old) - len(rest) :], rest)
            homes.add(typed(old[: len(old) - len(rest)]) if is_whole else None)
    home = homes.pop() if len(homes) == 1 else None
    return dict if home is None else kinds[home]


def is_array(value: Any) -> bool:
    return bool(arrays_of(value)) and type(value) not in (dict, OrderedDict, list, tuple)


def small_and_large() -> st.SearchStrategy[Any]:
    """Bundled arrays, arrays of one to three chunks, and empty ones, in a few dtypes."""
    numbers, sizes = st.integers(0, 2**40), st.sampled_from([1, 5, 300, 10_000, 20_000, 0])
    return st.builds(np.full, sizes, numbers) | st.builds(
        lambda size, number: torch.full((size,), number), sizes, numbers
    )


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Any, list[_Renamed], list[str] | None, list[str] | None]:
    """A state with tied arrays, renames, and what is included and excluded."""
    pool = draw(st.lists(small_and_large(), min_size=1, max_size=3))
    leaf = st.sampled_from(pool) | small_and_large() | st.integers(0, 9) | st.none()
    part = states(leaves=leaf, max_leaves=8)
    module = st.dictionaries(keys(), small_and_large(), min_size=1, max_size=4).map(OrderedDict)
    parts = {"model": module | part, "optimizer": part, "a": leaf, 0: module, "0": part}
    state = draw(part | st.fixed_dictionaries({}, optional=parts) | st.fixed_dictionaries(parts))
    places = list(walk(state))
    olds = [chain for chain, value in places if is_array(value)]
    dicts = [chain for chain, value in places if type(value) in (dict, OrderedDict)] or [()]
    below = [chain for chain in dicts if chain and any(old[: len(chain)] == chain for old in olds)]
    keyed = [chain for chain, _ in places if chain and not isinstance(chain[-1], _Place)]
    renames: dict[
        tuple[Chain, bool], _Renamed
    ] = {}  # of two with the same pattern only the last can be meant
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3])) if olds else 0):
        is_dict = bool(below) and draw(st.booleans())
        of_key = bool(keyed) and not is_dict and draw(st.booleans())
        old = draw(st.sampled_from(below if is_dict else keyed if of_key else olds))
        fresh = draw(st.lists(st.sampled_from(FRESH), min_size=1, max_size=2))
        new = (*draw(st.sampled_from([*dicts, old[:-1]])), *fresh)
        renames[typed(old), is_dict] = _Renamed(old, new, is_dict)
    paths = [path_of(state, chain) for chain, _ in places if chain]
    some = (
        st.none() | st.none() | st.lists(st.sampled_from(paths).map(literal), max_size=3)
        if paths
        else st.none()
    )
    return state, list(renames.values()), draw(some), draw(some)


def patterns(state: Any, renames: list[_Renamed]) -> dict[str, str]:
    found = {}
    for rename in renames:
        old, new = (path_of(state, chain) for chain in (rename.old, rename.new))
        below = ("/(.*)", r"/\1") if rename.is_dict else ("", "")
        found[re.escape(old) + below[0]] = new.replace("\\", r"\\") + below[1]
    return found


def outcome(act: Any) -> Any:
    try:
        return act()
    except ValueError as error:
        return error


@given(pieces())
@example(  # a None is in place of the list that is left out
    (
        [[np.zeros(1), np.zeros(1)], None],
        [_Renamed(old=(_Place(0), _Place(0)), new=("fresh",), is_dict=False)],
        None,
        ["0"],
    )
)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_a_seed_holds_what_renaming_the_keys_of_the_state_gives(
    drawn: tuple[Any, list[_Renamed], list[str] | None, list[str] | None],
) -> None:
    """Ties stay ties, no byte of an array is read or written, and everything verifies."""
    state, renames, include, exclude = drawn
    storage = CountingStorage()
    repo = repository(storage)
    source = repo.commit(state, step=3, metrics={"loss": 1.0})
    data = array_objects(source)
    chosen = outcome(lambda: repo.checkout(include=include, exclude=exclude))
    expected = chosen
    if not isinstance(chosen, ValueError):
        expected = outcome(lambda: renamed(chosen, renames))
    options: Any = {"include": include, "exclude": exclude, "rename": patterns(state, renames)}
    loaded = [outcome(lambda lazy=lazy: repo.checkout(lazy=lazy, **options)) for lazy in (0, 1)]
    storage.forget()
    made = outcome(lambda: repo.branch("seed", **options))
    assert not data & storage.touched()
    kind = type(expected).__name__ if isinstance(expected, ValueError) else "made"
    event(f"{len(renames)} renames, {kind}")
    if isinstance(expected, ValueError):
        assert all(isinstance(each, InvalidInputError) for each in (made, *loaded)), made
        assert "seed" not in repo.branches()
        return
    assert not isinstance(made, ValueError), made
    found = repo.checkout("seed")
    assert difference(expected, found) is None
    assert same_ties(arrays_of(expected), arrays_of(found))
    assert difference(expected, loaded[0]) is None
    assert same_ties(arrays_of(expected), arrays_of(loaded[0]))
    repo.commit(loaded[1], branch="lazily")
    assert difference(expected, repo.checkout("lazily")) is None
    assert repo.verify().ok
    if made.id != source.id:
        assert (made.parents, made.step, made.metrics) == ((source.id,), None, {})
        assert data >= array_objects(made)
        again = repo.commit(found, branch="seed")
        assert difference(expected, repo.checkout("seed")) is None
        assert len(again.arrays) == len(made.arrays)
